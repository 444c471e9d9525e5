"""The paper's routers (arXiv 2510.12773, section 3): one small network a block, trained on the searched routes.

Preset `paper` learns the kept path of each question, from raw states. Preset `default` keeps the routers and changes what they learn: the
shortest right path teaches the base's route, so all right paths are learned at once, each as much as its margin says; states come from the
base, since there is no one path to follow; they are scaled to unit RMS, since those entering different blocks differ in scale by up to 800
times; rare actions are weighed up; and the control is set on tune. In both, part of the fit questions is held back to print F1 on, and
routes that digits do not say (loops, strengths) are left out, since a router gives one action a block.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drllm.core.config import RoutersConfig
from drllm.core.digest import digest
from drllm.core.errors import ArtifactError
from drllm.core.files import write_text
from drllm.core.progress import Progress, say
from drllm.core.route import Action, Route
from drllm.methods.base import Method
from drllm.methods.operating_point import choose
from drllm.runs.layout import METRICS_FILE, RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from drllm.methods.base import Policy, RoutedModel, TrainingData
    from drllm.methods.training.features import Features
    from drllm.runs.records import RouteRecord

BELOW = (-0.55, -0.6, -0.65, -0.7, -0.75, -0.8)  # controls from the routers on towards skipping: for a budget


def fit(routed: RoutedModel, training_data: TrainingData, config: RoutersConfig, folder: Path) -> Policy:
    """Pool the states, then train all routers together; metrics go to `folder/metrics.jsonl`, each control's to `folder/knob.json`."""
    import torch

    from drllm.methods.training.loop import train_routers
    from drllm.policies.routers import RouterConfig

    is_soft = config.preset == "default"
    # Soft targets are of all paths that answer rightly, of the search or else of the dense matrix.
    kept = right_digits(training_data) if is_soft else kept_paths(training_data)
    wanted = [route for _, record in training_data.fit_records for route in (_right(record) if is_soft else [record.chosen]) if route]
    if n_looped := sum(not route.has_digits for route in wanted):
        say(f"routers decide one action a block: {n_looped} of {len(wanted)} right routes, which have loops, are left out")
    if not kept:
        why = f"all {n_looped} right ones have loops" if n_looped else "no question was answered rightly on any path"
        raise ArtifactError(f"the search kept no route that routers decide ({why}): search more questions, or another task")
    prompt_format = training_data.prompt_format
    along = "base" if is_soft else "kept" if config.teacher_forcing else "unforced"
    features = _features(routed, training_data, kept, config.n_windows, along)
    targets = None
    if not is_soft:
        features = dataclasses.replace(features, labels=torch.tensor([tuple(record.chosen or ()) for _, record in kept]))
    if is_soft:
        spread = training_data.margin_spread
        targets = torch.tensor(np.array([soft_target(record, config.temperature * spread[record.task]) for _, record in kept]))
        features = dataclasses.replace(features, labels=targets.argmax(-1))
    sizes = (routed.n_layers, routed.hidden_size, config.n_windows, config.width)
    router_config = RouterConfig(*sizes, config.normalized, config.shared, config.first_block, config.depth)
    lines: list[str] = []
    with Progress("train routers", config.epochs) as progress:

        def on_epoch(metrics: dict[str, Any]) -> None:
            # An action that neither labels nor predictions hold has no F1: null, for strict JSON readers.
            lines.append(json.dumps({name: None if value != value else value for name, value in metrics.items()}))
            if metrics["epoch"] == config.epochs:  # all of them stand in the file
                progress.print(epoch_line(metrics, config.epochs))
            progress.advance(1)

        held_back = torch.tensor(held_back_of([record for _, record in kept], config))
        policy = train_routers(features, held_back, config, router_config, on_epoch, targets)
    write_text(folder / METRICS_FILE, "\n".join(lines) + "\n")
    policy.prompt_format = prompt_format
    if not is_soft:
        return policy
    cheaper = [policy.with_control(control) for control in BELOW] if config.budget < 1 else []
    points = [*policy.operating_points(), *cheaper]

    def answer(ask: Any) -> Any:
        return training_data.bench.answers(ask, points, "choose the operating point")

    return choose(policy, points, answer, training_data, config.tune_questions, config.budget, folder)


def kept_features(routed: RoutedModel, training_data: TrainingData, n_windows: int) -> Features:
    """The pooled states of every fit question along its kept path: what preset paper learns from."""
    return _features(routed, training_data, kept_paths(training_data), n_windows, "kept")


def _features(
    routed: RoutedModel, training_data: TrainingData, kept: list[tuple[Any, RouteRecord]], n_windows: int, along: str
) -> Features:
    """Read back, or extracted and saved: routers of another width or loss learn from the same states.

    `along`: the "kept" path, or the base's, of the questions that preset default learns from ("base") or preset paper ("unforced").
    """
    from drllm.methods.training.features import Features, extract_features, kept_tensors

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
    found = [(question, _only_digits(record)) for question, record in training_data.fit_records]
    return [(question, record) for question, record in found if _right(record)]


def _right(record: RouteRecord) -> list[Route]:
    return [route for route, reward in zip(record.routes, record.rewards, strict=True) if reward > 0.5]


def _only_digits(record: RouteRecord) -> RouteRecord:
    return dataclasses.replace(record, routes=tuple(route for route in record.routes if route.has_digits))


def soft_target(record: RouteRecord, temperature: float) -> np.ndarray:
    """(L, C) float32: how often each action stands at each block, over a question's right paths, weighted by exp(margin / temperature).

    Rewards without margins weigh all right paths alike.
    """
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


METHOD = Method(
    "routers",
    "one small network a block, trained on the searched routes; decides digits, no loops",
    "Dr.LLM, arXiv 2510.12773",
    RoutersConfig,
    fit,
)
