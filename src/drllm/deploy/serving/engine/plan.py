"""One engine step along several routes: which rows run which pass of which block, and the attention metadata of each such set of rows.

A row is a request of the step; vLLM lays the tokens of all rows end to end. Rows that run the same pass are gathered, run as one call, and
written back only where the next pass runs other rows, so routes that skip the same blocks cost no copies between them.

Shapes: N tokens of the step, R rows, D hidden size, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drllm.core.errors import InputError


@dataclass(eq=False)
class Rows:
    """Some rows of a step: their tokens' places (None: all of them), and what their attention needs."""

    tokens: Tensor | None
    metadata: Any
    slot_mapping: Tensor


@dataclass(eq=False)
class Undecided:
    """Rows of one prompt, whose route a policy is deciding in this very step, which holds the whole prompt."""

    ticket: str
    policy: Any  # a Policy
    rows: list[int] = field(default_factory=list)
    failure: str = ""  # why it could not; blocks from there on are executed


class StepPlan:
    """The rows of one step and their routes.

    Args:
        actions_RL: passes of each row at each block; those of undecided rows are filled as blocks are reached.
        common: vLLM's `CommonAttentionMetadata` of all rows.
        build: makes a backend's metadata of it.
        metadata: the backend's of all rows, built already.
        undecided: rows that a policy decides.
        places: what earlier steps found out.
    """

    def __init__(
        self,
        actions_RL: np.ndarray,
        common: Any,
        build: Callable[[Any], Any],
        metadata: Any,
        undecided: Sequence[Undecided] = (),
        places: Places | None = None,
    ):
        self.actions_RL = actions_RL
        self.undecided = list(undecided)
        self.is_base = not self.undecided and bool((actions_RL == 1).all())
        self.stretched = False  # whether it ran in compiled stretches
        self._common, self._build = common, build
        self._starts = common.query_start_loc_cpu.numpy()
        self.everyone = Rows(None, metadata, common.slot_mapping)
        self._sets: dict[bytes, Rows] = {}
        self._places = Places() if places is None else places
        self._count()

    def keeps_to(self, firsts: np.ndarray, most_L: np.ndarray) -> bool:
        """Whether stretches that begin with these blocks can run every row.

        A row must do the same from each of them up to the next, the last stretch ending with the last block, and make no more passes of a
        block than they hold, `most_L`.
        """
        expanded = np.repeat(self.actions_RL[:, firsts], np.diff([*firsts, self.actions_RL.shape[1]]), axis=1)
        return bool((expanded == self.actions_RL).all() and (self.actions_RL <= most_L).all())

    @property
    def n_sets(self) -> int:
        """How many proper subsets of the rows have run."""
        return len(self._sets)

    def rows(self, block: int, n_pass: int) -> Rows | None:
        """Those that make a block's first (0) or second (1) pass; None where nobody does."""
        n_running = self._n_running[n_pass][block]
        if n_running == len(self.actions_RL):
            return self.everyone
        if not n_running:
            return None
        runs = self.actions_RL[:, block] > n_pass
        key = runs.tobytes()
        if key not in self._sets:
            self._sets[key] = self._subset(runs, key)
        return self._sets[key]

    def decide(self, block: int, end: int, states_ND: Tensor) -> None:
        """Ask each undecided row's policy for its passes of a block, from the states entering it, as at a prefill in transformers.

        They hold up to block `end`: one more, or the end of a stretch in which all of the policy's routes do the same.
        """
        for one in self.undecided:
            if one.failure:
                continue
            first = one.rows[0]
            x_1TD = states_ND[self._starts[first] : self._starts[first + 1]][None]
            mask = torch.ones(x_1TD.shape[:2], dtype=torch.bool)
            try:
                if block == 0:
                    one.policy = one.policy.start(mask)
                self.actions_RL[one.rows, block:end] = int(one.policy.decide(block, x_1TD, mask)[0])
            except InputError as error:  # one prompt's: the others of the step must not suffer
                one.failure = " ".join(str(error).split())
        self._count()

    def _count(self) -> None:
        self._n_running = [(self.actions_RL > n_pass).sum(0).tolist() for n_pass in (0, 1)]

    def _subset(self, runs: np.ndarray, key: bytes) -> Rows:
        common, device = self._common, self._common.slot_mapping.device
        place = self._places.find(key, runs, self._starts, device)
        pick = lambda value, where: None if value is None else value[where]  # noqa: E731
        part = common.replace(
            query_start_loc=place.ends_on,
            query_start_loc_cpu=place.ends,
            seq_lens=common.seq_lens[place.rows_on],
            seq_lens_cpu_upper_bound=pick(common.seq_lens_cpu_upper_bound, place.rows),
            num_reqs=len(place.rows),
            num_actual_tokens=len(place.tokens_on),
            max_query_len=place.longest,
            block_table_tensor=common.block_table_tensor[place.rows_on],
            slot_mapping=common.slot_mapping[place.tokens_on],
            positions=pick(common.positions, place.tokens_on),
            is_prefilling=pick(common.is_prefilling, place.rows),
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )
        return Rows(place.tokens_on, self._build(part), part.slot_mapping)


