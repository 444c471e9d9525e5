"""One engine step along several routes: which sequences run which pass of which block.

Sequences that run the same pass are gathered, run as one call, and written back only where the next pass runs other sequences, so routes
that skip the same blocks cost no copies between them. Spans that routes run again stand behind a block's own passes: sequences whose loops
there begin alike run that beginning together, as in transformers (`drllm.model.sub_batches`).

A step of a path is (block, pass): the n-th time that a block occurs is its n-th pass and has keys and values of its own, those of the
block's n-th module. A sequence is a request of the step; vLLM lays the tokens of all sequences end to end.

Shapes: N tokens of the step, S sequences, D hidden size, L blocks.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Route, Span
from drllm.core.span import Visit, fewest_spans, in_place, n_in_place
from drllm.deploy.serving.engine.vllm_private import Gathered, Place, StepAttention
from drllm.model.sub_batches import check_decision, run_together
from drllm.policies.policy import NOT_FINITE

MOST_KEPT = 512  # places remembered; then all are forgotten


class Places:
    """Remembers places from step to step: while the same requests decode, they stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Place] = {}

    def find(self, chosen_S: np.ndarray, starts: np.ndarray, device: torch.device) -> Place:
        """Of the sequences that are chosen; `starts` (S + 1,) is where each sequence's tokens begin."""
        key = (chosen_S.tobytes(), starts.tobytes())
        if key not in self._known:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            sequences = np.flatnonzero(chosen_S)
            lengths = starts[sequences + 1] - starts[sequences]
            ends = np.append(0, np.cumsum(lengths)).astype(np.int32)
            # Gathered token j is token j - (where its sequence begins there) + (where it begins here).
            tokens = torch.from_numpy(np.repeat(starts[sequences] - ends[:-1], lengths) + np.arange(ends[-1])).long()
            on_cpu, ends_on_cpu = torch.from_numpy(sequences), torch.from_numpy(ends)
            on_device = on_cpu.to(device), tokens.to(device), ends_on_cpu, ends_on_cpu.to(device)
            self._known[key] = Place(on_cpu, *on_device, int(lengths.max()))
        return self._known[key]


class Loop(NamedTuple):
    """A span that runs behind a block's own passes."""

    span: Span
    passes: tuple[int, ...]  # for each of its blocks, which pass this is, counted from 0

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.span.blocks, self.passes, strict=True))

    @property
    def name(self) -> str:
        return f"{self.span}-{'.'.join(map(str, self.passes))}"


Loops = tuple[tuple[int, Loop], ...]  # (block, loop) in the order they run: behind which block, and what


class Laid(NamedTuple):
    """A route laid out."""

    actions: np.ndarray  # passes (L,) of each block in place, int8, when the forward comes to it
    loops: Loops


def number(span: Span, used: list[int]) -> Loop:
    """The span as the next pass of each of its blocks; `used` are the passes that each block has made, which are counted on."""
    passes = tuple(used[block] for block in span.blocks)
    for block in span.blocks:
        used[block] += 1
    return Loop(span, passes)


@functools.lru_cache(maxsize=4096)
def lay_out(route: Route) -> Laid:
    """The route as an engine runs it; the array is shared, so it must not be written to."""
    in_place = list(map(int, route.in_place_actions))
    used = list(in_place)  # a loop never comes before its blocks' own passes
    return Laid(np.array(in_place, dtype=np.int8), tuple((block, number(span, used)) for block, span in route.loops))


def loops_of(routes: Sequence[Route]) -> tuple[Loop, ...]:
    return tuple(dict.fromkeys(loop for route in routes for _, loop in lay_out(route).loops))


@dataclass(eq=False)
class Undecided:
    """Sequences of one prompt, whose route a policy decides in this very step, which holds the whole prompt."""

    name: str  # of the prompt
    policy: Any  # a Policy
    sequences: list[int] = field(default_factory=list)
    failure: str = ""  # why it could not; blocks from there on are executed


