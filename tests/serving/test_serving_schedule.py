"""One engine step of mixed routes, without vLLM: each sequence as if it were alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deciding import ByFunction
from drllm import Route
from drllm.core.errors import InputError
from drllm.core.route import MAX_PASSES, Visit
from drllm.deploy.serving.engine.schedule import Loop, Schedule, Undecided, lay_out, loops_of, run_schedule
from drllm.deploy.serving.engine.segments import cuts, most_passes
from drllm.deploy.serving.engine.vllm_private import StepAttention
from drllm.policies.policy import Policy
from drllm.policies.routers import RouterConfig, Routers
from random_paths import paths

L, D = 4, 8


@dataclass
class Common:
    """The fields of vLLM's CommonAttentionMetadata that a subset of sequences changes."""

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    block_table_tensor: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor | None = None
    is_prefilling: torch.Tensor | None = None
    seq_lens_cpu_upper_bound: torch.Tensor | None = None
    _num_computed_tokens_cache: torch.Tensor | None = None
    _token_to_req_indices_cache: torch.Tensor | None = None

    def replace(self, **changes: Any) -> Common:
        return replace(self, **changes)


def step_of(lengths: list[int]) -> Common:
    """A step of sequences of these many tokens; slots are numbered so that each token keeps its own."""
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    n = int(starts[-1])
    count = len(lengths)
    tables, slots, positions = torch.arange(count)[:, None] * 7, torch.arange(n) + 100, torch.arange(n) * 3
    prefilling, bounds = torch.ones(count, dtype=torch.bool), torch.tensor(lengths) + 11
    return Common(starts, starts, torch.tensor(lengths) + 10, count, n, max(lengths), tables, slots, positions, prefilling, bounds)


def attention_of(common: Common, context: Any = None) -> StepAttention:
    """The step's attention, whose backend takes the metadata as they are."""
    return StepAttention(context, common, lambda part: part, common)


