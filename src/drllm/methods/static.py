"""One route for every prompt of a task mix: the baseline that learned routing has to beat.

TALE (arXiv 2510.22767) deletes blocks greedily by validation accuracy; here repeats are allowed too, margins select, which are steadier
than verdicts, and a route is taken only if questions that did not choose it confirm it: the best of many, chosen and judged on the same
questions, gains nothing on others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.digest import json_digest
from drllm.core.errors import InputError
from drllm.core.files import write_json
from drllm.core.options import Options, option
from drllm.core.route import Route
from drllm.methods.base import Method, pass_limit
from drllm.methods.matrix import mixed_gain
from drllm.runs.layout import CANDIDATES_FILE

if TYPE_CHECKING:
    from drllm.methods.base import Policy, RoutedModel, TrainingData

MIN_EVALUATIONS = 10  # a route seen on fewer questions has too wide an interval to rank
CANDIDATES = 8  # routes scored on every fit question, the most promising of those tried
CONFIDENCE = 0.9  # one-sided, with which held-back fit questions must confirm the best


@dataclass(frozen=True)
class StaticConfig(Options):
    margin_weight: float = option(0.5, "share of a gain that is the margin's, in standard deviations; the rest: the verdict's", ge=0, le=1)
    use_tune: bool = option(False, "take the route of a dense matrix that is best on fit and tune questions together")
    budget: float = option(1.0, "passes to spend at most, as a share of the base's; below 1 the best such route is taken", ge=0.1, le=1)


def fit(routed: RoutedModel, training_data: TrainingData, config: StaticConfig, folder: Path) -> Policy:
    """The best route within the budget, the base's where it is not confirmed; every route scored stands in `folder/candidates.json`."""
    limit = pass_limit(config.budget, routed.n_layers)
    if config.use_tune:
        best = best_of_matrix(training_data, lambda passes: passes <= limit, config.margin_weight)  # the base is one where it keeps it
        if best is None:
            raise InputError(f"no route of the matrix spends at most {limit:.1f} passes, the budget: add shorter routes")
        return training_data.constant(best)
    full, shortens = Route.full(routed.n_layers), config.budget < 1
    held_back = np.array([is_held_back(prompt) and not shortens for prompt in training_data.prompts])
    options = [route for route in rank_candidates(training_data, full, config) if route.n_passes <= limit][:CANDIDATES]
    if not options and shortens:
        seen = f"no route of at most {limit:.1f} passes, the budget, was tried on {MIN_EVALUATIONS} fit questions"
        raise InputError(f"{seen}: search more questions, or a list with shorter routes (--paths)")
    correct, margins = training_data.score([full, *options], label="static routes")
    spread = [training_data.margin_spread[question.task.name] for task in training_data.fit_tasks for question in task.questions]
    gained_NR = mixed_gain(margins, correct, np.array(spread)[:, None], config.margin_weight)
    gains = dict(zip([full, *options], gained_NR.T, strict=True))
    rows = [(str(route), len(gain), float(gain.mean()), _standard_error(gain)) for route, gain in gains.items()]
    write_json(folder / CANDIDATES_FILE, {"candidates": [dict(zip(("route", "n", "gain", "gain_se"), row, strict=True)) for row in rows]})
    best = max(options, key=lambda route: lower_mean(gains[route][~held_back]), default=full)
    is_taken = shortens or confirmed(gains[best][~held_back], gains[best][held_back], CONFIDENCE)
    return training_data.constant(best if is_taken else full)


def best_of_matrix(training_data: TrainingData, allowed: Callable[[np.ndarray], np.ndarray], margin_weight: float) -> Route | None:
    """The route whose gain on fit and tune questions has the highest lower bound, of those whose passes (R,) are allowed; None of none."""
    fit, tune = training_data.fit_and_tune()
    gains = np.concatenate([part.mixed_gains(margin_weight) for part in (fit, tune)])
    places = np.flatnonzero(allowed(fit.passes()))
    return fit.routes[max(places, key=lambda place: lower_mean(gains[:, place]))] if len(places) else None


def rank_candidates(training_data: TrainingData, full: Route, config: StaticConfig) -> list[Route]:
    """Every route tried on enough fit questions, by the lower bound of its mean gain over the base.

    Questions that are to confirm one have no say in which are ranked; a budget needs none.
    """
    gains: dict[Route, list[float]] = defaultdict(list)
    for task in training_data.tasks if training_data.search_manifests else ():
        for question, record in zip(task.questions, task.records, strict=True):
            if config.budget == 1 and is_held_back(question.context_ids):
                continue
            margins, right = np.array(record.margins), np.array(record.rewards) > 0.5
            values = mixed_gain(margins, right, training_data.margin_spread[record.task], config.margin_weight)
            for route, value in zip(record.routes, values, strict=True):
                gains[route].append(float(value))
    if training_data.path_manifests:
        matrix = training_data.matrix()
        spread = np.array([training_data.margin_spread.get(task, 1.0) for task in matrix.tasks])[:, None]
        choosing = np.array([not (config.budget == 1 and is_held_back(prompt)) for prompt in matrix.prompts])
        values = mixed_gain(matrix.margins, matrix.correct, spread, config.margin_weight)
        for place, route in enumerate(matrix.routes):
            gains[route] += values[choosing, place].tolist()
    known = {route: np.array(values) for route, values in gains.items() if route != full and len(values) >= MIN_EVALUATIONS}
    return sorted(known, key=lambda route: (-lower_mean(known[route]), str(route)))


def is_held_back(prompt: Sequence[int]) -> bool:
    """Whether a fit question only confirms a route; by its tokens, so that equal questions stand on one side."""
    return int(json_digest(list(prompt))[:2], 16) % 2 == 1


def confirmed(chosen_on: np.ndarray, held_back: np.ndarray, confidence: float) -> bool:
    """Whether a route gains where it was chosen and, with one-sided confidence, where it was not."""
    from scipy import stats

    if chosen_on.mean() <= 0:
        return False
    return len(held_back) > 1 and float(held_back.mean()) > float(stats.norm.ppf(confidence)) * _standard_error(held_back)


def lower_mean(values: np.ndarray) -> float:
    return float(values.mean()) - _standard_error(values)


def _standard_error(values: np.ndarray) -> float:
    """Of the mean; infinite for fewer than two values."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


ABOUT = "one route for every prompt, confirmed on held-back questions"
METHOD = Method("static", ABOUT, "after TALE, arXiv 2510.22767", StaticConfig, fit)
