"""Budgets of passes, and routes that leave blocks out. No torch."""

import math
from collections.abc import Collection

from drllm.core.route import Route


def kept_passes(budget: float, n_layers: int) -> int:
    """Passes to keep of the base's `n_layers`, at least one."""
    return max(1, int(budget * n_layers + 1e-9))


def pass_limit(budget: float, n_layers: int) -> float:
    """The most passes that a budget below 1 allows; a budget of 1 allows any number."""
    return budget * n_layers + 1e-9 if budget < 1 else math.inf


def without(n_layers: int, skipped: Collection[int]) -> Route:
    """The route that skips these blocks and runs every other one once."""
    return Route([0 if block in skipped else 1 for block in range(n_layers)])
