"""One engine step of mixed routes, without vLLM: each sequence as if it were alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deciding import Asked
from drllm import Route
from drllm.core.errors import InputError
from drllm.deploy.serving.engine.schedule import Schedule, Undecided, run_schedule
from drllm.deploy.serving.engine.vllm_private import StepAttention
from drllm.policies.policy import Policy

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
        mixed = torch.cat(
            [residual[a:b].cumsum(0) / (1 + common.seq_lens[place]) for place, (a, b) in enumerate(itertools.pairwise(starts))]
        )
        return torch.tanh(mixed @ self.weight), residual


def run(
    routes: list[str], lengths: list[int], undecided: dict[int, Policy] | None = None
) -> tuple[torch.Tensor, Schedule, dict[str, Block]]:
    """The states behind the last block."""
    common = step_of(lengths)
    context = SimpleNamespace(attn_metadata={}, slot_mapping={})
    blocks = {f"{block}.{n_pass}": Block(block, n_pass, context) for block in range(L) for n_pass in (0, 1)}
    actions = np.array([[int(action) for action in route] for route in routes], dtype=np.int8)
    waiting = [Undecided(str(place), policy, [place]) for place, policy in (undecided or {}).items()]
    schedule = Schedule(actions, attention_of(common, context), waiting)
    states = torch.randn(sum(lengths), D, generator=torch.Generator().manual_seed(9))
    segments = [
        SimpleNamespace(block=block, end=block + 1, n_pass=n_pass, names=[f"{block}.{n_pass}"], run=blocks[f"{block}.{n_pass}"])
        for block in range(L)
        for n_pass in (0, 1)
    ]
    states, residual = run_schedule(schedule, segments, common.positions, states)
    return states + residual, schedule, blocks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("012", min_size=L, max_size=L), st.integers(1, 5)), min_size=1, max_size=6))
def test_a_step_of_mixed_routes_is_each_sequence_alone(sequences: list[tuple[str, int]]):
    """Whatever the routes, each sequence's states are those of a step that holds it alone."""
    routes, lengths = [route for route, _ in sequences], [length for _, length in sequences]
    together, _, _ = run(routes, lengths)
    start = 0
    for place, (route, length) in enumerate(sequences):
        context = SimpleNamespace(attn_metadata={}, slot_mapping={})
        whole = step_of(lengths)
        ends, here = torch.tensor([0, length], dtype=torch.int32), slice(start, start + length)
        own = Common(
            ends,
            ends,
            whole.seq_lens[place : place + 1],
            1,
            length,
            length,
            whole.block_table_tensor[place : place + 1],
            whole.slot_mapping[here],
        )
        states = torch.randn(sum(lengths), D, generator=torch.Generator().manual_seed(9))[start : start + length]
        residual = torch.zeros_like(states)
        for block, action in enumerate(route):
            for n_pass in range(int(action)):
                module = Block(block, n_pass, context)
                context.attn_metadata[module.name], context.slot_mapping[module.name] = own, own.slot_mapping
                states, residual = module(whole.positions[start : start + length], states, residual)
        assert torch.allclose(together[start : start + length], states + residual, atol=1e-6)
        start += length


def test_which_segments_a_step_keeps_to():
    common = step_of([1, 1])
    schedule = Schedule(np.array([[1, 0, 0, 1], [1, 1, 1, 2]], dtype=np.int8), attention_of(common))
    most = np.array([1, 1, 1, 2])
    assert schedule.keeps_to(np.array([0, 1, 3]), most)
    assert schedule.keeps_to(np.arange(L), most)
    assert not schedule.keeps_to(np.array([0, 2, 3]), most)
    assert not schedule.keeps_to(np.array([0, 1]), most)
    assert not schedule.keeps_to(np.array([0, 1, 3]), np.array([1, 1, 1, 1])), "no segment holds the second pass of the last block"


def test_sequences_that_agree_are_not_gathered():
    _, schedule, blocks = run(["1021", "1021", "1021"], [2, 1, 3])
    assert len(schedule.sets) == 0
    assert [blocks[name].calls for name in ("0.0", "1.0", "2.0", "2.1", "3.0", "3.1")] == [1, 0, 1, 1, 1, 0]
    assert not schedule.is_base
    assert run(["1111", "1111"], [1, 1])[1].is_base


def test_nested_routes_share_their_sets():
    """Four nested routes of long runs: three subsets of the sequences, however many blocks they skip."""
    _, schedule, blocks = run(["1111", "1101", "1001", "0001"], [1, 1, 1, 1])
    assert len(schedule.sets) == 3
    assert sum(block.calls for block in blocks.values()) == 4


class _Counting(Policy):
    """Skips block 1 and repeats block 2 where the prompt is long, and remembers what it was shown."""

    name = "counting"
    n_layers = L

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def start(self, prompt_mask_BT: torch.Tensor) -> Asked:
        return Asked(self.actions, prompt_mask_BT)

    def actions(self, block: int, x_BTD: torch.Tensor, prompt_mask_BT: torch.Tensor) -> torch.Tensor:
        self.shown.append(x_BTD[0].clone())
        long = x_BTD.shape[1] > 2
        return torch.tensor([{1: 0, 2: 2}.get(block, 1) if long else 1])

    def save(self, folder: Path) -> list[str]:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Policy:
        raise NotImplementedError


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


def test_what_a_policy_decides_holds_for_a_whole_segment():
    policy = _Counting()
    common = step_of([3, 2])
    schedule = Schedule(np.ones((2, L), dtype=np.int8), attention_of(common), [Undecided("t", policy, [0])])
    schedule.decide(0, 1, torch.zeros(5, D))
    schedule.decide(1, L, torch.zeros(5, D))
    assert [str(Route(actions)) for actions in schedule.actions_SL.tolist()] == ["1" + "0" * (L - 1), "1" * L]
    assert schedule.running(L - 1, 0) is not schedule.attention.whole


def test_samples_of_one_prompt_are_decided_once():
    policy = _Counting()
    common = step_of([3, 3])
    schedule = Schedule(np.ones((2, L), dtype=np.int8), attention_of(common), [Undecided("t", policy, [0, 1])])
    for block in range(L):
        schedule.decide(block, block + 1, torch.zeros(6, D))
    assert [str(Route(actions)) for actions in schedule.actions_SL.tolist()] == ["1021", "1021"]
    assert len(policy.shown) == L
