"""Routes that somebody says help, each beside the same change at other blocks, drawn blindly. No torch, no model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drllm.core.config import ScanConfig
from drllm.core.progress import say
from drllm.core.route import Route
from drllm.runs.scan_result import CLAIM_LEAD, CLAIMED, ELSEWHERE, Measured
from drllm.scanning.measure import difference, measured
from drllm.scanning.spans import Candidate, described, elsewhere

N_ELSEWHERE = 5  # other places of a claimed change, at most


@dataclass(frozen=True)
class Claim:
    """A claimed route, and the same change at other places; none where it fits nowhere else."""

    one: Candidate
    others: tuple[Route, ...]

    @property
    def routes(self) -> list[Route]:
        """All that is measured, the claim first."""
        return [self.one.route, *self.others]


def claim(route: Route, config: ScanConfig) -> Claim:
    """The claim with its other places, which depend on the route and the seed alone."""
    others = elsewhere(route, N_ELSEWHERE, random.Random(f"{config.seed}:{route}"))
    if not others:
        say(f"scan: {route} fits at no other blocks: nothing random stands beside it")
    return Claim(described(route, config.strength) or Candidate("", -1, -1, route), tuple(others))


def compared(found: Claim, verdicts_QR: np.ndarray, tasks: Sequence[str], config: ScanConfig) -> tuple[list[Measured], list[Measured]]:
    """The claim's row; and the mean over the other places, and the claim minus that mean, question by question.

    Args:
        verdicts_QR: on new questions, the base first, then `found.routes`.
        tasks: of the questions.
    """
    rows = measured(CLAIMED, [found.one], {(CLAIMED, True): verdicts_QR[:, :2]}, {True: tasks}, config)
    if not found.others:
        return rows, []
    mean_Q, base_Q, ours_Q = verdicts_QR[:, 2:].mean(1), verdicts_QR[:, 0].astype(float), verdicts_QR[:, 1].astype(float)
    passes = float(np.mean([route.n_passes for route in found.others]))
    about = {"route": str(found.one.route), "passes": passes}
    beside = Measured(group=ELSEWHERE, **about, fresh=difference(mean_Q, base_Q, tasks, config))
    return rows, [beside, Measured(group=CLAIM_LEAD, **about, fresh=difference(ours_Q, mean_Q, tasks, config))]
