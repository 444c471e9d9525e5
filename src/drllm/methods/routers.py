"""The paper's routers (arXiv 2510.12773, section 3): one small network a block, trained on the searched routes.

Preset `paper` learns the kept path of each question, from raw states. Preset `default` learns all right paths at once, each as much as its
margin says (the shortest alone teaches the base's route), also from a dense matrix; states are the base's, scaled to unit RMS, since those
of different blocks differ by up to 800 times; rare actions are weighed up; and the control is set on tune. In both, some fit questions
are held back to print F1 on, and routes that digits do not say are left out, since a router gives one action a block.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drllm.core.config import RoutersConfig
from drllm.core.digest import digest
from drllm.core.errors import ArtifactError, BudgetError, InputError
from drllm.core.files import write_json, write_text
from drllm.core.progress import Progress, say
from drllm.core.route import Action, Route
from drllm.methods.base import Method, pass_limit
from drllm.runs.layout import METRICS_FILE, POINTS_FILE, RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from drllm.methods.base import Policy, RoutedModel, TrainingData
    from drllm.methods.features import Features
    from drllm.runs.records import RouteRecord

Answered = Sequence[tuple[Sequence[Any], Sequence[Any]]]  # of each point, verdicts and routes of the questions
BELOW = (-0.55, -0.6, -0.65, -0.7, -0.75, -0.8)  # controls from the routers on towards skipping: for a budget


def fit(routed: RoutedModel, training_data: TrainingData, config: RoutersConfig, folder: Path) -> Policy:
    """Pool the states, then train all routers together; metrics go to `folder/metrics.jsonl`, each control's to `folder/knob.json`."""
    import torch

    from drllm.methods.router_training import train_routers
    from drllm.policies.routers import RouterConfig

    is_soft = config.preset == "default"
    kept = right_digits(training_data) if is_soft else kept_paths(training_data)
    wanted = [route for _, record in training_data.fit_records for route in (_right(record) if is_soft else [record.chosen]) if route]
    if n_looped := sum(not route.has_digits for route in wanted):
        say(f"routers decide one action a block: {n_looped} of {len(wanted)} right routes, which have loops, are left out")
    if not kept:
        why = f"all {n_looped} right ones have loops" if n_looped else "no question was answered rightly on any path"
        raise ArtifactError(f"the search kept no route that routers decide ({why}): search more questions, or another task")
    along = "base" if is_soft else "kept" if config.teacher_forcing else "unforced"
    features = _features(routed, training_data, kept, config.n_windows, along)
    if is_soft:
        spread = training_data.margin_spread
        targets = torch.tensor(np.array([soft_target(record, config.temperature * spread[record.task]) for _, record in kept]))
        labels = targets.argmax(-1)
    else:
        targets, labels = None, torch.tensor([tuple(record.chosen or ()) for _, record in kept])
    features = dataclasses.replace(features, labels=labels)
    sizes = (routed.n_layers, routed.hidden_size, config.n_windows, config.width)
    router_config = RouterConfig(*sizes, config.normalized, config.shared, config.first_block, config.depth)
    lines: list[str] = []
    with Progress("train routers", config.epochs) as progress:

        def on_epoch(metrics: dict[str, Any]) -> None:
            # An F1 of nan is null, for strict JSON readers.
            lines.append(json.dumps({name: None if value != value else value for name, value in metrics.items()}))
            if metrics["epoch"] == config.epochs:  # all of them stand in the file
                progress.print(epoch_line(metrics, config.epochs))
            progress.advance(1)

        held_back = torch.tensor(held_back_of([record for _, record in kept], config))
        policy = train_routers(features, held_back, config, router_config, on_epoch, targets)
    write_text(folder / METRICS_FILE, "\n".join(lines) + "\n")
    policy.prompt_format = training_data.prompt_format
    if not is_soft:
        return policy
    cheaper = [policy.with_control(control) for control in BELOW] if config.budget < 1 else []
    points = [*policy.operating_points(), *cheaper]

    def answer(ask: Any) -> Any:
        return training_data.bench.answers(ask, points, "choose the operating point")

    return choose_point(policy, points, answer, training_data, config.tune_questions, config.budget, folder)


def kept_features(routed: RoutedModel, training_data: TrainingData, n_windows: int) -> Features:
    """The pooled states of every fit question along its kept path: what preset paper learns from."""
    return _features(routed, training_data, kept_paths(training_data), n_windows, "kept")


def _features(
    routed: RoutedModel, training_data: TrainingData, kept: list[tuple[Any, RouteRecord]], n_windows: int, along: str
) -> Features:
    """Read back, or extracted and saved: routers of another width or loss learn from the same states.

    `along`: the "kept" path, or the base's, of questions of preset default ("base") or paper ("unforced").
    """
    from drllm.methods.features import Features, extract_features, kept_tensors

    def extract() -> dict[str, Tensor]:
        labels = [record.chosen or record.routes[0] if along == "kept" else Route.full(routed.n_layers) for _, record in kept]
        prompts = [question.context_ids for question, _ in kept]
        return vars(extract_features(routed, prompts, labels, n_windows, training_data.max_step_tokens))

    cache = RunFolder(training_data.run).features / f"{along}-{n_windows}.safetensors"
    key = f"{training_data.key}:{n_windows}:{routed.model.dtype}"
    return Features(*kept_tensors(cache, key, ("pooled", "valid", "labels"), extract))


