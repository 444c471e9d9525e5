"""What a method is, which there are, and budgets of passes. No torch: a method's file imports what is heavy inside `fit`."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.errors import InputError, first_line
from drllm.core.names import did_you_mean
from drllm.core.route import Route

if TYPE_CHECKING:  # the types of every method's `fit`, which its file takes from here
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy

ENTRY_POINTS = "drllm.methods"  # the group under which other packages register theirs: name = "module:METHOD"


@dataclass(frozen=True)
class Method:
    """A way to turn a run's records into a policy.

    Attributes:
        name: what `--method` calls it; also the folder of its policy in a run and its section in a YAML file.
        about: one line for `drllm methods`.
        paper: where it is from.
        config: a frozen dataclass of `option` fields: its options, flags and defaults.
        fit: (model, training_data, options, folder for metrics and caches) -> policy. It may read the fit and tune splits only.
        evaluate_only: its policy can be compared, and neither generates nor is promised anything.
        policy_module: what to import for the class of its policies, where that is neither in drllm nor in the method's own file.
    """

    name: str
    about: str
    paper: str
    config: type
    fit: Callable[[RoutedModel, TrainingData, Any, Path], Policy]
    evaluate_only: bool = False
    policy_module: str = ""


BUILT_IN = {
    "routers": "drllm.methods.routers:METHOD",
    "codebook": "drllm.methods.codebook:METHOD",
    "polar": "drllm.methods.polar:METHOD",
    "static": "drllm.methods.static:METHOD",
    "tale": "drllm.methods.tale:METHOD",
    "shortgpt": "drllm.methods.shortgpt:METHOD",
    "early_exit": "drllm.methods.blind_skips:EARLY_EXIT",
    "random_skip": "drllm.methods.blind_skips:RANDOM_SKIP",
    "mindskip": "drllm.methods.rivals.fit:MINDSKIP",
    "flexidepth": "drllm.methods.rivals.fit:FLEXIDEPTH",
    "oracle": "drllm.methods.oracle:METHOD",
    "random_codebook": "drllm.methods.blind_codebooks:RANDOM_CODEBOOK",
    "input_blind": "drllm.methods.blind_codebooks:INPUT_BLIND",
}


def method_names() -> tuple[str, ...]:
    """Drllm's own methods, then those of installed packages."""
    others = sorted(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))
    return (*BUILT_IN, *(name for name in others if name not in BUILT_IN))


def get_method(name: str) -> Method:
    """The method of that name; `InputError` with the closest name, or when a package's entry point gives no method."""
    if name not in BUILT_IN:
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
            try:
                found = point.load()
            except (ImportError, AttributeError, SyntaxError) as error:
                raise InputError(
                    f"method {name!r} cannot be loaded from {point.value} ({first_line(error)}): update or remove that package"
                ) from None
            if not isinstance(found, Method):
                raise InputError(f"method {name!r}: {point.value} is a {type(found).__name__}, expected a drllm.methods.base.Method")
            return found
        raise InputError(f"unknown method {name!r}{did_you_mean(name, method_names())}; choose from {', '.join(method_names())}")
    module, _, attribute = BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def import_policies() -> dict[str, str]:
    """Import every method, and with it the class of the policy that it trains; returns name and reason of those that cannot be loaded."""
    broken = {}
    for name in method_names():
        try:
            if module := get_method(name).policy_module:
                importlib.import_module(module)
        except (InputError, ImportError) as error:
            broken[name] = str(error)
    return broken


def method_of(config: Any) -> Method:
    """The method whose options these are."""
    found = next((method for method in map(get_method, method_names()) if type(config) is method.config), None)
    if found is not None:
        return found
    raise InputError(f"{type(config).__name__} holds the options of no method; known are {', '.join(method_names())}")


def kept_passes(budget: float, n_layers: int) -> int:
    """Passes to keep of the base's `n_layers`, at least one."""
    return max(1, int(budget * n_layers + 1e-9))


def pass_limit(budget: float, n_layers: int) -> float:
    """The most passes that a budget below 1 allows; a budget of 1 allows any number."""
    return budget * n_layers + 1e-9 if budget < 1 else math.inf


def without(n_layers: int, skipped: Collection[int]) -> Route:
    """The route that skips these blocks and runs every other one once."""
    return Route([0 if block in skipped else 1 for block in range(n_layers)])
