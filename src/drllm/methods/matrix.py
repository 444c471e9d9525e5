"""The dense (question x route) matrix of a run: what every listed route answers to every question, for methods that choose among routes.

Shapes: N questions, R routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from drllm.core.route import Route


@dataclass(frozen=True)
class Matrix:
    """Verdicts and margins of R routes, the base first, on N questions of one split."""

    routes: tuple[Route, ...]
    tasks: tuple[str, ...]  # of each question
    ids: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]  # token ids of each question's context, as a policy sees it
    correct: np.ndarray  # (N, R) bool
    margins: np.ndarray  # (N, R) float32; nan where the reward has none
    prompt_format: str | None  # "raw" or "chat"; None: some of either
    key: str  # names the records and the weights behind them

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def gains(self) -> np.ndarray:
        """(N, R) in {-1, 0, 1}: the verdict less the base's."""
        return self.correct.astype(np.int8) - self.correct[:, :1].astype(np.int8)

    def mixed_gains(self, margin_weight: float) -> np.ndarray:
        """(N, R): `mixed_gain`, margins in standard deviations of the base's within the question's task."""
        tasks = np.array(self.tasks)
        spread = np.ones((len(tasks), 1))
        for name in np.unique(tasks):
            spread[tasks == name] = max(float(np.std(self.margins[tasks == name, 0])), 1e-6)
        return mixed_gain(self.margins, self.correct, spread, margin_weight)

    def passes(self) -> np.ndarray:
        """(R,): block passes of each route."""
        return np.array([route.n_passes for route in self.routes])

    def saved(self) -> np.ndarray:
        """(R,): the share of the base's passes that each route saves."""
        return 1 - self.passes() / self.passes()[0]

    def at(self, places: Sequence[int]) -> Matrix:
        routes = tuple(self.routes[place] for place in places)
        return replace(self, routes=routes, correct=self.correct[:, places], margins=self.margins[:, places])


def mixed_gain(margins: np.ndarray, right: np.ndarray, spread: np.ndarray | float, weight: float) -> np.ndarray:
    """Gains over the base, which comes first on the last axis: margin's, at most a standard deviation of the base's, and verdict's.

    Margins are steadier; alone they miss a route that turns many verdicts by a little. Where there are none, the verdict alone.
    """
    verdict = right.astype(float) - right[..., :1]
    margin = np.clip((margins - margins[..., :1]) / spread, -1, 1)
    return np.where(np.isnan(margin), verdict, weight * margin + (1 - weight) * verdict)