class _Asked:
    """Undecided prompts of like lengths that one policy reads together, padded, as in transformers; `starts` as for `Places.find`."""

    def __init__(self, prompts: list[Undecided], starts: np.ndarray, device: torch.device):
        self.prompts = prompts
        sequences = np.array([prompt.sequences[0] for prompt in prompts])
        first_B1, end_B1 = starts[sequences, None], starts[sequences + 1, None]
        at_BT = first_B1 + np.arange((end_B1 - first_B1).max())
        self.within_BT = torch.from_numpy(at_BT < end_B1)
        self.tokens_BT = torch.from_numpy(np.where(at_BT < end_B1, at_BT, first_B1)).to(device)

    def decide(self, block: int, states_ND: Tensor) -> Sequence[Any]:
        """An action or a visit of each prompt; one whose states are not finite fails alone, and the policy reads zeros for it."""
        x_BTD = states_ND[self.tokens_BT]
        finite_B = x_BTD.sum((1, 2), dtype=torch.float32).isfinite().cpu().numpy()
        for row in np.flatnonzero(~finite_B):
            self.prompts[row].failure = self.prompts[row].failure or NOT_FINITE.format(block)
            x_BTD[row] = 0
        if block == 0:
            self._decider = self.prompts[0].policy.start(self.within_BT)
        decided = self._decider.decide(block, x_BTD)
        if isinstance(decided, Tensor) and decided.shape == finite_B.shape and not decided.is_floating_point():
            return decided.tolist()
        return check_decision(decided, len(self.prompts), block)


class Schedule:
    """The sequences of one step and their routes.

    Args:
        actions_SL: passes of each sequence at each block in place; those of undecided sequences are filled as blocks are reached.
        attention: what vLLM knows of the step's tokens.
        undecided: sequences that a policy decides.
        places: what earlier steps found out.
        loops: of sequences that have some, by their numbers.
        n_caches: for each block, how many passes have keys and values: a policy may decide no more; None for as many as there may be.
    """

    def __init__(
        self,
        actions_SL: np.ndarray,
        attention: StepAttention,
        undecided: Sequence[Undecided] = (),
        places: Places | None = None,
        loops: Mapping[int, Loops] | None = None,
        n_caches: Sequence[int] | None = None,
    ):
        self.actions_SL = actions_SL
        self.attention = attention
        self.undecided = list(undecided)
        self.loops = dict(loops or {})
        self.is_base = not self.undecided and not self.loops and bool((actions_SL == 1).all())
        self.in_segments = False  # whether it ran in compiled segments
        self.sets: dict[bytes, Gathered] = {}  # proper subsets of the sequences that have run
        self._places = Places() if places is None else places
        self._n_caches = n_caches
        self._behind: dict[int, dict[int, list[Loop]]] = {}  # loops by block and sequence
        for sequence, of_sequence in self.loops.items():
            for block, loop in of_sequence:
                self._behind.setdefault(block, {}).setdefault(sequence, []).append(loop)
        self._count()

    def keeps_to(self, firsts: np.ndarray, most_L: np.ndarray, known: Container[Loop] = ()) -> bool:
        """Whether segments that begin with these blocks, and those of the known loops, can run every sequence.

        A sequence must do the same from each of them up to the next, the last segment ending with the last block, make no more passes of a
        block than they hold, `most_L`, and have loops only behind a segment's last block.
        """
        expanded = np.repeat(self.actions_SL[:, firsts], np.diff([*firsts, self.actions_SL.shape[1]]), axis=1)
        fits = bool((expanded == self.actions_SL).all() and (self.actions_SL <= most_L).all())
        if not fits or not self.loops:
            return fits
        ends = {*(firsts - 1).tolist(), self.actions_SL.shape[1] - 1}
        return all(block in ends and loop in known for of_sequence in self.loops.values() for block, loop in of_sequence)

    def running(self, block: int, n_pass: int) -> Gathered | None:
        """The sequences that make a block's first (0) or a later pass in place; None where none does."""
        n_running = self._n_running[n_pass][block] if n_pass < len(self._n_running) else 0
        if n_running == len(self.actions_SL):
            return self.attention.whole
        return self._gathered(self.actions_SL[:, block] > n_pass) if n_running else None

    def loops_behind(self, block: int) -> Iterator[tuple[Loop, Gathered]]:
        """What runs behind a block's own passes, in order, and on which sequences."""
        if waiting := self._behind.get(block):
            for loop, members in run_together(waiting):
                chosen_S = np.zeros(len(self.actions_SL), dtype=bool)
                chosen_S[members] = True
                yield loop, self._gathered(chosen_S)

    def _gathered(self, chosen_S: np.ndarray) -> Gathered:
        if chosen_S.all():
            return self.attention.whole
        key, device = chosen_S.tobytes(), self.attention.whole.slot_mapping.device
        if key not in self.sets:
            self.sets[key] = self.attention.of(self._places.find(chosen_S, self.attention.starts, device))
        return self.sets[key]

    def route_of(self, sequence: int) -> Route:
        """As far as it is known."""
        visits = [in_place(block, int(action)) for block, action in enumerate(self.actions_SL[sequence])]
        for block, loop in self.loops.get(sequence, ()):
            visits[block] = (*visits[block], loop.span)
        return Route.of_visits(visits)

    def decide(self, block: int, states_ND: Tensor) -> None:
        """Ask each undecided sequence's policy for its passes of a block, from the states entering it, as at a prefill in transformers."""
        if block == 0:  # none is read with one twice as long: at most half of what is read is padding
            alike, lengths = defaultdict[Any, list[Undecided]](list), np.diff(self.attention.starts)
            for prompt in self.undecided:
                alike[id(prompt.policy), int(lengths[prompt.sequences[0]]).bit_length()].append(prompt)
            self._asked = [_Asked(prompts, self.attention.starts, states_ND.device) for prompts in alike.values()]
        asking, self._asked = self._asked, []
        for asked in asking:
            try:
                decided = asked.decide(block, states_ND)
            except InputError as error:
                if block == 0 and len(asked.prompts) > 1:  # each alone: the others must not suffer
                    asking += [_Asked([prompt], self.attention.starts, states_ND.device) for prompt in asked.prompts]
                else:
                    for prompt in asked.prompts:
                        prompt.failure = prompt.failure or " ".join(str(error).split())
                continue
            self._asked.append(asked)
            for prompt, one in zip(asked.prompts, decided, strict=True):
                if prompt.failure:
                    continue
                if isinstance(one, int):
                    self.actions_SL[prompt.sequences, block] = one
                else:
                    prompt.failure = self._take(prompt.sequences, block, one)
        self._count()

    def _take(self, sequences: Sequence[int], block: int, visit: Visit) -> str:
        """Why these sequences cannot; nothing if they do."""
        n_own = n_in_place(block, visit)
        known = self.loops.get(sequences[0], ())
        used = [int(action) for action in self.actions_SL[sequences[0]]]
        used[block:] = [n_own, *[0] * (len(used) - block - 1)]
        for _, loop in known:
            number(loop.span, used)
        loops = [number(span, used) for span in fewest_spans(visit[n_own:])]
        for at, n_passes in enumerate(used):
            if self._n_caches is not None and n_passes > self._n_caches[at]:
                return f"the policy decided pass {n_passes} of block {at}, the server keeps caches for {self._n_caches[at]}"
        self.actions_SL[sequences, block] = n_own
        if loops:
            self.loops |= dict.fromkeys(sequences, (*known, *((block, loop) for loop in loops)))
            self._behind.setdefault(block, {}).update(dict.fromkeys(sequences, loops))
        return ""

    def _count(self) -> None:
        most = int(self.actions_SL.max(initial=0))
        self._n_running = [(self.actions_SL > n_pass).sum(0).tolist() for n_pass in range(most)]