class Block(torch.nn.Module):
    """Mixes the tokens of a sequence as attention does: by where its metadata says that sequences begin."""

    def __init__(self, block: int, n_pass: int, context: Any):
        super().__init__()
        self.self_attn = SimpleNamespace(attn=SimpleNamespace(layer_name=f"{block}.{n_pass}"))
        self.weight = torch.randn(D, D, generator=torch.Generator().manual_seed(block)) / D**0.5
        self.context, self.name = context, f"{block}.{n_pass}"
        self.calls = 0

    def forward(self, positions: torch.Tensor, states: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        common, slots = self.context.attn_metadata[self.name], self.context.slot_mapping[self.name]
        assert torch.equal(slots - 100, positions // 3), "each token keeps its own slot"
        residual = residual + states
        starts = common.query_start_loc_cpu.tolist()
        assert starts[-1] == len(states) == common.num_actual_tokens
        assert common.max_query_len == max(b - a for a, b in itertools.pairwise(starts))
        sequences = enumerate(itertools.pairwise(starts))
        mixed = torch.cat([residual[a:b].cumsum(0) / (1 + common.seq_lens[place]) for place, (a, b) in sequences])
        return torch.tanh(mixed @ self.weight), residual


class LoopBlocks:
    """A span that is run again, its mixing written out."""

    def __init__(self, loop: Loop, blocks: dict[str, Block]):
        self.names = [f"{block}.{n_pass}" for block, n_pass in loop.steps]
        self.blocks, self.strength = [blocks[name] for name in self.names], loop.span.strength

    def run(self, positions: torch.Tensor, states: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = states + residual
        for block in self.blocks:
            states, residual = block(positions, states, residual)
        if self.strength == 1:
            return states, residual
        return before + self.strength * (states + residual - before), torch.zeros_like(before)


def schedule_of(routes: Sequence[str], attention: StepAttention, *more: Any) -> Schedule:
    """Of these routes, as texts."""
    laid = [lay_out(Route.parse(route, L)) for route in routes]
    loops = {place: one.loops for place, one in enumerate(laid) if one.loops}
    return Schedule(np.stack([one.actions for one in laid]), attention, *more, loops=loops)


def run(
    routes: list[str], lengths: list[int], undecided: dict[int, Policy] | None = None
) -> tuple[torch.Tensor, Schedule, dict[str, Block]]:
    """The states behind the last block."""
    common = step_of(lengths)
    context = SimpleNamespace(attn_metadata={}, slot_mapping={})
    blocks = {f"{block}.{n_pass}": Block(block, n_pass, context) for block in range(L) for n_pass in range(MAX_PASSES)}
    waiting = [Undecided(str(place), policy, [place]) for place, policy in (undecided or {}).items()]
    schedule = schedule_of(routes, attention_of(common, context), waiting)
    states = torch.randn(sum(lengths), D, generator=torch.Generator().manual_seed(9))
    segments = [
        SimpleNamespace(block=block, n_pass=n_pass, names=[f"{block}.{n_pass}"], run=blocks[f"{block}.{n_pass}"])
        for block in range(L)
        for n_pass in range(MAX_PASSES)
    ]
    states, residual = run_schedule(schedule, segments, common.positions, states, lambda loop: LoopBlocks(loop, blocks))
    return states + residual, schedule, blocks


def alone(route: Route, place: int, lengths: list[int]) -> torch.Tensor:
    """A sequence's states behind its last block, in a step that holds it alone: its path, one pass after the other."""
    context = SimpleNamespace(attn_metadata={}, slot_mapping={})
    whole, start, length = step_of(lengths), sum(lengths[:place]), lengths[place]
    ends, here = torch.tensor([0, length], dtype=torch.int32), slice(start, start + length)
    one = slice(place, place + 1)
    own = Common(ends, ends, whole.seq_lens[one], 1, length, length, whole.block_table_tensor[one], whole.slot_mapping[here])
    states = torch.randn(sum(lengths), D, generator=torch.Generator().manual_seed(9))[here]
    used = [0] * L
    for span in route.spans:
        before = states
        for block in span.blocks:
            module = Block(block, used[block], context)
            used[block] += 1
            context.attn_metadata[module.name], context.slot_mapping[module.name] = own, own.slot_mapping
            states, residual = module(whole.positions[here], states, torch.zeros_like(states))
            states = states + residual
        states = before + span.strength * (states - before) if span.strength != 1 else states
    return states


LOOPED = paths(L, 6).map(lambda drawn: str(Route.along(*drawn)))
PATHS = st.text("012", min_size=L, max_size=L) | LOOPED | st.sampled_from(["0-2,1-3", "0-2,1-3,2-3"])


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PATHS, st.integers(1, 4)), min_size=1, max_size=6))
def test_a_step_of_mixed_routes_is_each_sequence_alone(sequences: list[tuple[str, int]]):
    """Whatever the routes: digits, loops and strengths, loops that begin alike, the same span behind other blocks."""
    routes, lengths = [route for route, _ in sequences], [length for _, length in sequences]
    together, schedule, _ = run(routes, lengths)
    start = 0
    for place, (text, length) in enumerate(sequences):
        route = Route.parse(text, L)
        assert torch.allclose(together[start : start + length], alone(route, place, lengths), atol=1e-5), text
        assert schedule.route_of(place) == route
        start += length


