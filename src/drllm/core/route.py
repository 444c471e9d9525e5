"""What a policy decides: the path of one prompt through the blocks. No torch in this module."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from drllm.core.errors import InputError, first_line
from drllm.core.span import Span, Visit, block_span, fewest_spans, in_place, n_in_place, read_span

MAX_PASSES = 4  # of one block, in any route
_ADAPTER = re.compile(r"[0-9a-f]{16}")
_HOW = "write one digit a block, 0 (skip), 1 (execute) or 2 (repeat), or a path such as 0-14,12-29 or 0-14,(12-14)*0.5,15-29"


class Action(IntEnum):
    """What happens at one block. The value is the number of passes through it."""

    SKIP = 0
    EXECUTE = 1
    REPEAT = 2


@dataclass(frozen=True, slots=True)
class Route:
    """The path of one prompt through L blocks; the only form a route has anywhere.

    `str(route)` is one digit a block ("1102": execute, execute, skip, repeat) where each block's passes follow one another in place, at
    most two; else the path ("0-14,12-29"), with "/30" behind it if the last of 30 blocks never runs. A healed route ends in "@" and its
    adapter's name. `Route.parse` is its inverse.
    """

    actions: tuple[int, ...]  # passes of each block, first block first
    order: tuple[Span, ...] | None  # the path, where it is not in place: single blocks, and spans of a strength below 1
    adapter: str  # names the low-rank weights that every block of it runs with (`drllm.policies.adapter`); empty: none

    def __init__(self, actions: Iterable[int]):
        try:
            parsed = tuple(Action(action) for action in actions)
        except (ValueError, TypeError) as error:
            raise InputError(f"a route holds one action a block, 0 (skip), 1 (execute) or 2 (repeat): {error}") from None
        if not parsed:
            raise InputError("a route leads through one block at least")
        object.__setattr__(self, "actions", parsed)
        object.__setattr__(self, "order", None)
        object.__setattr__(self, "adapter", "")

    @classmethod
    def parse(cls, text: str, n_layers: int | None = None) -> Route:
        """The route written as digits or as a path, + for commas where those part values; `InputError` for anything else.

        `n_layers`: of the model; a path that ends before its last block must say so ("0-14,12-27/30").
        """
        n_layers = None if n_layers is None else _blocks(n_layers)
        if isinstance(text, str) and "@" in text:
            bare, _, adapter = text.partition("@")
            return cls.parse(bare, n_layers).with_adapter(adapter)
        if isinstance(text, str) and text and not set(text) - set("012"):
            if n_layers is not None and len(text) != n_layers:
                raise InputError(f"route {first_line(text)} leads through {len(text)} blocks, the model has {n_layers}")
            return _digits(text)
        if not isinstance(text, str) or not set(text) & set("-,+(/"):
            raise InputError(f"cannot read route {text!r}: {_HOW}")
        return _parse_path(text, n_layers)

    @classmethod
    def full(cls, n_layers: int) -> Route:
        """The identity: every block executed once, which is the base model."""
        return cls((Action.EXECUTE,) * _blocks(n_layers))

    @classmethod
    def along(cls, path: Iterable[int | Span], n_layers: int) -> Route:
        """Any path through `n_layers` blocks: blocks, and spans with their strengths, in the order they run.

        `InputError` for an empty path, a block out of range, more than `MAX_PASSES` of one, or a strength outside (0, 1] or of a span that
        is not run again.
        """
        try:
            parts = tuple(path)
        except TypeError:
            raise InputError(f"got a path {first_line(repr(path))}: expected blocks and spans, one after the other") from None
        adapters = {part.adapter if isinstance(part, Span) else "" for part in parts} or {""}
        if len(adapters) > 1:
            raise InputError(f"got a path with adapters {', '.join(map(repr, sorted(adapters)))}: a route has one adapter, or none")
        return _along(tuple(_single_blocks(parts)), _blocks(n_layers)).with_adapter(adapters.pop())

    @classmethod
    def of_visits(cls, visits: Sequence[Visit]) -> Route:
        """The route that runs this at each of its blocks, the inverse of `visits`; unlike a path it may be empty."""
        spans = [span for visit in visits for span in visit]
        return cls.along(spans, len(visits)) if spans else cls([Action.SKIP] * len(visits))

    def loop(self, first: int, last: int, strength: float = 1.0, times: int = 2) -> Route:
        """This route with blocks `first` to `last` run `times` times in all, each time after the first with this strength."""
        asked = f"cannot loop blocks {first} to {last} {times} times"
        try:
            first, last, times = map(operator.index, (first, last, times))
        except TypeError:
            raise InputError(f"{asked}: expected whole numbers") from None
        if not 0 <= first <= last < len(self):
            raise InputError(f"{asked}: expected a span within blocks 0 to {len(self) - 1}, its lower block first")
        if not 2 <= times <= MAX_PASSES:
            raise InputError(f"{asked}: expected 2 to {MAX_PASSES} times in all")
        if skipped := [block for block in range(first, last + 1) if not self.actions[block]]:
            raise InputError(f"cannot loop blocks {first} to {last}: this route skips block {skipped[0]}")
        again = [Span(first, last, strength, self.adapter)] * (times - 1)
        visits = list(self.visits)
        visits[last] = (*visits[last], *again)
        return Route.along(itertools.chain.from_iterable(visits), len(self))

    def with_adapter(self, adapter: str) -> Route:
        """This route with every block run under an adapter; "" for none."""
        if adapter and not _ADAPTER.fullmatch(adapter):
            raise InputError(f"got adapter {adapter!r} in a route: expected the 16 hexadecimal digits that name one")
        if adapter == self.adapter:
            return self
        route = object.__new__(Route)
        for name, value in (("actions", self.actions), ("order", self.order), ("adapter", adapter)):
            object.__setattr__(route, name, value)
        return route

    @property
    def bare(self) -> Route:
        return self.with_adapter("")

    @property
    def spans(self) -> tuple[Span, ...]:
        """The path: single blocks, and spans of a strength below 1."""
        if self.order is not None:
            return tuple(span._replace(adapter=self.adapter) for span in self.order) if self.adapter else self.order
        return tuple(block_span(block, self.adapter) for block, action in enumerate(self.actions) for _ in range(action))

    @property
    def path(self) -> tuple[int, ...]:
        """Indices of the blocks in the order they run; `len(route.path) == route.n_passes`."""
        return tuple(block for span in self.spans for block in span.blocks)

    @property
    def visits(self) -> tuple[Visit, ...]:
        """For each block, what runs when the base's forward comes to it: the part of the path whose highest block so far it is."""
        return _visits(self)

    @property
    def loops(self) -> tuple[tuple[int, Span], ...]:
        """What runs behind a block's own passes, in the order it runs: that block, and an earlier span; none where all is in place."""
        extra = [fewest_spans(visit[n:]) for visit, n in zip(self.visits, self.in_place_actions, strict=True)]
        return tuple((block, span) for block, spans in enumerate(extra) for span in spans)

    @property
    def in_place_actions(self) -> tuple[int, ...]:
        """Passes of each block when the base's forward comes to it, without those of loops."""
        return tuple(n_in_place(block, visit) for block, visit in enumerate(self.visits))

    @property
    def is_in_place(self) -> bool:
        """Whether each block's passes follow one another, so that the actions say all."""
        return self.order is None

    @property
    def has_digits(self) -> bool:
        """Whether one action a block says all: each block's passes in place, two at most. Routers decide nothing else."""
        return self.order is None and not self.adapter and max(self.actions, default=0) <= Action.REPEAT

    @property
    def n_passes(self) -> int:
        return sum(self.actions)

    @property
    def is_full(self) -> bool:
        """Whether this is the identity."""
        return self.order is None and not self.adapter and all(action == Action.EXECUTE for action in self.actions)

    def edit(self, start: int, *actions: int) -> Route:
        """This route with the actions from block `start` on replaced; of a route that is not in place, only blocks that run once."""
        if not 0 <= start <= len(self) - len(actions):
            raise InputError(f"cannot edit blocks {start} to {start + len(actions) - 1} of a route of {len(self)} blocks")
        if self.has_digits:
            return Route((*self.actions[:start], *actions, *self.actions[start + len(actions) :]))
        edited = {block_span(block): action for block, action in enumerate(actions, start)}
        if fixed := [span.first for span in edited if self.spans.count(span) != 1 or self.actions[span.first] != 1]:
            raise InputError(f"cannot edit block {fixed[0]} of route {self}: it does not run once by itself")
        return Route.along([span for span in self.spans for _ in range(edited.get(span, 1))], len(self))

    def first_edit(self) -> int:
        """The first block at which something else runs than the block once; L for the identity."""
        return next((block for block, visit in enumerate(self.visits) if visit != in_place(block, 1)), len(self))

    def __len__(self) -> int:
        return len(self.actions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.actions)

    def __getitem__(self, block: int) -> int:
        return self.actions[block]

    def __str__(self) -> str:
        if self.adapter:
            return f"{self.bare}@{self.adapter}"
        if self.has_digits:
            return "".join(str(int(action)) for action in self.actions)
        end = "" if max(span.last for span in self.spans) == len(self) - 1 else f"/{len(self)}"
        return ",".join(map(str, fewest_spans(self.spans))) + end

    def __repr__(self) -> str:
        return f"Route.parse({str(self)!r})"


