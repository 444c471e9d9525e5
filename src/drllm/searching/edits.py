"""The edits a search makes: skip a run of 1 to `max_skip_run` executed blocks, repeat one executed block, or run a span again. No torch.

So every block is edited at most once, no edit is a no-op and the edits form a graph without cycles. An edit is one number, its code:
`kind * L + start` with kind 0 for a repeat of block `start`, kind k for a skip of the k blocks from there, and the kinds behind the longest
skip for loops of a span that begins there, the shortest first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Action, Route


class Evaluation(NamedTuple):
    """One evaluated route: its verdict and its margin in the scorer's unit (nats, or nats a character); nan where the reward has none."""

    route: Route
    correct: bool
    margin: float


@dataclass(frozen=True, slots=True)
class EditSpace:
    """The edits over `n_layers` blocks; a path has 1 to `max_passes_ratio * n_layers` passes.

    Loops run a span of at most `max_loop_span` blocks once more, with strength `loop_strength`; of one block only where that is below 1, as
    it is a repeat otherwise. 0: no loops.
    """

    n_layers: int
    max_skip_run: int
    max_passes_ratio: float = 2.0
    max_loop_span: int = 0
    loop_strength: float = 1.0

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise InputError(f"a search over {self.n_layers} blocks: expected at least 1")

    @classmethod
    def of(cls, n_layers: int, config: SearchConfig) -> EditSpace:
        """The edits of a search."""
        return cls(n_layers, config.max_skip_run, config.max_passes_ratio, config.max_loop_span, config.loop_strength)

    @property
    def in_words(self) -> str:
        """Its size, for messages."""
        loops = f", loops of up to {self.max_loop_span} with strength {self.loop_strength:g}" if self.max_loop_span else ""
        return f"{self.n_layers} blocks and skips of up to {self.max_skip_run}{loops}"

    @property
    def n_codes(self) -> int:
        """How many codes there are, legal or not: L times one repeat, the lengths of skips and those of loops."""
        return self.n_layers * (1 + self._n_skips + len(self._loops))

    @property
    def _n_skips(self) -> int:
        return min(self.max_skip_run, self.n_layers)

    @property
    def _loops(self) -> range:
        """Lengths of the spans that are looped."""
        return range(1 if self.loop_strength < 1 else 2, 1 + min(self.max_loop_span, self.n_layers))

    @property
    def max_passes(self) -> int:
        """The longest path."""
        return math.floor(self.max_passes_ratio * self.n_layers + 1e-9)

    def blocks(self, code: int) -> tuple[int, int]:
        """The edited blocks as (first, one past the last); the last may lie beyond L, where the code stands for nothing."""
        kind, start = divmod(code, self.n_layers)
        return start, start + (max(kind, 1) if kind <= self._n_skips else self._loops[kind - self._n_skips - 1])

    def extra_passes(self, code: int) -> int:
        """Passes that the edit adds; below 0 for a skip."""
        start, stop = self.blocks(code)
        return start - stop if self._action(code) == Action.SKIP else stop - start

    def apply(self, route: Route, code: int) -> Route | None:
        """The edited route; None where the edit is not legal: a block edited twice, a path beyond the cap, the empty path."""
        start, stop = self.blocks(code)
        if stop > self.n_layers or any(action != Action.EXECUTE for action in route.actions[start:stop]):
            return None
        if code >= self.n_layers * (1 + self._n_skips):
            edited = route.loop(start, stop - 1, self.loop_strength)
        else:
            edited = route.edit(start, *[self._action(code)] * (stop - start))
        return edited if 1 <= edited.n_passes <= self.max_passes else None

    def edited(self, route: Route) -> dict[int, Route]:
        """Every route of one more edit, by its code."""
        return {code: after for code in range(self.n_codes) if (after := self.apply(route, code)) is not None}

    def contains(self, route: Route, code: int) -> bool:
        """Whether the route repeats the block of this code, or skips or loops all of its blocks, by whichever edits."""
        start, stop = self.blocks(code)
        if any(action != self._action(code) for action in route.actions[start:stop]):
            return False
        if self._action(code) == Action.SKIP or (route.is_in_place and code < self.n_layers):
            return True
        edited = self.apply(Route.full(self.n_layers), code)
        return edited is not None and edited.visits[stop - 1] == route.visits[stop - 1]

    def _action(self, code: int) -> Action:
        return Action.SKIP if self.n_layers <= code < self.n_layers * (1 + self._n_skips) else Action.REPEAT
