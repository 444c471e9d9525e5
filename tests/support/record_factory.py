"""Records, manifests and task folders made by hand, for a model of four blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from drllm.core.route import Route
from drllm.runs.manifest import Manifest, check_manifest
from drllm.runs.records import RECORD_SPLITS, Check, RouteRecord, write_shard

ROUTES = tuple(Route.parse(text) for text in ("1111", "0111", "1121", "1001"))
PLAN = {
    "task": "arc_easy",
    "data": None,
    "model": "tiny",
    "fingerprint": "f00d",
    "questions": "d1ge57",
    "config": {"seed": 0, "n_simulations": 50},
    "ids": ["q1", "q2", "q3"],
}


def record(task: str = "arc_easy", name: str = "q1", base: float = 0.0, others: tuple[float, ...] = (1.0,), **changes: Any) -> RouteRecord:
    """A record whose last right route is chosen; `changes` replace any other field."""
    rewards = (base, *others)
    routes = ROUTES[: len(rewards)]
    chosen = next((route for route, reward in zip(routes[::-1], rewards[::-1], strict=True) if reward == 1.0), None)
    verdicts = tuple(reward == 1.0 for reward in rewards)
    margins = tuple(np.float32(reward - 0.3).item() for reward in rewards)
    made = RouteRecord(task, name, 4, base == 1.0, margins[0], chosen, routes, rewards, margins, verdicts, verdicts, 5, "f00d", "loglik")
    return replace(made, **changes)


def full_record(name: str = "q1", **changes: Any) -> RouteRecord:
    """A record with a control, checks, and margins that do not exist."""
    return record(
        name=name,
        control_routes=(ROUTES[3], ROUTES[2]),
        control_correct=(False, True),
        control_margins=(-2.5, math.nan),
        checks=(Check(ROUTES[0], "fp32:acc", True, 0.25), Check(ROUTES[1], "template:acc", False, math.nan)),
        **{"strict": (False, False), "lenient": (False, True), "forms": ("other", "asked")} | changes,
    )


def control(*correct: bool) -> dict[str, Any]:
    """The fields of a control with these verdicts."""
    return {"control_routes": ROUTES[1 : len(correct) + 1], "control_correct": correct, "control_margins": (0.5,) * len(correct)}


def task_folder(folder: Path, records: Sequence[RouteRecord], n_shards: int = 2, **changes: Any) -> Path:
    """A finished task folder, as a search writes it, with `changes` to the manifest."""
    ids = [one.id for one in records]
    values = {**PLAN, "task": records[0].task, "fingerprint": records[0].fingerprint, "ids": ids, **changes}
    check_manifest(folder, Manifest.of(values))
    size = -(-len(records) // n_shards)
    for index in range(n_shards):
        write_shard(folder, index, records[index * size : (index + 1) * size])
    return folder


reals = st.floats(width=32)
texts = st.text(st.characters(codec="utf-8"), max_size=8)


@st.composite
def any_route(draw: Any, n_layers: int) -> Route:
    """Digits, some of them with a loop behind, plain or damped."""
    route = Route(draw(st.lists(st.sampled_from([0, 1, 2]), min_size=n_layers, max_size=n_layers)))
    runs = [(first, last) for first in range(n_layers) for last in range(first, n_layers) if all(route.actions[first : last + 1])]
    if not runs or draw(st.booleans()):
        return route
    return route.loop(*draw(st.sampled_from(runs)), strength=draw(st.sampled_from([1.0, 0.5, 0.3])), times=draw(st.integers(2, 3)))


@st.composite
def any_record(draw: Any) -> RouteRecord:
    """Every field at its widest: any text, nan and infinite margins, empty and full controls and checks."""
    n, n_control, layers = draw(st.integers(1, 6)), draw(st.integers(0, 3)), draw(st.integers(1, 40))
    route = any_route(layers)
    routes = (Route.full(layers), *draw(st.lists(route, min_size=n - 1, max_size=n - 1)))

    def entries(strategy: Any, size: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(strategy, min_size=size, max_size=size)))

    read = {"strict": entries(st.booleans(), n), "lenient": entries(st.booleans(), n), "forms": entries(texts, n)}
    return RouteRecord(
        task=draw(texts),
        id=draw(texts),
        n_choices=draw(st.integers(0, 9)),
        base_correct=draw(st.booleans()),
        base_margin=draw(reals),
        chosen=draw(st.none() | st.sampled_from(routes)),
        routes=routes,
        rewards=entries(reals, n),
        margins=entries(reals, n),
        acc=entries(st.none() | st.booleans(), n),
        acc_norm=entries(st.none() | st.booleans(), n),
        seed=draw(st.integers(0, 2**63 - 1)),
        fingerprint=draw(texts),
        reward=draw(texts),
        split=draw(st.sampled_from(RECORD_SPLITS)),
        control_routes=entries(route, n_control),
        control_correct=entries(st.booleans(), n_control),
        control_margins=entries(reals, n_control),
        checks=tuple(draw(st.lists(st.builds(Check, route, texts, st.booleans(), reals), max_size=3))),
        **draw(st.sampled_from([{}, read])),
    )
