"""The routing state of one forward or generation: whose passes, whose slots, how many tokens seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Gemma3TextConfig, LlamaConfig, Mamba2Config

from deciding import ByFunction
from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.route import Route, Span
from drllm.core.span import in_place
from drllm.model import transformers_private as private
from drllm.model.cache import STRAYED, PassSlots, PrefilledCache, RoutedCache, new_slots
from drllm.model.sub_batches import BatchSplitter, check_decision, every_sub_batch
from drllm.policies.constant import GivenRoutes, RoutePolicy
from drllm.policies.policy import Policy

L, D, WINDOW = 3, 4, 6
CPU = torch.device("cpu")
LLAMA = LlamaConfig(num_hidden_layers=L, hidden_size=D, num_attention_heads=1, intermediate_size=D, vocab_size=9)
GEMMA = Gemma3TextConfig(num_hidden_layers=2, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])


def given(*texts: str) -> GivenRoutes:
    return GivenRoutes([Route.parse(text) for text in texts])


def cache_of(*texts: str, n_tokens: int = 2, **options) -> RoutedCache:
    return RoutedCache(LLAMA, L, given(*texts), torch.ones(len(texts), n_tokens), **options)


def states(n_sequences: int, n_tokens: int = 2) -> Tensor:
    return torch.zeros(n_sequences, n_tokens, D)


def run(cache: RoutedCache, n_tokens: int, n_sequences: int = 1) -> None:
    """A step of the model, but for the blocks themselves."""
    for block in range(cache.n_layers):
        cache.enter(block, states(n_sequences, n_tokens), {})
        cache.leave(block, n_tokens)


class Deciding(Policy):
    """Executes, but for the sequences whose first prompt token may not be read: these skip. Block 2 gets no decision. Keeps its mask."""

    name = "deciding"
    n_layers = L

    def start(self, prompt_mask_BT):
        self.mask = prompt_mask_BT
        return ByFunction(lambda block, x, mask: mask[:, 0].long() if block < 2 else x, prompt_mask_BT)

    def save(self, folder):
        raise NotImplementedError

    load = save


def test_slots_are_those_of_the_family():
    assert [private.is_window(slot) for slot in new_slots(GEMMA, 2)] == [True, False]
    assert [private.is_plain(slot) for slot in new_slots(LLAMA, L)] == [True] * L


def test_families_without_a_slot_a_block_are_refused():
    recurrent = Mamba2Config(num_hidden_layers=2, num_heads=8, head_dim=8, hidden_size=32)
    why = "its recurrent or shared state is not per block, so blocks cannot be skipped or repeated exactly"
    with pytest.raises(
        UnsupportedModelError,
        match=rf"^model_type 'mamba2' keeps (?!NoneType)\w+ state, expected plain or sliding-window attention: {why}; see `drllm models`",
    ):
        new_slots(recurrent, 2)
    with pytest.raises(UnsupportedModelError, match=r"^model_type 'llama' has 4 blocks but 3 cache slots: blocks that share keys"):
        new_slots(LLAMA, L + 1)


def test_a_step_s_mask_follows_the_clock_whatever_the_slots_hold():
    slots = PassSlots(new_slots(GEMMA, 2))
    assert len(slots.layers) == 2
    assert slots.get_seq_length() == 0
    assert [slots.get_mask_sizes(4, block) for block in (0, 1)] == [(4, 0), (4, 0)]
    slots.n_seen = 10
    assert slots.get_seq_length() == slots.get_seq_length(1) == 10
    assert slots.get_mask_sizes(2, 1) == (12, 0)
    assert slots.get_mask_sizes(1, 0) == (WINDOW, 10 - WINDOW + 1), "the window's tokens, the new one among them, and where they begin"
    with pytest.raises(InputError, match=r"^beam search reorders .*: use greedy search or sampling$"):
        slots.reorder_cache(torch.tensor([0]))


def test_a_source_for_another_depth_is_refused():
    with pytest.raises(InputError, match=r"^the policy or route has 4 blocks, the model has 3: use one made for this model$"):
        cache_of("1111")


@pytest.mark.parametrize(
    ("actions", "passes"),
    [
        ("000", []),
        ("222", [None, None]),
        ("011", [(1, 2)]),
        ("012", [(1, 2), (2,)]),
        ("122", [None, (1, 2)]),
        ("020", [(1,), (1,)]),
        ("1", [None]),
        ("2", [None, None]),
    ],
)
def test_who_makes_each_pass_of_a_block(actions, passes):
    cache = cache_of(*(f"{action}11" for action in actions))
    cache.enter(0, states(len(actions)), {})
    found = every_sub_batch(0, cache.sub_batches[0])
    assert [part.sequences for part in found] == [None if part.picked is None else tuple(part.picked.tolist()) for part in found] == passes
    assert [(part.span, part.sets) for part in found] == [(Span(0, 0), (n,)) for n in range(len(passes))], "a pass has slots of its own"


def test_blocks_that_all_execute_are_known_at_once_and_equal_picks_are_one_tensor():
    cache = cache_of("110", "010")
    for block in range(L):
        cache.enter(block, states(2), {})
    assert cache.sub_batches[1] is None
    assert cache.sub_batches[2] == ()

    splitter = BatchSplitter(L)

    def picked(actions, device=CPU):
        return splitter.split(0, [in_place(0, action) for action in actions], device)[0].picked

    assert picked([1, 0]) is picked([1, 0])
    assert picked([0, 1]).tolist() == [1]
    assert picked([1, 0], torch.device("meta")).device.type == "meta"


def test_sequences_run_together_what_begins_alike_and_each_pass_has_slots_of_its_own():
    """Three loops: two begin alike, and the third is at another block; the second pass of block 0 is made at two visits."""
    cache = cache_of("0-1,0-1,2", "0-1,0-2", "0-2,0,2", "111")
    for block in range(L):
        cache.enter(block, states(4), {})
    assert cache.sub_batches[0] is None
    shown = [[(str(part.span), part.sets, part.sequences) for part in every_sub_batch(block, cache.sub_batches[block])] for block in (1, 2)]
    assert shown[0] == [("1", (0,), None), ("0", (1,), (0, 1)), ("1", (1,), (0, 1))]
    assert shown[1] == [("2", (0,), None), ("0", (2,), (2,)), ("2", (1,), (2,))]
    assert cache.routes == [Route.parse(text) for text in ("0-1,0-2", "0-1,0-2", "0-2,0,2", "111")]


def test_a_span_with_a_strength_is_one_turn():
    cache = cache_of("0-2,(1-2)*0.5", "0-2,1-2", "0-2,(0-2)*0.5")
    for block in range(L):
        cache.enter(block, states(3), {})
    found = [(str(part.span), part.sets, part.sequences) for part in cache.sub_batches[2]]
    assert found == [("2", (0,), None), ("(1-2)*0.5", (1, 1), (0,)), ("1", (2,), (1,)), ("2", (2,), (1,)), ("(0-2)*0.5", (1, 3, 3), (2,))]


def test_a_policy_decides_from_the_prompt_it_may_read():
    policy = Deciding()
    seen = []
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])

    def observe(block, x, arguments):
        seen.append((block, tuple(x.shape), arguments))
        return x + 1 if block == 1 else None

    cache = RoutedCache(LLAMA, L, policy, mask, observe)
    assert policy.mask.dtype == torch.bool
    assert policy.mask.tolist() == mask.bool().tolist()
    x = states(2, 3)
    assert cache.enter(0, x, {"a": 1}) is x
    assert torch.equal(cache.enter(1, x, {"a": 2}), x + 1), "what the observer returns goes on"
    cache.enter(1, x, {"a": 2})
    assert seen == [(0, (2, 3, D), {"a": 1}), (1, (2, 3, D), {"a": 2})], "once a block"
    assert cache.routes == [Route.parse("00"), Route.parse("11")]
    with pytest.raises(InputError, match=r"^the policy decided torch.float32 \(2, 3, 4\) at block 2, expected"):
        cache.enter(2, x, {})


def test_one_route_serves_any_number_of_sequences_and_a_list_its_own():
    assert cache_of("101", "121").routes == [Route.parse("101"), Route.parse("121")], "before any block is entered"
    one = RoutedCache(LLAMA, L, RoutePolicy(Route.parse("101")), torch.ones(3, 2))
    assert one.routes == [Route.parse("101")] * 3
    cache = RoutedCache(LLAMA, L, given("101", "121", "111"), torch.ones(2, 2))
    with pytest.raises(InputError, match=r"^got 3 routes for 2 sequences, expected one each$"):
        cache.enter(0, states(2), {})


def test_prefill_takes_the_whole_prompt_block_after_block():
    cache = cache_of("101", "121")
    with pytest.raises(InputError, match="did not follow the route"):
        cache.enter(1, states(2), {})
    for shape in ((2, 1), (1, 2)):
        found = rf"prefill saw states of \({shape[0]}, {shape[1]}\) sequences and tokens, the prompt mask has \(2, 2\): the whole prompt"
        with pytest.raises(InputError, match=f"^{found}"):
            cache.enter(0, states(*shape), {})
    run(cache, 2, 2)
    run(cache, 1, 2)  # later steps are shorter
    assert cache.n_seen == 3
    half = cache_of("111")
    half.enter(0, states(1), {})
    half.leave(2, 2)  # the clock goes on although two blocks were never entered
    with pytest.raises(InputError, match=r"^the cache met new blocks after prefill: use one RoutedCache a generation$"):
        half.enter(1, states(1), {})


def test_the_clock_of_both_passes_advances_with_the_last_block():
    early, late = cache_of("121"), cache_of("121")
    slots = early.slots(1)
    for block in range(L):
        assert early.n_seen == 0
        early.enter(block, states(1, 2), {})
        early.leave(block, 2)
    assert early.n_seen == early.slots(1).n_seen == 2
    assert early.slots(1) is slots
    run(early, 3)
    assert early.n_seen == early.get_seq_length() == slots.n_seen == slots.get_seq_length() == 5
    run(late, 2)
    assert late.slots(0) is late
    assert not late.later, "made when first wanted"
    assert late.slots(2).n_seen == late.slots(1).n_seen == 2
    assert len(late.slots(1).layers) == L
    assert late.slots(1).layers[0] is not late.layers[0]
    windowed = RoutedCache(GEMMA, 2, given("22"), torch.ones(1, 2))
    assert [private.is_window(slot) for slot in windowed.slots(1).layers] == [True, False]


def test_an_argument_is_split_once_a_step():
    cache = cache_of("111")
    picked, value, other = torch.tensor([0]), torch.zeros(1), torch.zeros(1)
    made = []

    def select():
        made.append(len(made))
        return made[-1]

    assert [cache.once_a_step(picked, value, select) for _ in range(2)] == [0, 0]
    assert cache.once_a_step(picked, other, select) == 1
    assert cache.once_a_step(torch.tensor([0]), value, select) == 2
    cache.leave(0, 1)
    assert cache.once_a_step(picked, value, select) == 0
    cache.leave(L - 1, 1)
    assert cache.once_a_step(picked, value, select) == 3, "the next step has new arguments"


def test_a_result_is_complete_when_every_block_was_entered_and_the_clock_went_on():
    cache = cache_of("111")
    with pytest.raises(InputError) as caught:
        cache.check_complete()
    assert str(caught.value) == STRAYED
    run(cache, 2)
    cache.check_complete()
    cache.check_complete(1)
    with pytest.raises(InputError, match="did not follow the route"):
        cache.check_complete(2)
    least = cache_of("111", n_tokens=1)
    run(least, 1)
    least.check_complete()
    short = cache_of("111")
    short.enter(0, states(1), {})
    short.leave(2, 2)
    with pytest.raises(InputError, match="did not follow the route"):
        short.check_complete()


def pair(start: float, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values (1 head, T, 1) that count up from `start`; values are the negative ones."""
    keys = torch.arange(start, start + n_tokens).reshape(1, n_tokens, 1)
    return keys, -keys


