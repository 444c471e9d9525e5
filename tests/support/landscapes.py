"""Questions made of arithmetic, for tests of the search: every route's verdict and margin follow from its actions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from drllm.core.config import SearchConfig
from drllm.core.route import Route
from drllm.searching.tree import RouteTree

Answer = Callable[[Route], tuple[bool, float]]  # verdict and margin of a route


def run(tree: RouteTree, answer: Answer) -> list[Route]:
    """Every route asked, each told what `answer` says of it."""
    asked = []
    while (route := tree.ask()) is not None:
        tree.tell(route, *answer(route))
        asked.append(route)
    return asked


def config_of(**options) -> SearchConfig:
    """A configuration which only the budget of other routes stops."""
    return SearchConfig(**{"early_stop": False, "counted": "distinct", **options})


def noise(seed: int, right: float = 0.3, base: bool | None = None) -> Answer:
    """A landscape without any structure: verdicts and margins are drawn for each route by itself; `base` fixes the base's verdict."""

    def answer(route: Route) -> tuple[bool, float]:
        generator = random.Random(f"{seed}:{route}")
        correct, size = generator.random() < right, generator.random()
        if route.is_full and base is not None:
            correct = base
        return correct, size if correct else -size

    return answer


def never(route: Route) -> tuple[bool, float]:
    """No route is right, all are alike."""
    return False, -1.0


def one_right(planted: Route, seed: int = 0) -> Answer:
    """One route is right, and no other hints at it."""
    wrong = noise(seed, right=0.0)
    return lambda route: (True, 1.0) if route == planted else wrong(route)


def additive(gains: Mapping[tuple[int, int], float], base: float = -1.0, other: float = -0.2) -> Answer:
    """Margins add up: `gains[block, action]` for edits named there, `other` for any else; right is a margin above 0."""

    def answer(route: Route) -> tuple[bool, float]:
        margin = base + sum(gains.get((block, int(action)), other) for block, action in enumerate(route) if action != 1)
        return margin > 0, margin

    return answer


def closure(n_layers: int, max_skip_run: int, max_passes: float) -> set[Route]:
    """All routes within reach of legal edits, the base too, by a search written apart from the library's code."""
    base = (1,) * n_layers
    seen, front = {base}, [base]
    while front:
        route = front.pop()
        for start in range(n_layers):
            for new in [(2,), *((0,) * length for length in range(1, max_skip_run + 1))]:
                if route[start : start + len(new)] == (1,) * len(new):
                    edited = (*route[:start], *new, *route[start + len(new) :])
                    if 1 <= sum(edited) <= max_passes + 1e-9 and edited not in seen:
                        seen.add(edited)
                        front.append(edited)
    return {Route(route) for route in seen}


@dataclass
class SpreadAnswers:
    """Answers of a base and of candidates to questions, all drawn beforehand, and which of them a race asked for.

    Attributes:
        verdicts, margins: (Q, 1 + C), the base first.
        calls: candidates and questions of each call.
    """

    verdicts: np.ndarray
    margins: np.ndarray
    calls: list[tuple[list[int], int, int]] = field(default_factory=list)

    def ask(self, alive: list[int], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """What `drllm.scanning.race.race` asks."""
        self.calls.append((list(alive), start, stop))
        columns = [0, *(1 + one for one in alive)]
        return self.verdicts[start:stop, columns], self.margins[start:stop, columns]

    @property
    def asked(self) -> list[tuple[int, int]]:
        """Candidates and questions of each call, counted."""
        return [(len(alive), stop - start) for alive, start, stop in self.calls]


def spread_answers(n_candidates: int, n_questions: int, best: int, lead: float, seed: int) -> SpreadAnswers:
    """Questions of different difficulty, candidates that change each margin by chance, a little for the worse; one leads by `lead`."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=(n_questions, 1))
    change = rng.normal(-0.3, 0.4, size=(n_questions, n_candidates))
    change[:, best] += 0.3 + lead
    margins = np.concatenate([difficulty, difficulty + change], axis=1)
    return SpreadAnswers(margins > 0, margins)
