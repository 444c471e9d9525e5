"""What a method is, which there are, and budgets of passes. No torch: a method's file imports what is heavy inside `fit`."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.errors import InputError
from drllm.core.names import METHODS, did_you_mean, load_plugin, plugin_names
from drllm.core.route import Route

if TYPE_CHECKING:  # the types of every method's `fit`, which its file takes from here
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


@dataclass(frozen=True)
class Method:
    """A way to turn a run's records into a policy."""

    name: str  # what `--method` calls it; also the folder of its policy in a run and its section in a YAML file
    about: str  # one line for `drllm methods`
    paper: str  # where it is from
    config: type  # a frozen dataclass of `option` fields: its options, flags and defaults
    # (model, training_data, options, folder for metrics and caches) -> policy. It may read the fit and tune splits only.
    fit: Callable[[RoutedModel, TrainingData, Any, Path], Policy]


BUILT_IN = {
    "routers": "drllm.methods.routers:METHOD",
    "codebook": "drllm.methods.codebook:METHOD",
    "static": "drllm.methods.static:METHOD",
}


def method_names() -> tuple[str, ...]:
    return (*BUILT_IN, *(name for name in plugin_names(METHODS) if name not in BUILT_IN))


def get_method(name: str) -> Method:
    """`InputError` with the closest name, or when a package's entry point gives no method."""
    if name in BUILT_IN:
        return pkgutil.resolve_name(BUILT_IN[name])
    found = load_plugin(METHODS, name)
    if found is None:
        raise InputError(f"unknown method {name!r}{did_you_mean(name, method_names())}; choose from {', '.join(method_names())}")
    if not isinstance(found, Method):
        raise InputError(f"method {name!r}: its entry point gives a {type(found).__name__}, expected a drllm.methods.base.Method")
    return found


def method_of(config: Any) -> Method:
    for method in map(get_method, method_names()):
        if type(config) is method.config:
            return method
    raise InputError(f"{type(config).__name__} holds the options of no method; known are {', '.join(method_names())}")


def pass_limit(budget: float, n_layers: int) -> float:
    """The most passes that a budget below 1 allows; a budget of 1 allows any number."""
    return budget * n_layers + 1e-9 if budget < 1 else math.inf


def without(n_layers: int, skipped: Collection[int]) -> Route:
    """The route that skips these blocks and runs every other one once."""
    return Route([0 if block in skipped else 1 for block in range(n_layers)])
