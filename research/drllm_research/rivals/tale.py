"""TALE (arXiv 2510.22767): delete the block whose loss costs the least accuracy, again and again; one route for every prompt."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.files import write_json
from drllm.core.options import Options, option
from drllm.core.route import Route
from drllm.methods.base import Method, pass_limit
from drllm.runs.layout import STEPS_FILE

if TYPE_CHECKING:
    from drllm.methods.base import Policy, RoutedModel, TrainingData


@dataclass(frozen=True)
class TaleConfig(Options):
    questions: int = option(128, "fit questions a task that accuracies are taken on", ge=1)
    budget: float = option(1.0, "passes to go down to, as a share of the base's; 1: until accuracy falls below its best", ge=0.1, le=1)


def fit(routed: RoutedModel, training_data: TrainingData, config: TaleConfig, folder: Path) -> Policy:
    """Each step scores every single deletion; those done stand in `folder/steps.json`."""
    done: list[dict[str, Any]] = []  # the base, then the best deletion of each step
    current, best = Route.full(routed.n_layers), 0.0
    limit = 1 if config.budget == 1 else pass_limit(config.budget, routed.n_layers)
    for at in itertools.count():
        options = [current.edit(block, 0) for block, action in enumerate(current) if action] if at else [current]
        accuracies = training_data.score(options, config.questions, f"tale, step {at}" if at else "tale, the base")[0].mean(0)
        place = int(accuracies.argmax())
        done.append({"route": str(options[place]), "accuracy": float(accuracies[place])})
        write_json(folder / STEPS_FILE, {"steps": done})
        if at and config.budget == 1 and done[at]["accuracy"] < best:
            break
        current, best = options[place], max(best, done[at]["accuracy"])
        if current.n_passes <= limit:
            break
    return training_data.constant(current)


METHOD = Method("tale", "blocks deleted greedily by fit accuracy; one route", "TALE, arXiv 2510.22767", TaleConfig, fit)