def kept(cache: PrefilledCache, block: int, n_pass: int = 0) -> list[list[float]]:
    """The keys in a slot, a list a sequence; the values must be their negative."""
    slot = cache.slots(n_pass).layers[block]
    assert torch.equal(slot.values, -slot.keys)
    return slot.keys[:, 0, :, 0].tolist()


def test_a_prefilled_cache_holds_each_sequence_s_passes_aligned_on_the_right():
    routes = [Route.parse("021"), Route.parse("111")]
    lines = [[pair(10, 2), pair(20, 2), pair(30, 2)], [pair(40, 3), pair(50, 3), pair(60, 3)]]
    cache = PrefilledCache(LLAMA, L, routes, lines, 3, CPU)
    assert kept(cache, 0) == [[40, 41, 42]]
    assert kept(cache, 1) == [[0, 10, 11], [50, 51, 52]]
    assert kept(cache, 1, 1) == [[0, 20, 21]]
    assert kept(cache, 2) == [[0, 30, 31], [60, 61, 62]]
    assert cache.n_seen == cache.slots(1).n_seen == 3
    assert cache.routes == routes
    assert [[part.sequences for part in every_sub_batch(block, cache.sub_batches[block])] for block in range(L)] == [
        [(1,)],
        [None, (0,)],
        [None],
    ]
    assert all(isinstance(cache.layers[block], private.RoomySlot) for block in range(L)), "room for the tokens to come"
    run(cache, 1, 2)  # decoding goes on: no block is prefilled again
    cache.check_complete(3)
    assert cache.n_seen == 4


