"""Spans of blocks, of which a path is made. No torch."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Blocks `first` to `last`, one after the other: F. With a strength s below 1 the states h go only that far: h + s (F(h) - h)."""

    first: int
    last: int
    strength: float = 1.0

    @property
    def blocks(self) -> range:
        """Its blocks, in order."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        text = f"{self.first}-{self.last}" if self.last > self.first else str(self.first)
        return text if self.strength == 1 else f"({text})*{self.strength!r}"


Visit = tuple[Span, ...]  # what runs when the base's forward comes to one block


@functools.lru_cache(maxsize=1 << 12)
def block_span(block: int) -> Span:
    """One block as a span, the same object each time."""
    return Span(block, block)


def in_place(block: int, n_passes: int) -> Visit:
    """Passes through a block, one after the other."""
    return (block_span(block),) * n_passes


def n_in_place(block: int, visit: Visit) -> int:
    """Passes of a visit that are the block's own, before any loop."""
    return sum(1 for _ in itertools.takewhile(block_span(block).__eq__, visit))


def fewest_spans(spans: Sequence[Span]) -> list[Span]:
    """A path in as few spans as there can be."""
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].strength == span.strength == 1 and span.first == merged[-1].last + 1:
            merged[-1] = Span(merged[-1].first, span.last)
        else:
            merged.append(span)
    return merged
