"""One route for every prompt; and routes that are given, one a sequence of a batch: a plain value, not an artefact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from drllm.core.errors import InputError, first_line
from drllm.core.route import Route
from drllm.policies.files import PolicyFiles
from drllm.policies.policy import Policy, RouteSource

_FILES = PolicyFiles("route", "train the policy again", "policy.json")


class RoutePolicy(Policy):
    """One route for every prompt; `Route.full(L)` is the base model."""

    name = "static"
    about = "one route of blocks for every prompt"

    def __init__(self, route: Route):
        self.route, self.n_layers = route, len(route)

    def save(self, folder: Path) -> list[str]:
        return _FILES.save(folder, {"route": str(self.route)})

    @classmethod
    def load(cls, folder: Path) -> RoutePolicy:
        with _FILES.reading(folder):
            return cls(Route.parse(_FILES.load(folder)[0]["route"]))


class GivenRoutes(RouteSource):
    """One given route a sequence; what `generate(policy=[route, ...])` and the search use."""

    name: ClassVar[str] = "given"

    def __init__(self, routes: Sequence[Route]):
        if not routes:
            raise InputError("got an empty list of routes, expected one route a prompt")
        self.of_sequences = tuple(routes)
        self.n_layers = len(routes[0])
        self.route = routes[0] if all(route == routes[0] for route in routes) else None
        self.routes = tuple(dict.fromkeys(routes))

    def routes_for(self, prompts: Sequence[Sequence[int]]) -> list[Route]:
        return list(self.of_sequences)


def check_batch(source: RouteSource, n_prompts: int) -> None:
    """`InputError` where routes were given for more prompts or fewer."""
    if isinstance(source, GivenRoutes) and len(source.of_sequences) != n_prompts:
        raise InputError(f"got {len(source.of_sequences)} routes for {n_prompts} prompts, expected one a prompt")


def repeated(source: RouteSource, n_each: int) -> RouteSource:
    """What decides for a batch in which each prompt stands some times, one behind the other."""
    given = source.of_sequences if isinstance(source, GivenRoutes) else ()
    return GivenRoutes([route for route in given for _ in range(n_each)]) if given else source


def as_source(given: Any, n_layers: int) -> RouteSource:
    """Any way of giving routes as what a model of `n_layers` blocks runs; `InputError` for anything else."""
    if isinstance(given, RouteSource):
        return given
    if isinstance(given, Route):
        return RoutePolicy(given)
    routes = list(given) if isinstance(given, Sequence) else []
    if not routes or not all(isinstance(route, Route) for route in routes) or len({len(route) for route in routes}) != 1:
        raise InputError(
            f"expected a Policy, a Route or a list of one Route a prompt, each of {n_layers} blocks; got {first_line(repr(given))}"
        )
    return GivenRoutes(routes)


def is_identity(source: RouteSource | None) -> bool:
    return source is None or (source.route is not None and source.route.is_full)
