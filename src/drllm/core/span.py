"""Spans of blocks, of which a path is made. No torch."""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from drllm.core.errors import InputError

_SPAN = re.compile(r"(?P<first>\d{1,5})(-(?P<last>\d{1,5}))?", re.ASCII)
_DAMPED = re.compile(r"\((?P<first>\d{1,5})(-(?P<last>\d{1,5}))?\)(\*(?P<strength>[\d.e-]+))?", re.ASCII)


class Span(NamedTuple):
    """Blocks `first` to `last`, one after the other: F. With a strength s below 1 the states h go only that far: h + s (F(h) - h).

    `adapter` names the low-rank weights that are added to its blocks' own; empty: none.
    """

    first: int
    last: int
    strength: float = 1.0
    adapter: str = ""

    @property
    def blocks(self) -> range:
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        text = f"{self.first}-{self.last}" if self.last > self.first else str(self.first)
        return text if self.strength == 1 else f"({text})*{self.strength!r}"


Visit = tuple[Span, ...]  # what runs when the base's forward comes to one block


@functools.lru_cache(maxsize=1 << 12)
def block_span(block: int, adapter: str = "") -> Span:
    return Span(block, block, 1.0, adapter)


def in_place(block: int, n_passes: int) -> Visit:
    """Passes through a block, one after the other."""
    return (block_span(block),) * n_passes


def n_in_place(block: int, visit: Visit) -> int:
    """Passes of a visit that are the block's own, before any loop."""
    return sum(1 for _ in itertools.takewhile(lambda span: span[:3] == block_span(block)[:3], visit))


def fewest_spans(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].strength == span.strength == 1 and span.first == merged[-1].last + 1:
            merged[-1] = merged[-1]._replace(last=span.last)
        else:
            merged.append(span)
    return merged


def read_span(part: str, text: str) -> Span | None:
    """One part of the path `text`: `12`, `12-14` or `(12-14)*0.5`; None for anything else, `InputError` for a span that cannot be."""
    match = _SPAN.fullmatch(part) or _DAMPED.fullmatch(part)
    if match is None:
        return None
    parts = match.groupdict()
    first = int(parts["first"])
    last = int(parts["last"] or first)
    try:
        strength = float(parts.get("strength") or 1)
    except ValueError:
        raise InputError(f"cannot read strength {parts['strength']!r} in route {text!r}: expected a number above 0, at most 1") from None
    if last < first:
        raise InputError(f"cannot read {first}-{last} in route {text!r}: a span goes from its lower block to its higher one")
    return Span(first, last, strength)