def test_a_window_keeps_its_last_tokens_alone():
    cache = PrefilledCache(GEMMA, 2, [Route.parse("11")], [[pair(10, 9), pair(30, 9)]], 9, CPU)
    assert kept(cache, 0) == [[14, 15, 16, 17, 18]], "a window of six, less the token to come"
    assert kept(cache, 1) == [[30, 31, 32, 33, 34, 35, 36, 37, 38]]
    assert private.is_window(cache.layers[0])
    assert cache.layers[0].get_seq_length() == 9
    assert cache.get_mask_sizes(1, 0) == (WINDOW, 4)


def test_heads_may_be_larger_than_prompts_are_long():
    keys = torch.arange(16.0).reshape(1, 2, 8)
    cache = PrefilledCache(LLAMA, L, [Route.parse("100")], [[(keys, keys)]], 3, CPU)
    assert torch.equal(cache.layers[0].keys[0, :, 1:], keys)
    assert cache.layers[0].keys.shape == (1, 1, 3, 8)


def test_sequences_that_leave_take_their_rows_along():
    routes = [Route.parse(text) for text in ("121", "011", "221")]
    lines = [[pair(100 * index + 10 * step, 2) for step in range(sum(map(int, str(route))))] for index, route in enumerate(routes)]
    cache = PrefilledCache(LLAMA, L, routes, lines, 2, CPU)
    before = cache.sub_batches[0]
    cache.select([2, 0])
    assert cache.routes == [routes[2], routes[0]]
    assert kept(cache, 0) == [[200, 201], [0, 1]]
    assert kept(cache, 0, 1) == [[210, 211]]
    assert kept(cache, 1) == [[220, 221], [10, 11]]
    assert kept(cache, 1, 1) == [[230, 231], [20, 21]]
    assert kept(cache, 2) == [[240, 241], [30, 31]]
    now = cache.sub_batches[0]
    assert now is not before
    assert [part.sequences for part in now] == [None, (0,)]
    assert now[1].picked.tolist() == [0]
    cache.select([1])
    assert cache.routes == [routes[0]]
    assert cache.sub_batches[0] is None
    assert kept(cache, 0) == [[0, 1]]
    assert kept(cache, 0, 1) == []


