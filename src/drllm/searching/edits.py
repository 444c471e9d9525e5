"""The edits a search makes: skip a run of 1 to `max_skip_run` executed blocks, or repeat one executed block. No torch.

So every block is edited at most once, no edit is a no-op and the edits form a graph without cycles. An edit is one number, its code:
`kind * L + start` with kind 0 for a repeat of block `start` and kind k for a skip of the k blocks from there.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from drllm.core.errors import InputError
from drllm.core.route import Action, Route


class Evaluation(NamedTuple):
    """One evaluated route: its verdict and its margin in the scorer's unit (nats, or nats a character); nan where the reward has none."""

    route: Route
    correct: bool
    margin: float


@dataclass(frozen=True, slots=True)
class EditSpace:
    """The edits over `n_layers` blocks; a path has 1 to `max_passes_ratio * n_layers` passes."""

    n_layers: int
    max_skip_run: int
    max_passes_ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise InputError(f"a search over {self.n_layers} blocks: expected at least 1")

    @property
    def n_codes(self) -> int:
        """How many codes there are, legal or not: (1 + the longest run) * L."""
        return self.n_layers * (1 + min(self.max_skip_run, self.n_layers))

    @property
    def max_passes(self) -> int:
        """The longest path."""
        return math.floor(self.max_passes_ratio * self.n_layers + 1e-9)

    def blocks(self, code: int) -> tuple[int, int]:
        """The edited blocks as (first, one past the last); the last may lie beyond L, where the code stands for nothing."""
        kind, start = divmod(code, self.n_layers)
        return start, start + max(kind, 1)

    def apply(self, route: Route, code: int) -> Route | None:
        """The edited route; None where the edit is not legal: a block edited twice, a path beyond the cap, the empty path."""
        start, stop = self.blocks(code)
        if stop > self.n_layers or any(action != Action.EXECUTE for action in route.actions[start:stop]):
            return None
        edited = route.edit(start, *[self._action(code)] * (stop - start))
        return edited if 1 <= edited.n_passes <= self.max_passes else None

    def edited(self, route: Route) -> dict[int, Route]:
        """Every route of one more edit, by its code."""
        return {code: after for code in range(self.n_codes) if (after := self.apply(route, code)) is not None}

    def contains(self, route: Route, code: int) -> bool:
        """Whether the route repeats the block of this code, or skips all of its blocks, by whichever edits."""
        start, stop = self.blocks(code)
        return all(action == self._action(code) for action in route.actions[start:stop])

    def _action(self, code: int) -> Action:
        return Action.REPEAT if code < self.n_layers else Action.SKIP