def kept_passes(budget: float, n_layers: int) -> int:
    """Passes to keep of the base's `n_layers`, at least one."""
    return max(1, int(budget * n_layers + 1e-9))


def _blocks(n_layers: Any) -> int:
    try:
        found = operator.index(n_layers)
    except TypeError:
        raise InputError(f"got a path through {first_line(repr(n_layers))} blocks: expected a whole number") from None
    if found < 1:
        raise InputError(f"got a path through {found} blocks: expected at least one")
    return found


@functools.lru_cache(maxsize=1 << 16)
def _digits(text: str) -> Route:
    """One object a route: records of many questions hold the same ones."""
    return Route(int(digit) for digit in text)


@functools.lru_cache(maxsize=1 << 16)
def _parse_path(text: str, n_layers: int | None) -> Route:
    body, slash, stated = "".join(text.split()).replace("+", ",").partition("/")
    read = [read_span(part, text) for part in body.split(",")]
    spans = [span for span in read if span is not None]
    if (slash and not re.fullmatch(r"\d{1,5}", stated, re.ASCII)) or len(spans) < len(read):
        raise InputError(f"cannot read route {text!r}: {_HOW}")
    found = int(stated) if slash else n_layers or 1 + max(span.last for span in spans)
    # Before spans are taken apart: a text of a few characters must not become a route of a million passes.
    if n_layers and found != n_layers:
        raise InputError(f"route {text!r} leads through {found} blocks, the model has {n_layers}")
    if (outside := max(span.last for span in spans)) >= found > 0:
        raise InputError(f"got block {outside} in a path through {found} blocks, 0 to {found - 1}")
    if (n_passes := sum(len(span.blocks) for span in spans)) > MAX_PASSES * found > 0:
        raise InputError(f"got {n_passes} passes in a path through {found} blocks: expected at most {MAX_PASSES} of one block")
    if n_layers and not slash and outside < n_layers - 1:
        raise InputError(f"route {text!r} ends before the last of {n_layers} blocks: write {text}/{n_layers} if it skips the last ones")
    return Route.along(spans, found)


