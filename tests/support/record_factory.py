"""Records, manifests and task folders made by hand, for a model of four blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from drllm.core.route import Route
from drllm.runs.manifest import Manifest, check_manifest
from drllm.runs.records import RECORD_SPLITS, Check, RouteRecord, store_of, write_shard
from drllm.runs.store import Asked, Conditions, Verdict

ROUTES = tuple(Route.parse(text) for text in ("1111", "0111", "1121", "1001"))
CONDITIONS = Conditions("f00d", "torch.float32", "loglik", "", "cpu, 512 tokens a step")
PLAN = {
    "task": "arc_easy",
    "data": None,
    "model": "tiny",
    "fingerprint": "f00d",
    "questions": "d1ge57",
    "config": {"seed": 0, "n_simulations": 50},
    "ids": ["q1", "q2", "q3"],
}


def verdict(correct: bool, margin: float = math.nan) -> Verdict:
    """Of choices, the same by both metrics."""
    margin = np.float32(margin).item()
    return Verdict(correct, margin, correct, correct, None, margin, margin)


def record(
    task: str = "arc_easy",
    name: str = "q1",
    base: float = 0.0,
    others: tuple[float, ...] = (1.0,),
    split: str = "fit",
    fingerprint: str = "f00d",
    reward: str = "loglik",
    routes: Sequence[Route] = (),
    verdicts: dict[Route, Verdict] | None = None,
    **changes: Any,
) -> RouteRecord:
    """A record whose last right route is chosen; `changes` replace any other field, `verdicts` are added."""
    rewards = (base, *others)
    routes, conditions = tuple(routes) or ROUTES[: len(rewards)], replace(CONDITIONS, weights=fingerprint, reward=reward)
    chosen = next((route for route, reward in zip(routes[::-1], rewards[::-1], strict=True) if reward == 1.0), None)
    found = {route: verdict(reward == 1.0, reward - 0.3) for route, reward in zip(routes, rewards, strict=True)} | (verdicts or {})
    asked = Asked(task, split, name, f"{task}:{name}")
    return replace(RouteRecord(asked, conditions, "acc_norm", 5, chosen, routes, found), **changes)


def full_record(name: str = "q1", verdicts: dict[Route, Verdict] | None = None, **changes: Any) -> RouteRecord:
    """A record with a control, checks, and margins that do not exist."""
    return record(
        name=name,
        verdicts={ROUTES[3]: verdict(False, -2.5), ROUTES[2]: verdict(True)} | (verdicts or {}),
        control_routes=(ROUTES[3], ROUTES[2]),
        checks=(Check(ROUTES[0], "fp32:acc", True, 0.25), Check(ROUTES[1], "template:acc", False, math.nan)),
        **changes,
    )


def control(*correct: bool) -> dict[str, Any]:
    """The fields of a control with these verdicts, along routes that no search of these records tries."""
    routes = tuple(Route.parse(text) for text in ("2111", "1211", "1112", "2211", "1122")[: len(correct)])
    return {"control_routes": routes, "verdicts": {route: verdict(one, 0.5) for route, one in zip(routes, correct, strict=True)}}


def write_verdicts(run: Path, records: Sequence[RouteRecord], name: str = "made") -> None:
    """Their verdicts into a run's store."""
    by_conditions: dict[Conditions, list[Any]] = {}
    for one in records:
        by_conditions.setdefault(one.conditions, []).extend((one.asked, route, found) for route, found in one.verdicts.items())
    for index, (conditions, rows) in enumerate(by_conditions.items()):
        store_of(run / "search" / "task").write(f"{name}-{index}", conditions, rows)


def task_folder(folder: Path, records: Sequence[RouteRecord], n_shards: int = 2, **changes: Any) -> Path:
    """A finished task folder, as a search writes it, with `changes` to the manifest; its verdicts go to the store of the run above."""
    asked = [one.asked for one in records]
    about = {"ids": [one.id for one in asked], "asked": [one.question for one in asked], "splits": [one.split for one in asked]}
    first = records[0]
    about |= {"conditions": asdict(first.conditions), "counts": first.counts, "fingerprint": first.fingerprint, "task": first.task}
    check_manifest(folder, Manifest.of({**PLAN, **about, **changes}))
    run = folder.resolve().parents[1]
    write_verdicts(run, records, f"{folder.parent.name}-{folder.name}")
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
def any_verdict(draw: Any) -> Verdict:
    """Of choices, or of a generated answer with or without two readers."""
    kind = draw(st.sampled_from(["compared", "read", "plain"]))
    flag = st.booleans()
    if kind == "compared":
        acc, acc_norm, plain, normal = draw(flag), draw(flag), draw(reals), draw(reals)
        return Verdict(acc_norm, normal, acc, acc_norm, None, plain, normal, broken=draw(flag))
    if kind == "read":
        lenient, n_new = draw(flag), draw(st.integers(0, 99))
        return Verdict(lenient, strict=draw(flag), lenient=lenient, form=draw(st.sampled_from(["asked", "unclosed", "other"])), n_new=n_new)
    return Verdict(draw(flag), f1=draw(st.just(math.nan) | st.floats(0, 1, width=32)))


@st.composite
def any_record(draw: Any) -> RouteRecord:
    """Every field at its widest: any text, nan and infinite margins, empty and full controls and checks."""
    n, n_control, layers = draw(st.integers(1, 6)), draw(st.integers(0, 3)), draw(st.integers(1, 40))
    route = any_route(layers)
    routes = tuple(dict.fromkeys((Route.full(layers), *draw(st.lists(route, min_size=n - 1, max_size=n - 1)))))
    control_routes = tuple(draw(st.lists(route, min_size=n_control, max_size=n_control)))
    return RouteRecord(
        asked=Asked(draw(texts), draw(st.sampled_from(RECORD_SPLITS)), draw(texts), draw(texts)),
        conditions=Conditions(*(draw(texts) for _ in range(5))),
        counts="acc_norm",
        seed=draw(st.integers(0, 2**63 - 1)),
        chosen=draw(st.none() | st.sampled_from(routes)),
        routes=routes,
        verdicts={one: verdict(draw(st.booleans()), draw(reals)) for one in (*routes, *control_routes)},
        control_routes=control_routes,
        checks=tuple(draw(st.lists(st.builds(Check, route, texts, st.booleans(), reals), max_size=3))),
    )
