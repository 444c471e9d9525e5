"""The ground truth is itself true: it is the base on the identity path, and it says what running the blocks by hand says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import families
from reference import find_blocks, path_model, reference_generate, reference_logits

IDENTITY = tuple(range(families.N_BLOCKS))
ROUTES = [(1, 2, 3), (0, 1, 2), (0, 2, 2, 3), (0, 0, 1, 3, 3), (2,), (), (0, 0, 1, 1, 2, 2, 3, 3)]
NAMES = sorted(families.FAMILIES)


@functools.cache
def model_of(name: str) -> PreTrainedModel:
    return families.build(name)


@functools.cache
def ids_of(seed: int = 3) -> torch.Tensor:
    """Two rows of 11 tokens, nearly twice the window."""
    return torch.randint(3, families.VOCAB, (2, 11), generator=torch.Generator().manual_seed(seed))


@functools.cache
@torch.no_grad()
def base_logits(name: str) -> torch.Tensor:
    return model_of(name)(ids_of(), use_cache=False).logits


@torch.no_grad()
def logits_by_hand(model: PreTrainedModel, path: Sequence[int], input_ids: torch.Tensor) -> torch.Tensor:
    """The other way to say a route: the whole model as it is, each block's own forward called path.count(block) times in its place."""
    blocks = find_blocks(model)[1]

    def rerouted(forward: Any, passes: int) -> Any:
        def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # A probe pass of a skipped block tells what the model expects back: a tensor, or a tuple that starts with one.
            output: Any = forward(hidden_states, *args, **kwargs)
            for _ in range(passes - 1):
                output = forward(output[0] if isinstance(output, tuple) else output, *args, **kwargs)
            if passes:
                return output
            return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

        return run

    for index, block in enumerate(blocks):
        block.forward = rerouted(block.forward, list(path).count(index))
    try:
        return model(input_ids, use_cache=False).logits
    finally:
        for block in blocks:
            del block.forward


@pytest.mark.parametrize("name", families.sampled())
def test_the_identity_path_is_the_base_bit_for_bit(name: str) -> None:
    logits = base_logits(name)
    assert torch.isfinite(logits).all()
    assert logits.abs().max() < 100
    assert torch.equal(reference_logits(model_of(name), IDENTITY, ids_of()), logits)


@pytest.mark.parametrize("name", families.sampled())
def test_every_block_matters(name: str) -> None:
    for block in IDENTITY:
        skipped = [other for other in IDENTITY if other != block]
        repeated = sorted([*IDENTITY, block])
        for path in (skipped, repeated):
            change = (reference_logits(model_of(name), path, ids_of()) - base_logits(name)).abs().max()
            assert change > 1e-3, f"path {path} changes no logit by more than {change:.1e}"


WINDOWS = {"gpt_neo": "window_size", "llama4_text": "attention_chunk_size", "modernbert-decoder": "local_attention"}
"""The fields that hold a window under another name than sliding_window."""


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n in WINDOWS or n.endswith("-sliding") or families.S in families.FAMILIES[n].config.get("layer_types", ())]
)
def test_windows_are_shorter_than_the_text(name: str) -> None:
    """A family meant to have windows sees less of these 11 tokens than with a window nobody reaches."""
    wide = families.build(name, **{WINDOWS.get(name, "sliding_window"): 200})
    with torch.no_grad():
        assert (wide(ids_of(), use_cache=False).logits - base_logits(name)).abs().max() > 1e-3


@pytest.mark.parametrize("name", families.sampled())
def test_the_path_is_what_running_the_blocks_by_hand_gives(name: str) -> None:
    scale = base_logits(name).abs().max().clamp(min=1)
    for path in ROUTES:
        difference = (reference_logits(model_of(name), path, ids_of()) - logits_by_hand(model_of(name), path, ids_of())).abs().max()
        assert difference <= 1e-5 * scale, f"path {path}: {difference:.1e}"
    assert torch.equal(base_logits(name), model_of(name)(ids_of(), use_cache=False).logits), "the model was left changed"


def test_a_path_model_shares_weights_and_leaves_the_model_alone() -> None:
    model = model_of("qwen2-sliding")
    before = (model.config.to_dict(), list(model.state_dict()))
    twin = path_model(model, (3, 0, 0))
    assert twin.config.num_hidden_layers == 3
    assert twin.config.layer_types == [model.config.layer_types[block] for block in (3, 0, 0)]
    assert {p.data_ptr() for p in twin.parameters()} <= {p.data_ptr() for p in model.parameters()}
    assert (model.config.to_dict(), list(model.state_dict())) == before


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "gpt_oss", "smollm3-sliding"])
def test_greedy_generation_agrees_with_transformers_generate(name: str) -> None:
    """On the identity path, transformers' own cached `generate` is a second opinion."""
    model, prompt = model_of(name), ids_of()[:1]
    tokens, steps = reference_generate(model, IDENTITY, prompt, 8)
    output = model.generate(
        prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    assert output.sequences[0, prompt.shape[1] :].tolist() == tokens
    torch.testing.assert_close(torch.stack(output.logits)[:, 0], steps, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (families.build("llama", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("name", sorted(families.REFUSED))
def test_refused_families_run_and_have_a_reason(name: str) -> None:
    assert families.REFUSED[name].reason
    with torch.no_grad():
        logits = families.build(name)(ids_of(), use_cache=False).logits
    assert torch.isfinite(logits).all()


def test_every_causal_family_of_transformers_is_accounted_for() -> None:
    """Each is in one of three tables. A later transformers may bring more: drllm refuses them by name, and a skip shows them here."""
    tested = {spec.model_type for spec in [*families.ALL_FAMILIES.values(), *families.ALL_REFUSED.values()]}
    assert not tested & set(families.NOT_TESTED)
    new = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - tested - set(families.NOT_TESTED)
    if new and families.IS_NEWER:
        pytest.skip(f"this transformers has families that are in no table yet: {', '.join(sorted(new))}")
    assert not new
    assert len({spec.model_type for spec in families.FAMILIES.values()}) >= 45