def test_what_is_split_lies_on_the_model_s_device():
    """The device without data stands for a GPU."""
    routes = [Route.parse(text) for text in ("121", "011", "211")]
    lines = [[(torch.zeros(1, 2, 1, device="meta"),) * 2] * sum(map(int, str(route))) for route in routes]
    cache = PrefilledCache(LLAMA, L, routes, lines, 2, torch.device("meta"))
    before = cache.sub_batches[0][0].picked
    cache.select([1, 2])
    for rows in (before, cache.sub_batches[0][0].picked):
        assert rows is not None
        assert rows.device.type == cache.layers[0].keys.device.type == "meta"


def test_a_decision_is_one_action_a_sequence_or_what_runs_there():
    for wanted in ([0, 1, 2], [1, 1, 1]):
        assert check_decision(torch.tensor(wanted), 3, 0) == [in_place(0, action) for action in wanted]
    assert check_decision(torch.tensor([True, False]), 2, 0) == [(Span(0, 0),), ()]
    visits = [(Span(2, 2), Span(0, 2, 0.5)), (), (Span(2, 2),)]
    assert check_decision(visits, 3, 2) is visits
    with pytest.raises(
        InputError, match=r"^the policy decided \(0-2\)\*0.5 at block 1, expected spans of blocks that the forward has come to$"
    ):
        check_decision([(Span(1, 1), Span(0, 2, 0.5))], 1, 1)


