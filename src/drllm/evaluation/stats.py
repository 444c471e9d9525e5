"""Paired statistics of right and wrong answers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_BOOTSTRAP_CELLS = 20_000_000  # random indices drawn at once: bounds memory


def wilson(n_right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy (Wilson 1927): (low, high)."""
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = n_right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is exact; rounding must not push it past.
    return (0.0 if n_right == 0 else centre - half), (1.0 if n_right == n else centre + half)


def paired_bootstrap(
    ours: ArrayLike, base: ArrayLike, n_resamples: int = 10_000, seed: int = 0, strata: ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of ours minus base over the same questions with its percentile bootstrap interval: (difference, low, high).

    Questions are resampled in pairs, within strata (tasks) when given.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(base, dtype=float)
    if differences.ndim != 1 or len(differences) == 0:
        raise ValueError(f"expected two equally long one-dimensional arrays of at least one question, got shape {differences.shape}")
    groups = np.zeros(len(differences)) if strata is None else np.asarray(strata)
    rng = np.random.default_rng(seed)
    sums = np.zeros(n_resamples)
    for group in np.unique(groups):
        values = differences[groups == group]
        rows = max(1, _BOOTSTRAP_CELLS // len(values))
        for start in range(0, n_resamples, rows):
            stop = min(start + rows, n_resamples)
            sums[start:stop] += values[rng.integers(0, len(values), (stop - start, len(values)))].sum(axis=1)
    low, high = np.quantile(sums / len(differences), [0.5 - level / 2, 0.5 + level / 2])
    return float(differences.mean()), float(low), float(high)


def mcnemar(ours: ArrayLike, base: ArrayLike) -> float:
    """McNemar's exact two-sided p: are the questions only one of the two answers right split evenly?"""
    right, left = np.asarray(ours, dtype=bool), np.asarray(base, dtype=bool)
    better, worse = int((right & ~left).sum()), int((left & ~right).sum())
    return 1.0 if better + worse == 0 else float(stats.binomtest(better, better + worse, 0.5).pvalue)