@dataclass(eq=False)
class Place:
    """Where the tokens of some rows lie in a step: indices of rows and tokens, and where each row's tokens end once gathered."""

    rows: Tensor
    rows_on: Tensor  # those named so are on the engine's device
    tokens_on: Tensor
    ends: Tensor
    ends_on: Tensor
    longest: int


class Places:
    """Remembers them from step to step: while the same requests decode, nothing of it changes."""

    MOST = 512  # kept; then all are forgotten

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Place] = {}

    def find(self, key: bytes, runs: np.ndarray, starts: np.ndarray, device: torch.device) -> Place:
        """Of the rows that `runs` (R,) marks, whose bytes are `key`; `starts` (R + 1,) is where each row's tokens begin."""
        whole = (key, starts.tobytes())
        if whole not in self._known:
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[whole] = self._make(np.flatnonzero(runs), starts, device)
        return self._known[whole]

    def _make(self, rows: np.ndarray, starts: np.ndarray, device: torch.device) -> Place:
        lengths = starts[rows + 1] - starts[rows]
        ends = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(lengths, out=ends[1:])
        # Token j of the subset is token j - (where its row begins there) + (where it begins here).
        tokens = torch.from_numpy(np.repeat(starts[rows] - ends[:-1], lengths) + np.arange(ends[-1])).long()
        rows_cpu, ends_cpu = torch.from_numpy(rows), torch.from_numpy(ends)
        return Place(rows_cpu, rows_cpu.to(device), tokens.to(device), ends_cpu, ends_cpu.to(device), int(lengths.max()))


def run_plan(plan: StepPlan, stretches: Sequence[Any], positions_N: Tensor, states_ND: Tensor, context: Any) -> tuple[Tensor, Tensor]:
    """Run a step, each stretch on the rows that need it; (states, residual), both (N, D), whose sum is what leaves the last block.

    Args:
        stretches: `drllm.deploy.serving.engine.segments.Stretch`, in the order they run. Where a policy has yet to decide, single blocks,
            or stretches of all the routes that it chooses from.
        states_ND: the embedded tokens.
        context: vLLM's forward context, in which each attention finds its metadata and slots by name.
    """
    states, residual = states_ND, torch.zeros_like(states_ND)
    gathered: Rows = plan.everyone
    part: tuple[Tensor, Tensor, Tensor] = (positions_N, states, residual)

    def put_back() -> None:
        nonlocal states, residual
        if gathered.tokens is None:
            _, states, residual = part
        else:
            states.index_copy_(0, gathered.tokens, part[1])
            residual.index_copy_(0, gathered.tokens, part[2])

    for stretch in stretches:
        if plan.undecided and stretch.n_pass == 0:
            put_back()
            gathered, part = plan.everyone, (positions_N, states, residual)
            plan.decide(stretch.block, stretch.end, states + residual)
        rows = plan.rows(stretch.block, stretch.n_pass)
        if rows is None:
            continue
        if rows is not gathered:
            put_back()
            gathered = rows
            whole = (positions_N, states, residual)
            part = whole if rows.tokens is None else tuple(value[rows.tokens] for value in whole)  # type: ignore[assignment]
        for name in stretch.names:
            context.attn_metadata[name], context.slot_mapping[name] = rows.metadata, rows.slot_mapping
        part = (part[0], *stretch.run(*part))
    put_back()
    return states, residual