@pytest.mark.parametrize(
    ("decision", "found"),
    [
        (torch.tensor([1, 1]), r"torch.int64 \(2,\) at block 5, expected one whole action a sequence, \(3,\)"),
        (torch.tensor([[1, 1, 1]]), r"torch.int64 \(1, 3\) at block 5, expected one whole"),
        (torch.tensor([1.0, 1, 1]), r"torch.float32 \(3,\) at block 5, expected one whole"),
        ([1, 1, 1], "list at block 5, expected one whole"),
        (torch.tensor([1, 3, 1]), r"\[1, 3, 1\] at block 5, expected 0 \(skip\), 1 \(execute\) or 2 \(repeat\)$"),
        (torch.tensor([1, -1, 1]), r"\[1, -1, 1\] at block 5, expected 0"),
    ],
)
def test_any_other_decision_is_refused(decision, found):
    with pytest.raises(InputError, match=f"^the policy decided {found}"):
        check_decision(decision, 3, 5)


def test_looped_sequences_that_leave_take_their_rows_along():
    routes = [Route.parse(text) for text in ("0-2,1-2", "0-2,(1-2)*0.5", "0-1,0-2")]
    lines = [[pair(100 * index + 10 * step, 2) for step in range(5)] for index in range(3)]
    cache = PrefilledCache(LLAMA, L, routes, lines, 2, CPU)
    assert cache.routes == routes
    assert [kept(cache, 1, n) for n in range(3)] == [[[10, 11], [110, 111], [210, 211]], [[230, 231]], [[30, 31]]]
    assert kept(cache, 1, 3) == [[130, 131]]
    cache.select([2, 1])
    assert cache.routes == [routes[2], routes[1]]
    assert kept(cache, 0, 1) == [[220, 221]]
    assert kept(cache, 1, 1) == [[230, 231]]
    assert kept(cache, 1, 3) == [[130, 131]]
    assert kept(cache, 1) == [[210, 211], [110, 111]]
    assert cache.sub_batches[0] is None
    assert [(str(part.span), part.sequences) for part in cache.sub_batches[2]] == [("2", None), ("(1-2)*0.5", (1,))]
    cache.select([0])
    assert cache.sub_batches[2] is None
    assert [(str(part.span), part.sequences) for part in cache.sub_batches[1]] == [("1", None), ("0", None), ("1", None)]