def kept_paths(training_data: TrainingData) -> list[tuple[Any, RouteRecord]]:
    """The searched fit questions with the path that the search kept, where it kept one that digits say."""
    if not training_data.search_manifests and training_data.path_manifests:
        lacking = f"{training_data.run} holds no tree search, which preset paper learns from"
        raise ArtifactError(f"{lacking}: run `drllm search` without --paths first")
    found = training_data.fit_records
    return [(question, record) for question, record in found if record.chosen is not None and record.chosen.has_digits]


def right_digits(training_data: TrainingData) -> list[tuple[Any, RouteRecord]]:
    """The fit questions with a right route that digits say, and of their records only such routes."""
    found = []
    for question, record in training_data.fit_records:
        record = dataclasses.replace(record, routes=tuple(route for route in record.routes if route.has_digits))
        found += [(question, record)] if _right(record) else []
    return found


def _right(record: RouteRecord) -> list[Route]:
    return [route for route, reward in zip(record.routes, record.rewards, strict=True) if reward > 0.5]


def soft_target(record: RouteRecord, temperature: float) -> np.ndarray:
    """(L, C) float32: how often each action stands at each block, over right paths weighted by exp(margin / temperature)."""
    right = [place for place, reward in enumerate(record.rewards) if reward > 0.5]
    margins = np.array([record.margins[place] for place in right])
    logits = np.zeros(len(right)) if np.isnan(margins).any() else (margins - margins.max()) / temperature
    weights = np.exp(logits) / np.exp(logits).sum()
    target = np.zeros((len(record.routes[0]), len(Action)), dtype=np.float32)
    for place, weight in zip(right, weights, strict=True):
        target[np.arange(len(target)), [int(action) for action in record.routes[place]]] += weight
    return target


def epoch_line(metrics: dict[str, Any], n_epochs: int) -> str:
    """One epoch in a line: loss, F1 of each action and their mean, passes; in brackets on the held-back records."""
    line = f"epoch {metrics['epoch']}/{n_epochs}: loss {metrics['loss']:.4f}"
    shown = {"macro_f1": "macro-F1", "f1_skip": "skip", "f1_execute": "execute", "f1_repeat": "repeat", "mean_passes": "passes"}
    for name, label in shown.items():
        digits = 2 if name == "mean_passes" else 3
        line += f", {label} {metrics[name]:.{digits}f}" + (f" ({metrics[f'val_{name}']:.{digits}f})" if f"val_{name}" in metrics else "")
    return line


def held_back_of(records: Sequence[RouteRecord], config: RoutersConfig) -> list[bool]:
    """Which records are only measured on: `held_out` of each task, drawn by their ids; of fewer than twice as many, half."""
    by_task: dict[str, list[str]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record.id)
    held = set[tuple[str, str]]()
    for task, ids in by_task.items():
        drawn = sorted(ids, key=lambda name: digest(f"val:{config.seed}:{name}"))
        held.update((task, name) for name in drawn[: min(config.held_out, len(ids) // 2)])
    return [(record.task, record.id) in held for record in records]


def choose_point(
    made: Any,
    points: Sequence[Any],
    answer: Callable[[Any], Answered],
    training_data: TrainingData,
    n_questions: int,
    budget: float,
    folder: Path,
) -> Any:
    """The point that is best on `n_questions` tune questions a task within the budget, by what `answer` gives; the first of equal ones.

    The table goes to `folder/knob.json`. Without tune questions, what was made, as it is.
    """
    (folder / POINTS_FILE).unlink(missing_ok=True)  # of an earlier training
    tune = training_data.tune(n_questions) if n_questions else []
    if not tune:
        if budget < 1:
            raise InputError("there is no tune question to keep the budget on: search data with a validation part, or give tune_questions")
        return made
    answers: list[list[tuple[bool, float]]] = [[] for _ in points]  # verdict and passes of each question
    for ask in tune:
        for found, (verdicts, routes) in zip(answers, answer(ask), strict=True):
            found += [(verdict.correct, route.n_passes) for verdict, route in zip(verdicts, routes, strict=True)]
    table: list[dict[str, Any]] = []
    for index, found in enumerate(answers):
        correct, passes = zip(*found, strict=True)
        table.append({"point": index, "accuracy": float(np.mean(correct)), "mean_passes": float(np.mean(passes)), "n": len(found)})
    write_json(folder / POINTS_FILE, {"points": table})
    limit = pass_limit(budget, made.n_layers)
    within = [row for row in table if row["mean_passes"] <= limit]
    if not within:
        least = min(row["mean_passes"] for row in table)
        spent = f"spends at least {least:.1f} passes on tune, above the budget of {limit:.1f}"
        raise BudgetError(f"a {made.name!r} policy {spent}: raise --budget")
    chosen = points[max(within, key=lambda row: (row["accuracy"], -row["point"]))["point"]]
    chosen.prompt_format = made.prompt_format
    return chosen


ABOUT = "one small network a block, trained on the searched routes; decides digits, no loops"
METHOD = Method("routers", ABOUT, "Dr.LLM, arXiv 2510.12773", RoutersConfig, fit)
