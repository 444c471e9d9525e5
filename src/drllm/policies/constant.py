"""One route for every prompt. Shapes: B rows, T tokens, D hidden size."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from drllm.core.errors import ArtifactError
from drllm.core.files import write_json
from drllm.core.route import Route
from drllm.policies.policy import POLICY_FILE, Policy, register_policy


@register_policy("static")
class RoutePolicy(Policy):
    """One route for every prompt; `Route.full(L)` is the base model."""

    def __init__(self, route: Route):
        self._route = route
        self.n_layers = len(route)

    @property
    def route(self) -> Route:
        """The route."""
        return self._route

    def decide(self, block: int, x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
        """The same action for every row."""
        return torch.full((x_BTD.shape[0],), int(self._route[block]), dtype=torch.long)

    def save(self, folder: Path) -> list[str]:
        """One JSON file holding the route."""
        write_json(folder / POLICY_FILE, {"route": str(self._route)})
        return [POLICY_FILE]

    @classmethod
    def load(cls, folder: Path) -> RoutePolicy:
        """Read the route back."""
        try:
            return cls(Route.parse(json.loads((folder / POLICY_FILE).read_text(encoding="utf-8"))["route"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder / POLICY_FILE} does not hold a route ({error}); train the policy again") from None