def test_sequences_whose_loops_begin_alike_run_together():
    """The same span is one call, its second time another; a span that lies behind two blocks is two."""
    _, schedule, blocks = run(["0-2,1-2,1-3", "0-2,1-3", "0-2,1-3", "1111"], [1, 2, 1, 3])
    assert [blocks[f"{block}.{n_pass}"].calls for block in range(L) for n_pass in range(3)] == [1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert len(schedule.sets) == 2
    _, schedule, blocks = run(["0-2,1-2,3", "0-2,1-2,3"], [1, 2])
    assert not schedule.sets, "sequences that agree are not gathered"
    _, _, blocks = run(["0-2,1-2,3", "0-3,1-2/4"], [1, 2])
    assert blocks["1.1"].calls == blocks["2.1"].calls == 2


def test_which_segments_a_step_keeps_to():
    attention = attention_of(step_of([1, 1]))
    schedule, most = schedule_of(["1001", "1112"], attention), np.array([1, 1, 1, 2])
    assert schedule.keeps_to(np.array([0, 1, 3]), most)
    assert schedule.keeps_to(np.arange(L), most)
    assert not schedule.keeps_to(np.array([0, 2, 3]), most)
    assert not schedule.keeps_to(np.array([0, 1]), most)
    assert not schedule.keeps_to(np.array([0, 1, 3]), np.array([1, 1, 1, 1])), "no segment holds the second pass of the last block"
    schedule = schedule_of(["0-2,1-3", "1111"], attention)
    known = set(loops_of([Route.parse("0-2,1-3")]))
    most = np.array([1] * L)
    assert not schedule.is_base
    assert schedule.keeps_to(np.array([0, 3]), most, known)
    assert not schedule.keeps_to(np.array([0]), most, known), "the loop lies inside a segment"
    assert not schedule.keeps_to(np.array([0, 3]), most, ()), "no segment holds the loop"
    assert not schedule_of(["0-2,(1-2)*0.5,3", "1111"], attention).keeps_to(np.array([0, 3]), most, known)
    assert not schedule_of(["0-2,1-3,1-3", "1111"], attention).keeps_to(np.array([0, 3]), most, known)
    assert cuts(["1111", "0-2,1-3"]) == [(0, 3), (3, 4)]
    assert cuts(["1111", "1211", "0-3,(1-2)*0.5/4"]) == [(0, 1), (1, 2), (2, 4)]
    assert most_passes(["1111", "0-2,1-3", "0,0,0-3"]) == [3, 1, 1, 1]


def test_sequences_that_agree_are_not_gathered():
    _, schedule, blocks = run(["1021", "1021", "1021"], [2, 1, 3])
    assert len(schedule.sets) == 0
    assert [blocks[name].calls for name in ("0.0", "1.0", "2.0", "2.1", "3.0", "3.1")] == [1, 0, 1, 1, 1, 0]
    assert not schedule.is_base
    assert run(["1111", "1111"], [1, 1])[1].is_base
    # Four nested routes of long runs: three subsets of the sequences, however many blocks they skip.
    _, schedule, blocks = run(["1111", "1101", "1001", "0001"], [1, 1, 1, 1])
    assert len(schedule.sets) == 3
    assert sum(block.calls for block in blocks.values()) == 4


class _Counting(Policy):
    """Skips block 1 and repeats block 2 where the prompt is long, and remembers what it was shown."""

    name = "counting"
    n_layers = L

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def start(self, prompt_mask_BT: torch.Tensor) -> ByFunction:
        return ByFunction(self.actions, prompt_mask_BT)

    def actions(self, block: int, x_BTD: torch.Tensor, prompt_mask_BT: torch.Tensor) -> torch.Tensor:
        self.shown.append(x_BTD[0].clone())
        long = x_BTD.shape[1] > 2
        return torch.tensor([{1: 0, 2: 2}.get(block, 1) if long else 1])

    def save(self, folder: Any) -> list[str]:
        raise NotImplementedError

    load = save  # type: ignore[assignment]


def test_undecided_sequences_are_asked_before_each_block():
    """Beside a sequence whose route is known: decisions hold from that block on, and each block is asked with the states entering it."""
    long, short = _Counting(), _Counting()
    together, schedule, _ = run(["1111", "1200", "1111"], [4, 3, 2], {0: long, 2: short})
    assert [str(Route(actions)) for actions in schedule.actions_SL.tolist()] == ["1021", "1200", "1111"]
    known, _, _ = run(["1021", "1200", "1111"], [4, 3, 2])
    assert torch.allclose(together, known)
    alone, _, _ = run(["1000", "1200", "1111"], [4, 3, 2])
    assert torch.allclose(long.shown[1], alone[:4]), "the states that entered block 1 are those behind block 0"
    assert torch.allclose(long.shown[2], long.shown[1]), "a skipped block leaves the states as they were"
    assert len(long.shown) == len(short.shown) == L


def test_a_prompt_that_a_policy_cannot_read_harms_no_other():
    class Failing(_Counting):
        def actions(self, block: int, x_BTD: torch.Tensor, prompt_mask_BT: torch.Tensor) -> torch.Tensor:
            if block == 2:
                raise InputError("states are\nnot finite")
            return super().actions(block, x_BTD, prompt_mask_BT)

    together, schedule, _ = run(["1111", "1200"], [4, 3], {0: Failing()})
    assert schedule.undecided[0].failure == "states are not finite"
    assert [str(Route(actions)) for actions in schedule.actions_SL.tolist()] == ["1011", "1200"]
    assert torch.allclose(together[4:], run(["1011", "1200"], [4, 3])[0][4:])


def test_prompts_of_one_policy_are_read_together_as_each_alone():
    """Padded, beside one whose states are not finite: it fails alone, and its blocks are executed from there on."""
    routers, lengths = Routers(RouterConfig(L, D, 8, 2), seed=3), [4, 9, 2]
    states = torch.randn(sum(lengths), D, generator=torch.Generator().manual_seed(9))

    def decided(places: Sequence[int], states: torch.Tensor) -> tuple[list[str], list[str]]:
        waiting = [Undecided("", routers, [place]) for place in places]
        schedule = schedule_of(["1111"] * 3, attention_of(step_of(lengths)), waiting)
        for block in range(L):
            schedule.decide(block, states * (block + 1) - block)
        return [str(schedule.route_of(place)) for place in range(3)], [prompt.failure for prompt in waiting]

    together, _ = decided(range(3), states)
    assert len(set(together)) > 1, "a test of different routes"
    assert together == [decided([place], states)[0][place] for place in range(3)]
    states[5] = torch.nan
    broken, failures = decided(range(3), states)
    assert broken == [together[0], "1111", together[2]]
    assert ["not finite" in failure for failure in failures] == [False, True, False]


class _Picky(_Counting):
    """Refuses prompts of five tokens; skips block 2, if it is asked for every block in order."""

    def start(self, prompt_mask_BT: torch.Tensor) -> ByFunction:
        if (prompt_mask_BT.sum(1) == 5).any():
            raise InputError("five are too many")
        self.shown.append(prompt_mask_BT)
        blocks = iter(range(L))
        return ByFunction(lambda block, x_BTD, _: torch.full((len(x_BTD),), int(next(blocks) == block != 2)), prompt_mask_BT)


def test_prompts_are_read_together_where_they_are_alike_and_a_refusal_is_their_own():
    policy, lengths = _Picky(), [4, 5, 3, 9, 2]
    waiting = [Undecided("", policy, [place]) for place in range(5)]
    schedule = schedule_of(["1111"] * 5, attention_of(step_of(lengths)), waiting)
    states = torch.zeros(sum(lengths), D)
    for block in range(L):
        states[10] = torch.nan if block else 0  # of the third prompt
        schedule.decide(block, states)
    assert sorted(tuple(mask_BT.shape) for mask_BT in policy.shown) == [(1, 4), (1, 9), (2, 3)], "no row is mostly padding"
    assert [str(schedule.route_of(place)) for place in range(5)] == ["1101", "1111", "1111", "1101", "1101"]
    assert [prompt.failure[:10] for prompt in waiting] == ["", "five are t", "the states", "", ""]
    counting = _Counting()  # one action, whatever is asked
    waiting = [Undecided("", counting, [place]) for place in range(2)]
    schedule_of(["1111"] * 2, attention_of(step_of([3, 3])), waiting).decide(0, torch.zeros(6, D))
    assert [prompt.failure for prompt in waiting] == ["", ""], "read alone, where together it cannot"


class _Looping(_Counting):
    """Takes one route for every prompt, block by block."""

    def __init__(self, route: str):
        super().__init__()
        self.visits = Route.parse(route, L).visits

    def actions(self, block: int, x_BTD: torch.Tensor, prompt_mask_BT: torch.Tensor) -> list[Visit]:
        return [self.visits[block]]


def test_loops_that_a_policy_decides():
    """As if they had been known."""
    routes = ["0-2,(1-2)*0.5,0-3", "0-2,1-2,1-3"]
    together, schedule, _ = run(["1111", "0-2,1-3", "1111"], [4, 3, 2], {0: _Looping(routes[0]), 2: _Looping(routes[1])})
    assert [str(schedule.route_of(place)) for place in range(3)] == [routes[0], "0-2,1-3", routes[1]]
    assert torch.allclose(together, run([routes[0], "0-2,1-3", routes[1]], [4, 3, 2])[0])


@pytest.mark.parametrize(("policy", "route"), [(_Counting(), "1021"), (_Looping("0-2,1-2,1-3"), "0-2,1-2,1-3")])
def test_samples_of_one_prompt_are_decided_once(policy: _Counting, route: str):
    schedule = schedule_of(["1111"] * 2, attention_of(step_of([3, 3])), [Undecided("t", policy, [0, 1])])
    for block in range(L):
        schedule.decide(block, torch.zeros(6, D))
    assert [str(schedule.route_of(place)) for place in range(2)] == [route] * 2
    assert len(policy.shown) in (0, L)


def test_a_pass_without_a_cache_is_refused_to_a_policy():
    waiting = Undecided("t", _Looping("0-2,1-2,1-3"), [0])
    schedule = Schedule(np.ones((1, L), dtype=np.int8), attention_of(step_of([3])), [waiting], n_caches=(1, 2, 2, 1))
    for block in range(L):
        schedule.decide(block, torch.zeros(3, D))
    assert waiting.failure == "the policy decided pass 3 of block 1, the server keeps caches for 2"
    assert str(schedule.route_of(0)) == "1111"
