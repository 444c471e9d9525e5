"""Adaptive depth for frozen LLMs: once per prompt, skip, execute or repeat each transformer block.

The public names load on first use: importing drllm imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drllm.config import EvaluateConfig, Resources, RoutersConfig, SearchConfig
    from drllm.errors import ArtifactError, DrllmError, InputError, UnsupportedModelError
    from drllm.evaluation.run import evaluate
    from drllm.methods.material import train
    from drllm.model.policy import Policy
    from drllm.model.routed import RoutedModel
    from drllm.reporting.report import report
    from drllm.routes import Action, Route
    from drllm.searching.runner import search

__version__ = "0.1.0"

_HOMES = {
    "Action": "drllm.routes",
    "ArtifactError": "drllm.errors",
    "DrllmError": "drllm.errors",
    "EvaluateConfig": "drllm.config",
    "InputError": "drllm.errors",
    "Policy": "drllm.model.policy",
    "Resources": "drllm.config",
    "Route": "drllm.routes",
    "RoutedModel": "drllm.model.routed",
    "RoutersConfig": "drllm.config",
    "SearchConfig": "drllm.config",
    "UnsupportedModelError": "drllm.errors",
    "evaluate": "drllm.evaluation.run",
    "report": "drllm.reporting.report",
    "search": "drllm.searching.runner",
    "train": "drllm.methods.material",
}

__all__ = [
    "Action",
    "ArtifactError",
    "DrllmError",
    "EvaluateConfig",
    "InputError",
    "Policy",
    "Resources",
    "Route",
    "RoutedModel",
    "RoutersConfig",
    "SearchConfig",
    "UnsupportedModelError",
    "evaluate",
    "report",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'drllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
