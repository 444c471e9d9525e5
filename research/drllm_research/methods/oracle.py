"""The oracle (CoLa, arXiv 2507.07996): what the routes of a run could answer for someone who knows the answers. An upper bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.errors import InputError
from drllm.core.options import Options, option
from drllm.core.route import Route
from drllm.methods.base import Method

if TYPE_CHECKING:
    from drllm.methods.base import Policy, RoutedModel, TrainingData


@dataclass(frozen=True)
class OracleConfig(Options):
    """A list of routes to choose from with the answer in hand."""

    n_routes: int = option(16, "routes besides the base; every one is run on every question", ge=1)


def fit(routed: RoutedModel, training_data: TrainingData, config: OracleConfig, folder: Path) -> Policy:
    """The routes that together answer the most fit questions: of the dense matrix, or else those that a search found right most often."""
    from drllm_research.methods.oracle_policy import Oracle

    if training_data.path_manifests:
        matrix = training_data.matrix()
        return Oracle([matrix.routes[place] for place in cover(matrix.correct, config.n_routes)])
    right: Counter[Route] = Counter()
    for _, record in training_data.fit_records:
        right.update(route for route, reward in zip(record.routes[1:], record.rewards[1:], strict=True) if reward > 0.5)
    if not right:
        raise InputError("no searched route but the base's is right on any question: search more questions")
    return Oracle([route for route, _ in sorted(right.items(), key=lambda item: (-item[1], str(item[0])))[: config.n_routes]])


def cover(correct: np.ndarray, n: int) -> list[int]:
    """Columns of (N, R) verdicts, the base's first, taken greedily for how many more questions they answer."""
    solved = correct[:, 0].copy()
    chosen: list[int] = []
    while len(chosen) < min(n, correct.shape[1] - 1):
        more = (correct & ~solved[:, None]).sum(0)
        more[[0, *chosen]] = -1
        chosen.append(int(more.argmax()))
        solved |= correct[:, chosen[-1]]
    return chosen


ABOUT = "knows every answer, takes a route that gives it; an upper bound"
METHOD = Method("oracle", ABOUT, "CoLa, arXiv 2507.07996", OracleConfig, fit, evaluate_only=True)
