"""The oracle of a list of routes: told every answer, it takes a route that gives it (CoLa, arXiv 2507.07996). An upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.policies.files import PolicyFiles
from drllm.policies.policy import POLICY_FILE, Policy, register_policy

_FILES = PolicyFiles("routes", "train the oracle again", POLICY_FILE)


@register_policy("oracle")
class Oracle(Policy):
    """The base where it is right, else the shortest right route of the list, else the base."""

    about = "an oracle of some routes: told every answer, an upper bound. For evaluation only"
    evaluate_only = True

    def __init__(self, routes: Sequence[Route]):
        if not routes:
            raise InputError("an oracle needs at least one route")
        self.routes = tuple(routes)
        self.n_layers = len(routes[0])

    @property
    def ranked(self) -> list[Route]:
        """The base, then the list by passes: the first right one is taken."""
        return [Route.full(self.n_layers), *sorted(self.routes, key=lambda route: (route.n_passes, str(route)))]

    def answer(self, scorer: Any, questions: Sequence[Any]) -> tuple[list[Any], list[Route]]:
        """Every route on every question, then the choice that only the answer allows."""
        ranked, verdicts, routes = self.ranked, [], []
        for found in scorer.score_all(questions, ranked):
            place = next((place for place, verdict in enumerate(found) if verdict.correct), 0)
            verdicts.append(found[place])
            routes.append(ranked[place])
        return verdicts, routes

    def save(self, folder: Path) -> list[str]:
        """One JSON file holding the routes."""
        return _FILES.save(folder, {"routes": [str(route) for route in self.routes]})

    @classmethod
    def load(cls, folder: Path) -> Oracle:
        """Read the routes back."""
        with _FILES.reading(folder):
            return cls([Route.parse(text) for text in _FILES.load(folder)[0]["routes"]])
