"""The least that can be lost for so many block passes. Shapes: G groups of prompts, N prompts, K routes, the base first."""

from __future__ import annotations

import numpy as np


def least_loss(losses_GK: np.ndarray, shares_G: np.ndarray, passes_K: np.ndarray, mean_passes: float) -> float:
    """The least mean loss at this mean of passes, where each group takes one route, and one group a mix of two.

    `losses_GK` is 0 along the base; `shares_G` are of all prompts. `ValueError` for fewer passes than the least that any route makes.
    """
    steps = [(slope, share * saved) for losses, share in zip(losses_GK, shares_G, strict=True) for slope, saved in _steps(losses, passes_K)]
    left, total = float(passes_K[0]) - mean_passes, 0.0
    for slope, saved in sorted(steps):
        total += slope * min(saved, left)
        left -= min(saved, left)
    if left > 1e-6:
        raise ValueError(f"no route makes as few as {mean_passes} passes")
    return total


def _steps(losses_K: np.ndarray, passes_K: np.ndarray) -> list[tuple[float, float]]:
    """From the base down the lower convex hull of (passes saved, loss): the loss a pass saved of each step, and the passes it saves."""
    saved_K, at, found = passes_K[0] - passes_K, 0, []
    while (further := np.flatnonzero(saved_K > saved_K[at])).size:
        slopes = (losses_K[further] - losses_K[at]) / (saved_K[further] - saved_K[at])
        best = further[np.lexsort((-saved_K[further], slopes))[0]]
        found.append((float(slopes.min()), float(saved_K[best] - saved_K[at])))
        at = best
    return found


def dealt_loss(losses_NK: np.ndarray, taken_N: np.ndarray) -> float:
    """The mean loss where the routes that were taken are dealt to prompts at random, over all deals."""
    shares_K = np.bincount(taken_N, minlength=losses_NK.shape[1]) / len(taken_N)
    return float(losses_NK.mean(0) @ shares_K)


def by_group(losses_NK: np.ndarray, groups_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(losses_GK, shares_G) of `least_loss`, of prompts that are told apart by their group."""
    names, counts = np.unique(groups_N, return_counts=True)
    return np.stack([losses_NK[groups_N == name].mean(0) for name in names]), counts / len(groups_N)
