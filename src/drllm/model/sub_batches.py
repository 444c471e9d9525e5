"""Which sequences of a batch run what, when the base's forward comes to a block."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Action
from drllm.core.span import Span, Visit, block_span, in_place

Step = TypeVar("Step")


class SubBatch(NamedTuple):
    """Some sequences run a span."""

    span: Span  # blocks of the path, and how far the states go
    sets: tuple[int, ...]  # for each block of it, the set of slots that holds its keys and values
    sequences: tuple[int, ...] | None  # indices; None for all
    picked: Tensor | None  # the same as a tensor, on the states' device


SubBatches = tuple[SubBatch, ...] | None  # of one visit, in the order they run; None where every sequence runs the block once


class BatchSplitter:
    """Makes the sub-batches of one batch, visit by visit in order: each (block, pass) of a sub-batch has a slot of its own.

    A base's forward walks its blocks once, in order. At block v a sequence runs the part of its path whose highest block so far is v
    (`Route.visits`): all blocks of it have had their own visit, so their arguments are known.
    """

    def __init__(self, n_layers: int):
        self._n_used = [0] * n_layers  # sets of slots that hold something of a block
        self._picked: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}  # one tensor for equal ones, whatever the block

    def split(self, block: int, visits: Sequence[Visit], device: torch.device) -> SubBatches:
        first = visits[0]
        if all(visit == first for visit in visits):
            if first == in_place(block, 1) and not self._n_used[block]:
                self._n_used[block] = 1
                return None
            return tuple(SubBatch(span, self._take(span), None, None) for span in first)
        groups = run_together(dict(enumerate(visits)))
        return tuple(self.sub_batch(span, self._take(span), tuple(sequences), len(visits), device) for span, sequences in groups)

    def sub_batch(self, span: Span, sets: tuple[int, ...], sequences: tuple[int, ...], n_sequences: int, device: torch.device) -> SubBatch:
        """A sub-batch of some of `n_sequences` sequences, which `sequences` names in order."""
        if len(sequences) == n_sequences:
            return SubBatch(span, sets, None, None)
        if (device, sequences) not in self._picked:
            self._picked[device, sequences] = torch.tensor(sequences, device=device)
        return SubBatch(span, sets, sequences, self._picked[device, sequences])

    def _take(self, span: Span) -> tuple[int, ...]:
        for block in span.blocks:
            self._n_used[block] += 1
        return tuple(self._n_used[block] - 1 for block in span.blocks)

    def forget(self) -> None:
        """Drop what equal sub-batches share; called where the batch changes."""
        self._picked.clear()

    def select(self, block: int, sub_batches: SubBatches, indices: Sequence[int], device: torch.device) -> SubBatches:
        """The sub-batches that are left where only some sequences of the batch go on, in that order."""
        if sub_batches is None:
            return None
        kept = [
            (part, tuple(new for new, old in enumerate(indices) if part.sequences is None or old in part.sequences)) for part in sub_batches
        ]
        left = tuple(self.sub_batch(part.span, part.sets, sequences, len(indices), device) for part, sequences in kept if sequences)
        return None if left == (SubBatch(block_span(block), (0,), None, None),) else left


def run_together(steps: Mapping[int, Sequence[Step]]) -> Iterator[tuple[Step, list[int]]]:
    """(step, sequences that run it together), each sequence's steps in their order; what begins alike runs together, to where it parts."""
    waiting = [(0, list(steps))]  # sequences that ran so many steps together
    while waiting:
        depth, sequences = waiting.pop()
        if depth:
            yield steps[sequences[0]][depth - 1], sequences
        groups: dict[Step, list[int]] = {}
        for sequence in sequences:
            if len(steps[sequence]) > depth:
                groups.setdefault(steps[sequence][depth], []).append(sequence)
        waiting += [(depth + 1, group) for group in reversed(groups.values())]


def every_sub_batch(block: int, sub_batches: SubBatches) -> tuple[SubBatch, ...]:
    """The sub-batches of a visit, spelled out where they are None."""
    return (SubBatch(block_span(block), (0,), None, None),) if sub_batches is None else sub_batches


def check_decision(decided: Tensor | Sequence[Visit], n_sequences: int, block: int) -> list[Visit]:
    """A policy's decision as what each sequence runs; `InputError` for another shape, or anything that cannot run at this block."""
    if isinstance(decided, list) and len(decided) == n_sequences and all(isinstance(visit, tuple) for visit in decided):
        if later := [span for visit in decided for span in visit if span.last > block]:
            raise InputError(f"the policy decided {later[0]} at block {block}, expected spans of blocks that the forward has come to")
        return decided
    if not isinstance(decided, Tensor) or decided.shape != (n_sequences,) or decided.is_floating_point():
        found = f"{decided.dtype} {tuple(decided.shape)}" if isinstance(decided, Tensor) else type(decided).__name__
        raise InputError(f"the policy decided {found} at block {block}, expected one whole action a sequence, ({n_sequences},)")
    actions = [int(action) for action in decided.tolist()]  # a bool is an action, too
    if not set(Action).issuperset(actions):
        raise InputError(f"the policy decided {actions} at block {block}, expected 0 (skip), 1 (execute) or 2 (repeat)")
    return [in_place(block, action) for action in actions]
