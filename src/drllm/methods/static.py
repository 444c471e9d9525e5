"""One route for every prompt of a task mix: the baseline that learned routing has to beat (TALE, arXiv 2510.22767).

The search has evaluated many routes on random subsets of the fit questions for nothing; the most promising are scored on all of them, and
the best is taken if its mean gain over the base is positive by one standard error. Gains are of the margin, which selects better than
verdicts do, where the reward has one.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.config import knob
from drllm.files import write_json
from drllm.methods.base import Method
from drllm.progress import Progress
from drllm.routes import Route

if TYPE_CHECKING:
    from drllm.methods.material import Material
    from drllm.model.policy import Policy
    from drllm.model.routed import RoutedModel
    from drllm.scoring import Verdict

GROUP = 32  # questions whose base states are kept at once
MIN_EVALUATIONS = 10  # a route seen on fewer questions has too wide an interval to rank


@dataclass(frozen=True)
class StaticConfig:
    """One route for every prompt."""

    candidates: int = knob(8, "routes that are scored on every fit question, the most promising of those the search has tried")


def fit(routed: RoutedModel, material: Material, config: StaticConfig, folder: Path) -> Policy:
    """Rank by the search's evaluations, score the best candidates on every fit question, keep one or the base."""
    from drllm.model.policy import RoutePolicy

    full = Route.full(routed.n_layers)
    path = folder / "candidates.json"
    key = f"{material.key}:{config.candidates}"
    table = _resume(path, key)
    if table is None:
        candidates = rank_candidates(material, full, config.candidates)
        n_questions = sum(len(task.questions) for task in material.tasks)
        gains: dict[Route, list[float]] = {route: [] for route in candidates}
        flips: dict[Route, list[int]] = {route: [] for route in candidates}
        with Progress("static routes", n_questions * (len(candidates) + 1)) as progress:
            for task in material.tasks:
                for start in range(0, len(task.questions), GROUP):
                    group = task.questions[start : start + GROUP]
                    task.scorer.load(group)
                    base = task.scorer.score([(index, full) for index in range(len(group))])
                    progress.advance(len(group))
                    for route in candidates:
                        verdicts = task.scorer.score([(index, route) for index in range(len(group))])
                        gains[route] += [gain(verdict, plain) for verdict, plain in zip(verdicts, base, strict=True)]
                        flips[route] += [int(v.correct) - int(b.correct) for v, b in zip(verdicts, base, strict=True)]
                        progress.advance(len(group))
        table = [
            {"route": str(route), "n": n_questions, "gain": float(np.mean(gains[route])), "gain_se": standard_error(gains[route]),
             "accuracy_gain": float(np.mean(flips[route]))}
            for route in candidates
        ]  # fmt: skip
        write_json(path, {"key": key, "candidates": table})
    best = max(table, key=lambda row: row["gain"] - row["gain_se"], default=None)
    policy = RoutePolicy(Route.parse(best["route"]) if best is not None and best["gain"] > best["gain_se"] else full)
    return policy


def rank_candidates(material: Material, full: Route, n: int) -> list[Route]:
    """The routes with the best lower bound (one standard error) of the mean gain among those searched on enough questions."""
    gains: dict[Route, list[float]] = defaultdict(list)
    for task in material.tasks:
        for record in task.records:
            has_margin = not math.isnan(record.base_margin)
            base = record.base_margin if has_margin else record.rewards[0]
            values = record.margins if has_margin else record.rewards
            for route, value in zip(record.routes, values, strict=True):
                if route != full:
                    gains[route].append(value - base)
    ranked = sorted(
        (
            (float(np.mean(values)) - standard_error(values), str(route), route)
            for route, values in gains.items()
            if len(values) >= MIN_EVALUATIONS
        ),
        key=lambda row: (-row[0], row[1]),
    )
    return [route for *_, route in ranked[:n]]


def gain(verdict: Verdict, base: Verdict) -> float:
    """How much better a route did than the base on one question: margin, or reward where there is none."""
    if math.isnan(base.margin):
        return float(verdict.correct) - float(base.correct)
    return verdict.margin - base.margin


def standard_error(values: list[float]) -> float:
    """Of the mean; infinite for fewer than two values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _resume(path: Path, key: str) -> list[dict] | None:
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    return saved["candidates"] if saved["key"] == key else None


METHOD = Method("static", "one route for every prompt, the best of those searched", "after TALE, arXiv 2510.22767", StaticConfig, fit)
