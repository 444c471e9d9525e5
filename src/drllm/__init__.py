"""Adaptive depth for frozen LLMs: once per prompt, skip, execute or repeat each transformer block.

The public names load on first use: importing drllm imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drllm.core import moved

if TYPE_CHECKING:
    from drllm.core.config import EvaluateConfig, Resources, RoutersConfig, SearchConfig
    from drllm.core.errors import ArtifactError, DrllmError, InputError, UnsupportedModelError
    from drllm.core.route import Action, Route
    from drllm.evaluation.run import evaluate
    from drllm.methods.fitting import train
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy
    from drllm.reporting.report import report
    from drllm.searching.runner import search

__version__ = "0.1.0"

_HOMES = {
    "Action": "drllm.core.route",
    "ArtifactError": "drllm.core.errors",
    "DrllmError": "drllm.core.errors",
    "EvaluateConfig": "drllm.core.config",
    "InputError": "drllm.core.errors",
    "Policy": "drllm.policies.policy",
    "Resources": "drllm.core.config",
    "Route": "drllm.core.route",
    "RoutedModel": "drllm.model.routed",
    "RoutersConfig": "drllm.core.config",
    "SearchConfig": "drllm.core.config",
    "UnsupportedModelError": "drllm.core.errors",
    "evaluate": "drllm.evaluation.run",
    "report": "drllm.reporting.report",
    "search": "drllm.searching.runner",
    "train": "drllm.methods.fitting",
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


moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'drllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