def _single_blocks(path: Iterable[int | Span]) -> Iterator[Span]:
    """The path with plain spans taken apart, in Python's own numbers: equal routes have one text."""
    for part in path:
        try:
            first, last, strength = part[:3] if isinstance(part, Span) else (part, part, 1.0)
            span = Span(operator.index(first), operator.index(last), float(strength))
        except (TypeError, ValueError):
            raise InputError(
                f"cannot read {first_line(repr(part))} in a path: expected a block's number, or Span(first, last, strength)"
            ) from None
        if span.strength != 1:
            yield span
        else:
            yield from map(block_span, span.blocks)


@functools.lru_cache(maxsize=1 << 16)
def _along(spans: tuple[Span, ...], n_layers: int) -> Route:
    if not spans:
        raise InputError("got an empty path: a route runs at least one block")
    counts, highest = [0] * n_layers, -1
    for span in spans:
        if not 0 < span.strength <= 1:
            raise InputError(f"got strength {span.strength:g} for {span.first}-{span.last}: expected a number above 0, at most 1")
        if not 0 <= span.first <= span.last < n_layers:
            raise InputError(
                f"got block {span.last if span.first >= 0 else span.first} in a path through {n_layers} blocks, 0 to {n_layers - 1}"
            )
        if span.strength < 1 and span.last > highest:
            raise InputError(f"got strength {span.strength:g} for {span.first}-{span.last}: only a span that is run again can have one")
        highest = max(highest, span.last)
        for block in span.blocks:
            counts[block] += 1
    if max(counts) > MAX_PASSES:
        raise InputError(f"got {max(counts)} passes of block {counts.index(max(counts))}: expected at most {MAX_PASSES} of one block")
    is_in_place = all(span.strength == 1 for span in spans) and all(a.first <= b.first for a, b in itertools.pairwise(spans))
    route = object.__new__(Route)
    object.__setattr__(route, "actions", tuple(Action(n) if n <= Action.REPEAT else n for n in counts))
    object.__setattr__(route, "order", None if is_in_place else spans)
    object.__setattr__(route, "adapter", "")
    return route


@functools.lru_cache(maxsize=1 << 16)
def _visits(route: Route) -> tuple[Visit, ...]:
    visits: list[list[Span]] = [[] for _ in range(len(route))]
    highest = 0
    for span in route.spans:
        highest = max(highest, span.last)
        visits[highest].append(span)
    return tuple(map(tuple, visits))
