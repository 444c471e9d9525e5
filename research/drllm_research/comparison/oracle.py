"""The oracle (CoLa, arXiv 2507.07996): what the routes of a run could answer for someone who knows the answers. An upper bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

N_ROUTES = 16  # besides the base


def oracle_routes(training_data: Any) -> list[Any]:
    """Of the dense matrix, the base and the routes that together answer the most fit questions, by passes: the first right one is taken."""
    from drllm.core.route import Route

    matrix = training_data.matrix()
    routes = [matrix.routes[place] for place in cover(matrix.correct, N_ROUTES)]
    return [Route.full(len(matrix.routes[0])), *sorted(routes, key=lambda route: (route.n_passes, str(route)))]


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


def first_right(ranked: Sequence[Any], right: Mapping[Any, Sequence[bool]]) -> list[Any]:
    """Each question's route: the first that answers it rightly, else the base."""
    by_question = zip(*(right[route] for route in ranked), strict=True)
    return [next((route for route, ok in zip(ranked, found, strict=True) if ok), ranked[0]) for found in by_question]
