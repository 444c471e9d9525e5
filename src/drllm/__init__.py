"""Adaptive depth for frozen LLMs: once per prompt, skip, execute or repeat each transformer block.

The public names load on first use: importing drllm imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from drllm.core import moved

if TYPE_CHECKING:  # what type checkers read; "as" makes a name public to them
    from drllm.cli.terminal import show_progress as show_progress
    from drllm.core.config import EvaluateConfig as EvaluateConfig
    from drllm.core.config import Resources as Resources
    from drllm.core.config import RoutersConfig as RoutersConfig
    from drllm.core.config import SearchConfig as SearchConfig
    from drllm.core.errors import ArtifactError as ArtifactError
    from drllm.core.errors import DrllmError as DrllmError
    from drllm.core.errors import InputError as InputError
    from drllm.core.errors import UnsupportedModelError as UnsupportedModelError
    from drllm.core.route import Action as Action
    from drllm.core.route import Route as Route
    from drllm.evaluation.run import evaluate as evaluate
    from drllm.methods.fitting import train as train
    from drllm.model.routed import RoutedModel as RoutedModel
    from drllm.policies.policy import Policy as Policy
    from drllm.reporting.report import report as report
    from drllm.searching.runner import search as search

__version__ = "0.2.0.dev0"

_NAMES = {
    "cli.terminal": ("show_progress",),
    "core.config": ("EvaluateConfig", "Resources", "RoutersConfig", "SearchConfig"),
    "core.errors": ("ArtifactError", "DrllmError", "InputError", "UnsupportedModelError"),
    "core.route": ("Action", "Route"),
    "evaluation.run": ("evaluate",),
    "methods.fitting": ("train",),
    "model.routed": ("RoutedModel",),
    "policies.policy": ("Policy",),
    "reporting.report": ("report",),
    "searching.runner": ("search",),
}
_HOMES = {name: f"drllm.{module}" for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'drllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
