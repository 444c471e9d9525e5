"""Adaptive depth for frozen LLMs: once per prompt, skip, execute or repeat each transformer block.

The public names load on first use: importing drllm imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers read
    from drllm.cli.terminal import show_progress
    from drllm.core.config import EvaluateConfig, HealConfig, Resources, RoutersConfig, ScanConfig, SearchConfig
    from drllm.core.errors import ArtifactError, DrllmError, InputError, UnsupportedModelError
    from drllm.core.route import Action, Route
    from drllm.evaluation.run import evaluate
    from drllm.healing.heal import heal
    from drllm.methods.fitting import train
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy
    from drllm.reporting.report import report
    from drllm.scanning.scan import scan
    from drllm.searching.runner import search

__all__ = [
    "Action",
    "ArtifactError",
    "DrllmError",
    "EvaluateConfig",
    "HealConfig",
    "InputError",
    "Policy",
    "Resources",
    "Route",
    "RoutedModel",
]
__all__ += ["RoutersConfig", "ScanConfig", "SearchConfig", "UnsupportedModelError", "evaluate", "heal", "report", "scan", "search"]
__all__ += ["show_progress", "train"]

__version__ = "0.2.0.dev0"

_NAMES = {
    "cli.terminal": ("show_progress",),
    "core.config": ("EvaluateConfig", "HealConfig", "Resources", "RoutersConfig", "ScanConfig", "SearchConfig"),
    "core.errors": ("ArtifactError", "DrllmError", "InputError", "UnsupportedModelError"),
    "core.route": ("Action", "Route"),
    "evaluation.run": ("evaluate",),
    "healing.heal": ("heal",),
    "methods.fitting": ("train",),
    "model.routed": ("RoutedModel",),
    "policies.policy": ("Policy",),
    "reporting.report": ("report",),
    "scanning.scan": ("scan",),
    "searching.runner": ("search",),
}
_HOMES = {name: f"drllm.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'drllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
