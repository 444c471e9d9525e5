"""Routes that are given, one a row. Shapes: B rows, T tokens, D hidden size, L blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.policies.policy import Policy


class GivenRoutes(Policy):
    """One given route a row; what `generate(policy=[route, ...])` and the search use. Not an artefact."""

    name: ClassVar[str] = "rows"

    def __init__(self, routes: Sequence[Route]):
        if not routes:
            raise InputError("got an empty list of routes, expected one route a prompt")
        self.n_layers = len(routes[0])
        self.actions_BL = torch.tensor([tuple(route) for route in routes], dtype=torch.long)
        self._common = routes[0] if all(route == routes[0] for route in routes) else None

    def rows(self, indices: Sequence[int]) -> GivenRoutes:
        """The routes of some rows, in that order; a row may come more than once."""
        return GivenRoutes([Route(self.actions_BL[index].tolist()) for index in indices])

    @property
    def route(self) -> Route | None:
        """The route that all rows share, if they do."""
        return self._common

    def decide(self, block: int, x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
        """Column `block` of the given actions."""
        return self.actions_BL[:, block]

    def save(self, folder: Path) -> list[str]:
        """Refused: these routes belong to one batch of prompts."""
        raise InputError("a list of routes belongs to one batch and cannot be saved; save a Route or trained routers")

    @classmethod
    def load(cls, folder: Path) -> GivenRoutes:
        """Refused, as `save`."""
        raise ArtifactError("a list of routes is never an artefact")