def run_schedule(
    schedule: Schedule, segments: Sequence[Any], positions_N: Tensor, states_ND: Tensor, segment_of: Callable[[Loop], Any]
) -> tuple[Tensor, Tensor]:
    """Run a step, each `Segment` on the sequences that need it; (states, residual), both (N, D), whose sum is what leaves the last block.

    `segments` come in the order they run, single blocks where a policy has yet to decide; `segment_of` is that of a loop.
    """
    states, residual = states_ND, torch.zeros_like(states_ND)
    whole = schedule.attention.whole
    gathered, n_passed = whole, 0  # blocks whose loops have run
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

    def run(segment: Any, wanted: Gathered) -> None:
        nonlocal part
        if wanted is not gathered:
            take(wanted)
        schedule.attention.show(segment.names, wanted)
        part = (part[0], *segment.run(*part))

    def run_loops(before: int) -> None:
        nonlocal n_passed
        for block in range(n_passed, before):
            for loop, wanted in schedule.loops_behind(block):
                run(segment_of(loop), wanted)
        n_passed = before

    for segment in segments:
        if segment.n_pass == 0:
            run_loops(segment.block)
            if schedule.undecided:
                take(whole)
                schedule.decide(segment.block, states + residual)
        wanted = schedule.running(segment.block, segment.n_pass)
        if wanted is not None:
            run(segment, wanted)
    run_loops(schedule.actions_SL.shape[1])
    take(whole)
    return states, residual
