"""The laws of routing, over every family: the routed model equals the base model's own code run on the path.

Tolerance, fp32: 1e-5 times the largest reference logit (at least 1).
"""

from __future__ import annotations

import copy
import functools
import threading
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import families
from drllm import InputError, Route, RoutedModel, UnsupportedModelError
from drllm.model import families as known
from drllm.model.cache import RoutedCache
from drllm.policies.constant import GivenRoutes
from random_paths import paths
from reference import find_blocks, is_greedy, path_model, reference_generate, reference_logits

pytestmark = pytest.mark.gpu

L = families.N_BLOCKS
# Only the list of families refuses these: one shares no state in its tiny form, one hides it in its modules (transformers 5.19).
STRUCTURE_ALONE_WOULD_PASS = {"gemma4_unified_text", "recurrent_gemma"}
# First and last block skipped, repeats everywhere, all skipped, all repeated; loops that begin alike and end at different blocks, steps
# back over skipped blocks, a block run for the first time by a later visit, three passes, strengths.
HARD_ROUTES = [
    *(Route.parse(text) for text in ("0121", "2001", "0210", "1110", "0000", "2222", "1012")),
    *(Route.parse(text, L) for text in ("0-2,1-3", "0-3,1-2", "0-2,(1-2)*0.5,3", "0-3,(0-3)*0.25,(3)*0.5", "2,0/4", "0-1,0-1,0-3")),
]
LENGTHS = [4, 7, 5, 9, 3, 8, 6, 7, 5, 4, 6, 8, 9]


ROUTES = st.lists(st.integers(0, 2), min_size=L, max_size=L).map(Route) | paths(L, 6).map(
    lambda drawn: Route.along(*drawn)
)  # digits or paths


@functools.cache
def base_and_routed(name: str):
    """(an untouched copy, the wrapped model)."""
    base = families.build(name)
    untouched = copy.deepcopy(base)
    return untouched, RoutedModel.wrap(base)


