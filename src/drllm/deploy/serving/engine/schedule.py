"""One engine step along several routes: which sequences run which pass of which block.

Sequences that run the same pass are gathered, run as one call, and written back only where the next pass runs other sequences, so routes
that skip the same blocks cost no copies between them.

Shapes: N tokens of the step, S sequences, D hidden size, L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.deploy.serving.engine.gathering import Gathered, Places
from drllm.deploy.serving.engine.vllm_private import StepAttention


@dataclass(eq=False)
class Undecided:
    """Sequences of one prompt, whose route a policy decides in this very step, which holds the whole prompt."""

    ticket: str
    policy: Any  # a Policy
    sequences: list[int] = field(default_factory=list)
    decider: Any = None  # of this prefill, from the first block on
    failure: str = ""  # why it could not; blocks from there on are executed


class Schedule:
    """The sequences of one step and their routes.

    Args:
        actions_SL: passes of each sequence at each block; those of undecided sequences are filled as blocks are reached.
        attention: what vLLM knows of the step's tokens.
        undecided: sequences that a policy decides.
        places: what earlier steps found out.
    """

    def __init__(self, actions_SL: np.ndarray, attention: StepAttention, undecided: Sequence[Undecided] = (), places: Places | None = None):
        self.actions_SL = actions_SL
        self.attention = attention
        self.undecided = list(undecided)
        self.is_base = not self.undecided and bool((actions_SL == 1).all())
        self.in_segments = False  # whether it ran in compiled segments
        self.sets: dict[bytes, Gathered] = {}  # proper subsets of the sequences that have run
        self._places = Places() if places is None else places
        self._count()

    def keeps_to(self, firsts: np.ndarray, most_L: np.ndarray) -> bool:
        """Whether segments that begin with these blocks can run every sequence.

        A sequence must do the same from each of them up to the next, the last segment ending with the last block, and make no more passes
        of a block than they hold, `most_L`.
        """
        expanded = np.repeat(self.actions_SL[:, firsts], np.diff([*firsts, self.actions_SL.shape[1]]), axis=1)
        return bool((expanded == self.actions_SL).all() and (self.actions_SL <= most_L).all())

    def running(self, block: int, n_pass: int) -> Gathered | None:
        """The sequences that make a block's first (0) or second (1) pass; None where none does."""
        n_running = self._n_running[n_pass][block]
        if n_running == len(self.actions_SL):
            return self.attention.whole
        if not n_running:
            return None
        chosen_S = self.actions_SL[:, block] > n_pass
        key = chosen_S.tobytes()
        if key not in self.sets:
            attention = self.attention
            self.sets[key] = attention.of(self._places.find(chosen_S, attention.starts, attention.whole.slot_mapping.device))
        return self.sets[key]

    def decide(self, block: int, end: int, states_ND: Tensor) -> None:
        """Ask each undecided sequence's policy for its passes of a block, from the states entering it, as at a prefill in transformers.

        They hold up to block `end`: one more, or the end of a segment in which all of the policy's routes do the same.
        """
        starts = self.attention.starts
        for prompt in self.undecided:
            if prompt.failure:
                continue
            first = prompt.sequences[0]
            x_1TD = states_ND[starts[first] : starts[first + 1]][None]
            try:
                if block == 0:
                    prompt.decider = prompt.policy.start(torch.ones(x_1TD.shape[:2], dtype=torch.bool))
                self.actions_SL[prompt.sequences, block:end] = int(prompt.decider.decide(block, x_1TD)[0])
            except InputError as error:  # one prompt's: the others of the step must not suffer
                prompt.failure = " ".join(str(error).split())
        self._count()

    def _count(self) -> None:
        self._n_running = [(self.actions_SL > n_pass).sum(0).tolist() for n_pass in (0, 1)]


def run_schedule(schedule: Schedule, segments: Sequence[Any], positions_N: Tensor, states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Run a step, each segment on the sequences that need it; (states, residual), both (N, D), whose sum is what leaves the last block.

    Args:
        segments: `drllm.deploy.serving.engine.segments.Segment`, in the order they run. Where a policy has yet to decide, single blocks,
            or segments of all the routes that it chooses from.
        states_ND: the embedded tokens.
    """
    states, residual = states_ND, torch.zeros_like(states_ND)
    whole = schedule.attention.whole
    gathered = whole
    part: tuple[Tensor, ...] = (positions_N, states, residual)

    def take(wanted: Gathered) -> None:
        """Write back the sequences that ran last, and gather others."""
        nonlocal gathered, part, states, residual
        if gathered.tokens is None:
            _, states, residual = part
        else:
            states.index_copy_(0, gathered.tokens, part[1])
            residual.index_copy_(0, gathered.tokens, part[2])
        everything = (positions_N, states, residual)
        gathered, part = wanted, everything if wanted.tokens is None else tuple(value[wanted.tokens] for value in everything)

    for segment in segments:
        if schedule.undecided and segment.n_pass == 0:
            take(whole)
            schedule.decide(segment.block, segment.end, states + residual)
        wanted = schedule.running(segment.block, segment.n_pass)
        if wanted is None:
            continue
        if wanted is not gathered:
            take(wanted)
        schedule.attention.show(segment.names, wanted)
        part = (part[0], *segment.run(*part))
    take(whole)
    return states, residual
