"""The edits a search makes: skip a run of 1 to `max_skip_run` executed blocks, repeat one executed block, or run a span again. No torch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Action, Route


@dataclass(frozen=True, slots=True)
class EditSpace:
    """The edits over `n_layers` blocks; a path has 1 to `max_passes_ratio * n_layers` passes, a loop 2 to `max_loop_span` blocks.

    Every block is edited at most once, so edits form a graph without cycles. One is a number, its code, `kind * L + start`: kind 0 repeats
    block `start`, kind k skips the k blocks from there, and the kinds behind the longest skip loop a span from there, the shortest first.
    """

    n_layers: int
    max_skip_run: int
    max_passes_ratio: float = 2.0
    max_loop_span: int = 0

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise InputError(f"a search over {self.n_layers} blocks: expected at least 1")

    @classmethod
    def of(cls, n_layers: int, config: SearchConfig) -> EditSpace:
        return cls(n_layers, config.max_skip_run, config.max_passes_ratio, config.max_loop_span)

    @property
    def n_codes(self) -> int:
        """How many codes there are, legal or not: L times one repeat, the lengths of skips and those of loops."""
        return self.n_layers * (self._n_plain + len(self._loops))

    @property
    def _n_plain(self) -> int:
        """Kinds of a repeat and of skips."""
        return 1 + min(self.max_skip_run, self.n_layers)

    @property
    def _loops(self) -> range:
        """Lengths of the spans that are looped; of one block it is a repeat."""
        return range(2, 1 + min(self.max_loop_span, self.n_layers))

    @property
    def max_passes(self) -> int:
        return math.floor(self.max_passes_ratio * self.n_layers + 1e-9)

    def apply(self, route: Route, code: int) -> Route | None:
        """The edited route; None where the edit is not legal: a block edited twice, a path beyond the cap, the empty path."""
        kind, start = divmod(code, self.n_layers)
        length = max(kind, 1) if kind < self._n_plain else self._loops[kind - self._n_plain]
        if start + length > self.n_layers or any(action != Action.EXECUTE for action in route.actions[start : start + length]):
            return None
        if kind >= self._n_plain:
            edited = route.loop(start, start + length - 1)
        else:
            edited = route.edit(start, *[Action.SKIP if kind else Action.REPEAT] * length)
        return edited if 1 <= edited.n_passes <= self.max_passes else None

    def edited(self, route: Route) -> list[Route]:
        """Every route of one more edit, in the order of the codes."""
        return [after for code in range(self.n_codes) if (after := self.apply(route, code)) is not None]


def random_routes(n_layers: int, n: int, config: SearchConfig, seed: int) -> list[Route]:
    """The blind baseline: `n` distinct routes of 1, 2 or 3 uniformly drawn legal edits (about as often as 1 : 2 : 1.5).

    No question is looked at, and the base is not among them. `InputError` where there are fewer than `n` such routes.
    """
    space = EditSpace.of(n_layers, config)
    full, generator = Route.full(n_layers), random.Random(seed)
    found: dict[Route, None] = {}
    misses = 0
    while len(found) < n:
        route = full
        for _ in range(generator.choices((1, 2, 3), (1.0, 2.0, 1.5))[0]):
            edited = space.edited(route)
            route = generator.choice(edited) if edited else route
        misses = misses + 1 if route in found or route.is_full else 0
        if misses > 1000 + 100 * n:
            raise InputError(f"asked for {n} random routes over {n_layers} blocks, found {len(found)}: expected a smaller number")
        if not route.is_full:
            found[route] = None
    return list(found)