def prompts(lengths, seed=1):
    """Left-padded random prompts: (input_ids, attention_mask), both (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        ids[row, -n:] = torch.randint(3, families.VOCAB, (n,), generator=generator)
        mask[row, -n:] = 1
    return ids.to(families.DEVICE), mask.to(families.DEVICE)


def assert_close(got, expected):
    tolerance = 1e-5 * max(1.0, expected.abs().max().item())
    assert (got - expected).abs().max().item() <= tolerance


def greedy(model, ids, mask, policy, n, **kwargs):
    return model.generate(
        input_ids=ids, attention_mask=mask, policy=policy, max_new_tokens=n, min_new_tokens=n, do_sample=False, eos_token_id=None, **kwargs
    )


def test_families_under_test_are_the_supported_ones():
    assert {spec.model_type for spec in families.ALL_FAMILIES.values()} == set(known.FAMILIES)
    assert len(known.FAMILIES) >= 45


@pytest.mark.parametrize("name", families.sampled(others="long"))
def test_without_a_route_it_is_the_base_bit_for_bit(name):
    untouched, routed = base_and_routed(name)
    ids, mask = prompts(LENGTHS[:3])
    with torch.no_grad():
        assert torch.equal(routed(ids, attention_mask=mask).logits, untouched(ids, attention_mask=mask).logits)
        assert torch.equal(routed(ids, mask, routes=Route.full(L)).logits, untouched(ids, attention_mask=mask).logits)
    stock = untouched.generate(ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None)
    ours = routed.model.generate(ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, stock)
    assert [out.token_ids for out in greedy(routed, ids, mask, None, 5)] == stock[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", families.sampled())
@given(route=ROUTES, n_prompt=st.integers(1, 9), n_step=st.integers(1, 3))
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_cached_steps_equal_the_uncached_path(name, route, n_prompt, n_step):
    """Prefill, then steps of n_step tokens, past the sliding window: at every position the logits of the uncached path."""
    untouched, routed = base_and_routed(name)
    ids, _ = prompts([14])
    expected = reference_logits(untouched, route.spans, ids)
    cache = routed.new_cache(GivenRoutes([route]), torch.ones(1, n_prompt, device=families.DEVICE))
    pieces = [routed.forward(cache, input_ids=ids[:, :n_prompt]).logits]
    for start in range(n_prompt, 14, n_step):
        pieces.append(routed.forward(cache, input_ids=ids[:, start : start + n_step]).logits)
    assert_close(torch.cat(pieces, dim=1), expected)
    assert cache.routes == [route]


@pytest.mark.parametrize("name", families.sampled(others="long"))
def test_forward_of_hard_routes(name):
    untouched, routed = base_and_routed(name)
    ids, _ = prompts([9, 9])
    for route in HARD_ROUTES:
        with torch.no_grad():
            assert_close(routed(ids, routes=route).logits, reference_logits(untouched, route.spans, ids))


@pytest.mark.parametrize("name", families.sampled())
def test_a_mixed_left_padded_batch_generates_what_each_row_does_alone(name):
    untouched, routed = base_and_routed(name)
    ids, mask = prompts(LENGTHS)
    outs = greedy(routed, ids, mask, HARD_ROUTES, 8)
    for row, (route, n) in enumerate(zip(HARD_ROUTES, LENGTHS, strict=True)):
        assert is_greedy(untouched, route.spans, ids[row : row + 1, -n:], outs[row].token_ids), f"row {row}, route {route}"
        assert outs[row].route == route
        assert (outs[row].n_prompt_tokens, outs[row].n_new_tokens) == (n, 8)


@pytest.mark.parametrize("name", families.sampled())
@given(routes=st.lists(ROUTES, min_size=len(LENGTHS), max_size=len(LENGTHS)))
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_rows_of_a_mixed_padded_forward(name, routes):
    """A batch of different routes in one forward, left-padded, with its own position ids where the family takes them."""
    untouched, routed = base_and_routed(name)
    ids, mask = prompts(LENGTHS)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        got = routed(ids, mask, positions, routes=routes).logits
    for row, (route, n) in enumerate(zip(routes, LENGTHS, strict=True)):
        assert_close(got[row, -n:], reference_logits(untouched, route.spans, ids[row : row + 1, -n:])[0])


def test_position_ids_go_through_unchanged():
    untouched, routed = base_and_routed("llama")
    ids, mask = prompts([8])
    positions = torch.arange(8, device=families.DEVICE)[None] * 3 + 5
    for route in (None, Route.parse("1021")):
        path = (route or Route.full(L)).path
        with torch.no_grad():
            got = routed(ids, mask, positions, routes=route).logits
            expected = path_model(untouched, path)(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            shifted = routed(ids, mask, positions * 2, routes=route).logits
        assert_close(got, expected)
        assert (shifted - got).abs().max() > 1e-3


@pytest.mark.parametrize("name", families.sampled())
def test_unwrap_restores_the_model(name):
    base = families.build(name, seed=3)
    _, blocks = find_blocks(base)
    before = [dict(vars(block)) for block in blocks]
    keys = list(base.state_dict())
    untouched = copy.deepcopy(base)
    routed = RoutedModel.wrap(base)
    assert list(base.state_dict()) == keys
    assert all("forward" in vars(block) for block in blocks)
    assert routed.unwrap() is base
    assert [vars(block).keys() for block in blocks] == [attributes.keys() for attributes in before]
    ids, mask = prompts([5])
    with torch.no_grad():
        assert torch.equal(base(ids, attention_mask=mask).logits, untouched(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("name", sorted(families.REFUSED))
def test_what_cannot_be_routed_is_refused_before_anything_changes(name):
    model = families.build(name)
    before = {module_name: set(vars(module)) for module_name, module in model.named_modules()}
    with pytest.raises(UnsupportedModelError) as caught:
        RoutedModel.wrap(model)
    assert "\n" not in str(caught.value)
    assert repr(model.config.model_type) in str(caught.value)
    assert {module_name: set(vars(module)) for module_name, module in model.named_modules()} == before


@pytest.mark.long
def test_structure_alone_refuses_an_unknown_family(monkeypatch):
    """Were a refused family listed by mistake, its structure would still give it away."""
    caught = Counter()
    for name in families.REFUSED:
        model = families.build(name)
        monkeypatch.setattr(known, "FAMILIES", known.FAMILIES | {model.config.model_type})
        try:
            RoutedModel.wrap(model)
        except UnsupportedModelError:
            caught[name] += 1
    print(f"refused by structure alone: {sorted(caught)}")
    assert set(families.REFUSED) - set(caught) <= STRUCTURE_ALONE_WOULD_PASS


@pytest.mark.long
def test_three_threads_generate_different_routes_at_once():
    untouched, routed = base_and_routed("gemma3_text")
    ids, mask = prompts(LENGTHS)
    routes_of = {0: HARD_ROUTES, 1: HARD_ROUTES[::-1], 2: [Route.full(L)] * len(LENGTHS)}
    results = {}

    def work(index):
        results[index] = [[out.token_ids for out in greedy(routed, ids, mask, routes_of[index], 8)] for _ in range(2)]

    threads = [threading.Thread(target=work, args=(index,)) for index in routes_of]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, routes in routes_of.items():
        for row, (route, n) in enumerate(zip(routes, LENGTHS, strict=True)):
            tokens, _ = reference_generate(untouched, route.spans, ids[row : row + 1, -n:], 8)
            assert all(repeat[row] == tokens for repeat in results[index])


def test_a_block_that_every_row_skips_costs_nothing():
    base = families.build("llama")
    calls = Counter()
    _, blocks = find_blocks(base)
    for index, block in enumerate(blocks):
        block.self_attn.register_forward_pre_hook(
            lambda _m, args, kwargs, i=index: calls.update({i: kwargs["hidden_states"].shape[0]}), with_kwargs=True
        )
    routed = RoutedModel.wrap(base)
    ids, mask = prompts([5, 5, 5])
    calls.clear()
    greedy(routed, ids, mask, [Route.parse(text) for text in ("0121", "0101", "0111")], 1)
    # Rows through each block's attention: nobody, everybody, one twice and one once, everybody.
    assert calls == {1: 3, 2: 3, 3: 3}
    calls.clear()
    greedy(routed, ids, mask, Route.parse("0000"), 3)
    assert not calls


def assert_generates(untouched, routed):
    ids, mask = prompts(LENGTHS)
    outs = greedy(routed, ids, mask, HARD_ROUTES, 6)
    for row, (route, n) in enumerate(zip(HARD_ROUTES, LENGTHS, strict=True)):
        assert outs[row].token_ids == reference_generate(untouched, route.spans, ids[row : row + 1, -n:], 6)[0]


def test_sliding_window_longer_than_the_text():
    base = families.build("gemma3_text", sliding_window=64)
    assert_generates(copy.deepcopy(base), RoutedModel.wrap(base))


@pytest.mark.parametrize("text", ["1121", "0111"])
@torch.no_grad()
def test_a_stock_cache_is_wrong(text):
    """The laws have teeth: with one slot a block for both passes, or the length of block 0's slot as the clock, the logits differ."""
    untouched, routed = base_and_routed("llama")
    ids, _ = prompts([9])
    route = Route.parse(text)
    cache = routed.new_cache(GivenRoutes([route]), torch.ones(1, 5, device=families.DEVICE))
    routed.forward(cache, input_ids=ids[:, :5])
    if text == "1121":
        cache.slots(1).layers[2] = copy.deepcopy(cache.layers[2])
    else:
        cache.n_seen = cache.layers[0].get_seq_length()
    got = routed.forward(cache, input_ids=ids[:, 5:6]).logits
    assert (got - reference_logits(untouched, route.spans, ids[:, :6])[:, 5:]).abs().max() > 1e-2


def test_sdpa_agrees_with_eager():
    assert_generates(families.build("llama"), RoutedModel.wrap(families.build("llama", attn="sdpa")))


def test_the_cache_refuses_what_would_be_wrong():
    _, routed = base_and_routed("llama")
    with pytest.raises(InputError, match="beam search"):
        routed.new_cache(GivenRoutes([Route.full(L)]), torch.ones(1, 3)).reorder_cache(torch.tensor([0]))
    with pytest.raises(InputError, match="has 3 blocks, the model has 4"):
        RoutedCache(routed.config, L, GivenRoutes([Route.full(3)]), torch.ones(1, 3))
    cache = routed.new_cache(GivenRoutes([Route.full(L)]), torch.ones(1, 3, device=families.DEVICE))
    with pytest.raises(InputError, match="whole prompt"):
        routed.forward(cache, input_ids=torch.tensor([[5, 6]], device=families.DEVICE))
