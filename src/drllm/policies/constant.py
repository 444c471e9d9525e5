"""One route for every prompt."""

from __future__ import annotations

from pathlib import Path

from drllm.core.route import Route
from drllm.policies.files import PolicyFiles
from drllm.policies.policy import Policy

_FILES = PolicyFiles("route", "train the policy again", "policy.json")


class RoutePolicy(Policy):
    """One route for every prompt; `Route.full(L)` is the base model."""

    name = "static"
    about = "one route of blocks for every prompt"

    def __init__(self, route: Route):
        self.route, self.n_layers = route, len(route)

    def save(self, folder: Path) -> list[str]:
        """One JSON file."""
        return _FILES.save(folder, {"route": str(self.route)})

    @classmethod
    def load(cls, folder: Path) -> RoutePolicy:
        """Read the route back."""
        with _FILES.reading(folder):
            return cls(Route.parse(_FILES.load(folder)[0]["route"]))
