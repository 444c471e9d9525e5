"""A twin computes what a whole copy of the model in the other float type computes, and holds no second copy of the blocks."""

from __future__ import annotations

import copy

import pytest
import torch

import families
from drllm import Route, RoutedModel
from drllm.model.copies import twin_in

IDS = torch.tensor([[5, 9, 77, 31], [8, 1, 2, 3]])
OTHER = Route.parse("0112")


def half(name: str) -> RoutedModel:
    """A tiny model in bfloat16, the frequencies of its positions in float32, as transformers loads one."""
    model = families.build(name, vocab_size=300)
    kept = {table: buffer.clone() for table, buffer in model.named_buffers() if "inv_freq" in table}
    model.bfloat16()
    for table, buffer in model.named_buffers():
        buffer.data = kept.get(table, buffer.data)
    return RoutedModel.wrap(model)


def logits(routed: RoutedModel, route: Route) -> torch.Tensor:
    with torch.no_grad():
        return routed(IDS, routes=route).logits


@pytest.mark.parametrize("name", families.sampled())
def test_a_float32_twin_is_the_model_in_float32_and_leaves_it_alone(name):
    routed = half(name)
    before = logits(routed, OTHER)
    twin = twin_in(routed, torch.float32)
    assert twin.model.dtype == torch.float32
    whole = RoutedModel.wrap(copy.deepcopy(routed).unwrap().float())
    for route in (Route.full(routed.n_layers), OTHER):
        assert torch.equal(logits(twin, route), logits(whole, route))
    assert torch.equal(logits(routed, OTHER), before)
    assert {parameter.dtype for parameter in routed.model.parameters()} == {torch.bfloat16}


def test_the_weights_of_the_blocks_are_the_models_own_while_nothing_runs():
    routed = half("llama")
    twin = twin_in(routed, torch.float32)
    logits(twin, OTHER)
    for own, shared in zip(routed.blocks.parameters(), twin.blocks.parameters(), strict=True):
        assert own is not shared
        assert own.data_ptr() == shared.data_ptr()
    assert routed.model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_an_error_in_a_block_leaves_its_weights_as_they_were():
    twin = twin_in(half("llama"), torch.float32)
    failing = twin.blocks[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(twin, OTHER)
    assert {parameter.dtype for parameter in twin.blocks.parameters()} == {torch.bfloat16}
    failing.remove()
    assert torch.equal(logits(twin, OTHER), logits(twin_in(half("llama"), torch.float32), OTHER))


def test_the_frequencies_of_a_float32_model_stay_so_in_its_bfloat16_twin():
    """A model that transformers loads in bfloat16 has them in float32; with rounded ones the twin would be worse than what a user runs."""
    routed = RoutedModel.wrap(families.build("llama", vocab_size=300))
    assert torch.equal(logits(twin_in(routed, torch.bfloat16), OTHER), logits(half("llama"), OTHER))


def test_a_copy_of_a_twin_is_a_twin_of_its_own():
    twin = twin_in(half("llama"), torch.float32)
    again = copy.deepcopy(twin)
    with torch.no_grad():
        for parameter in twin.blocks.parameters():
            parameter.zero_()
    assert not torch.equal(logits(again, OTHER), logits(twin, OTHER))
