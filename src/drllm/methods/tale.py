"""TALE (arXiv 2510.22767): delete the block whose loss costs the least accuracy, again and again; one route for every prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.config import check_range, knob
from drllm.files import write_json
from drllm.methods.base import Method
from drllm.routes import Route

if TYPE_CHECKING:
    from drllm.methods.material import Material
    from drllm.model.policy import Policy
    from drllm.model.routed import RoutedModel


@dataclass(frozen=True)
class TaleConfig:
    """Greedy deletion by accuracy."""

    questions: int = knob(128, "fit questions a task that accuracies are taken on")
    budget: float = knob(1.0, "passes to go down to, as a share of the base's; 1: as long as accuracy does not fall below the best so far")

    def __post_init__(self) -> None:
        for name, low, high in (("questions", 1, None), ("budget", 0.1, 1)):
            check_range(self, name, low, high)


def fit(routed: RoutedModel, material: Material, config: TaleConfig, folder: Path) -> Policy:
    """Each step scores every single deletion; the path stands in `folder/steps.json`."""
    from drllm.model.policy import RoutePolicy

    current = Route.full(routed.n_layers)
    correct, _ = material.score([current], config.questions, "tale, the base")
    best = float(correct.mean())
    steps: list[dict[str, Any]] = [{"route": str(current), "accuracy": best}]
    limit = config.budget * routed.n_layers + 1e-9
    while current.n_passes > 1 and (config.budget == 1 or current.n_passes > limit):
        shorter = [current.edit(block, 0) for block, action in enumerate(current) if action]
        correct, _ = material.score(shorter, config.questions, f"tale, step {len(steps)}")
        accuracies = correct.mean(0)
        place = int(accuracies.argmax())
        if config.budget == 1 and accuracies[place] < best:
            break
        current, best = shorter[place], max(best, float(accuracies[place]))
        steps.append({"route": str(current), "accuracy": float(accuracies[place])})
    write_json(folder / "steps.json", {"steps": steps})
    policy = RoutePolicy(current)
    policy.prompt_format = None if current.is_full else material.prompt_format
    return policy


METHOD = Method("tale", "blocks deleted greedily by fit accuracy; one route", "TALE, arXiv 2510.22767", TaleConfig, fit)
