"""Adapters on the blocks of healed routes: on for their own sequences, off for all others, and what stock PEFT computes."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import families
from deciding import ByFunction
from drllm import InputError, Route, RoutedModel
from drllm.core.span import Span
from drllm.model.copies import block_list, shortened, twin_in
from drllm.policies.policy import Policy
from healed import random_adapter, random_policy

IDS = torch.tensor([[5, 9, 33, 7, 21, 60], [8, 8, 41, 3, 12, 90], [70, 2, 5, 44, 31, 6]])
ROUTE = Route.parse("1011")
ROUTES = [ROUTE, Route.parse("1120"), Route.parse("0-2,1-3")]


def wrapped(family: str = "llama", **options) -> RoutedModel:
    return RoutedModel.wrap(families.build(family, **options))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "qwen2", "gpt_neox"])
def test_without_its_route_an_adapter_changes_no_bit(family):
    routed = wrapped(family)
    before = {route: routed(IDS, routes=route).logits for route in (Route.full(4), ROUTE)}
    fingerprint, stock = routed.fingerprint, routed.model(IDS).logits
    policy = random_policy(routed, ROUTE)
    healed = routed(IDS, routes=policy).logits
    assert (healed - before[ROUTE]).abs().max() > 1e-2
    assert all(torch.equal(routed(IDS, routes=route).logits, logits) for route, logits in before.items())
    assert torch.equal(routed.model(IDS).logits, stock)
    assert routed.fingerprint == fingerprint
    assert torch.equal(routed(IDS, routes=policy).logits, healed)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_it_computes_what_peft_computes_on_the_shortened_model(family, route, tmp_path):
    from peft import PeftModel

    routed = wrapped(family)
    policy = random_policy(routed, route)
    routed.policy = policy
    policy.save(tmp_path)
    plain = shortened(routed, route)
    assert torch.allclose(plain(IDS).logits, routed(IDS, routes=route).logits, atol=1e-5)
    name = block_list(routed)
    plain.set_submodule(name, nn.ModuleList([copy.deepcopy(block) for block in plain.get_submodule(name)]))  # as in a checkpoint
    adapted = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert torch.allclose(adapted(IDS).logits, routed(IDS).logits, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_mixed_batch_takes_adapters_row_by_row(family):
    routed = wrapped(family)
    one, other = random_policy(routed, ROUTE), random_policy(routed, Route.parse("1101"), seed=1)
    for policy in (one, other):
        routed.as_source(policy)
    routes = [one.route, Route.full(4), ROUTE, other.route, one.route]
    ids = torch.cat([IDS, IDS])[:5]
    together = routed(ids, routes=routes).logits
    for row, route in enumerate(routes):
        assert torch.allclose(together[row], routed(ids[row : row + 1], routes=route).logits[0], atol=1e-5)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    answers = routed.generate(input_ids=ids, policy=routes, **options)
    assert [answer.route for answer in answers] == routes
    for row, route in enumerate(routes):
        alone = routed.generate(input_ids=ids[row : row + 1], policy=route, **options | {"attention_mask": torch.ones(1, 6)})
        assert answers[row].token_ids == alone[0].token_ids
        sequence = torch.tensor([[*ids[row].tolist(), *answers[row].token_ids]])
        chosen = routed(sequence, routes=route).logits[0, 5:-1].argmax(-1)  # the cached steps against one uncached forward
        assert chosen.tolist() == answers[row].token_ids


def test_what_it_does_not_fit_is_refused():
    routed = wrapped()
    adapter = random_adapter(routed, ROUTE)
    with pytest.raises(InputError, match="was not given: load the healed policy"):
        routed(IDS, routes=adapter.healed)
    routed.adopt(adapter)
    with pytest.raises(InputError, match="was trained for route 1011, not for 1101"):
        routed(IDS, routes=Route.parse("1101").with_adapter(adapter.name))
    wider = wrapped(hidden_size=48, head_dim=12)
    with pytest.raises(InputError, match=r"linear map .* which is not there: load its base"):
        wider.adopt(adapter)


def test_a_decider_that_asks_for_an_unknown_adapter_is_refused():
    class Unknown(Policy):
        name, n_layers = "unknown", 4

        def start(self, prompt_mask_BT):
            return ByFunction(lambda block, x_BTD, _: [(Span(block, block, 1.0, "f" * 16),)] * len(x_BTD), prompt_mask_BT)

        def save(self, folder):
            raise AssertionError

        load = save

    with pytest.raises(InputError, match="asks for adapter ffffffffffffffff"):
        wrapped()(IDS, routes=Unknown())


def test_unwrapping_takes_it_off():
    routed = wrapped()
    stock = copy.deepcopy(routed.model).state_dict().keys()
    routed.policy = random_policy(routed, ROUTE)
    model = routed.unwrap()
    assert model.state_dict().keys() == stock
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_twin_in_another_type_has_it_too():
    routed = wrapped()
    routed.policy = policy = random_policy(routed, ROUTE)
    assert torch.allclose(twin_in(routed, torch.float64)(IDS, routes=policy.route).logits.float(), routed(IDS).logits, atol=1e-4)


def test_a_twin_keeps_the_hooks_that_stood_before_and_refuses_later_ones():
    """Offloaded weights come by accelerate's hook, which is the block's own forward: without it a twin would compute with none."""
    model = families.build("llama")
    calls = []
    for block in model.model.layers:
        block.forward = functools.partial(_counted, calls, block.forward)
    routed = RoutedModel.wrap(model)
    calls.clear()
    wanted = routed(IDS, routes=Route.parse("1011")).logits
    assert len(calls) == 3
    twin = shortened(routed, Route.parse("1011"))
    assert torch.equal(twin(IDS).logits, wanted)
    assert [len(one.forward.args[0]) for one in twin.model.layers] == [6, 6, 6], "each block was called once more, by its own hook"
    routed.blocks[2].forward = routed.blocks[2].forward.original
    with pytest.raises(InputError, match="block 2 was hooked after wrapping: remove that hook first"):
        shortened(routed, Route.parse("1011"))


def _counted(calls, forward, *args, **kwargs):
    calls.append(forward)
    return forward(*args, **kwargs)


@pytest.mark.long
@pytest.mark.parametrize("family", families.sampled())
def test_a_shortened_model_computes_what_the_route_computes(family):
    """Without a cache; what an adapter is trained on."""
    routed = wrapped(family)
    for route in (ROUTE, Route.parse("1120")):
        wanted = routed(IDS, routes=route).logits
        assert (shortened(routed, route)(IDS).logits - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())
