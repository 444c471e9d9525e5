"""Paired statistics of right and wrong answers."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

SIGNIFICANT = 0.05
LEVEL = 0.95  # of every interval
_BOOTSTRAP_CELLS = 4_000_000  # random indices drawn at once: bounds memory to about 64 MB


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of an accuracy (Wilson 1927): (low, high); (0, 1) without any question."""
    if not 0 <= n_right <= n:
        raise ValueError(f"expected 0 <= right answers <= questions, got {n_right} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    share = n_right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is exact; rounding must not push it past.
    return (0.0 if n_right == 0 else centre - half), (1.0 if n_right == n else centre + half)


def paired_bootstrap(
    ours: ArrayLike, base: ArrayLike, n_resamples: int = 10_000, seed: int = 0, strata: ArrayLike | None = None
) -> tuple[float, float, float]:
    """Mean of ours minus base with its 95 % percentile bootstrap interval: (difference, low, high); the same seed gives the same.

    Args:
        ours, base: verdicts (0 / 1) or scores of the same questions in the same order, shape [N].
        strata: the task of each question, shape [N]; questions are resampled in pairs within their task, so task sizes stay fixed.
    """
    ours, base = _paired(ours, base)
    differences = ours - base
    groups = np.zeros(len(differences)) if strata is None else np.asarray(strata)
    if groups.shape != differences.shape:
        raise ValueError(f"expected one stratum a question, got shape {groups.shape} for {len(differences)} questions")
    if n_resamples < 1:
        raise ValueError(f"expected at least one resample, got {n_resamples}")
    rng = np.random.default_rng(seed)
    sums = np.zeros(n_resamples)
    for group in np.unique(groups):
        values = differences[groups == group]
        rows = max(1, _BOOTSTRAP_CELLS // len(values))
        for start in range(0, n_resamples, rows):
            stop = min(start + rows, n_resamples)
            sums[start:stop] += values[rng.integers(0, len(values), (stop - start, len(values)))].sum(axis=1)
    low, high = np.quantile(sums / len(differences), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(differences.mean()), float(low), float(high)


def discordant(ours: ArrayLike, base: ArrayLike) -> tuple[int, int]:
    """Questions that only one of the two answers right: (better: ours alone, worse: base alone)."""
    right, left = _paired(ours, base)
    return int(((right != 0) & (left == 0)).sum()), int(((left != 0) & (right == 0)).sum())


def mcnemar(ours: ArrayLike, base: ArrayLike) -> float:
    """McNemar's exact two-sided p: are the questions that only one of the two answers right split evenly?"""
    better, worse = discordant(ours, base)
    return 1.0 if better + worse == 0 else float(stats.binomtest(better, better + worse, 0.5).pvalue)


def even_weights(strata: ArrayLike) -> np.ndarray:
    """Weights of mean 1, shape [N], under which a mean over questions is the mean over tasks (`strata`), whatever their sizes."""
    _, place, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    return len(place) / (len(counts) * counts[place])


def sign_flips(differences: ArrayLike, n_resamples: int = 9_999, seed: int = 0) -> float:
    """Two-sided p of paired differences, weighted or not, shape [N]: would their mean be as far from 0 were each sign drawn by a coin?

    Of unweighted verdicts this is McNemar's test, but for the drawing. Where all signs can be tried (13 differences), it is exact.
    """
    changed = np.asarray(differences, dtype=float)
    changed = changed[changed != 0]  # nothing else can change its sign
    if len(changed) < 2:  # either sign is as far from 0
        return 1.0
    rng = np.random.default_rng(seed)
    found = stats.permutation_test((changed,), np.sum, permutation_type="samples", n_resamples=n_resamples, batch=1_000, rng=rng)
    return float(found.pvalue)


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), in the order given: the family-wise error stays below the level they are compared with."""
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p-values between 0 and 1 in one dimension, got {p_values}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def decided(low: float, high: float, p: float = 0.0) -> bool | None:
    """Whether a difference is above 0 (True) or below it (False) by its interval and, where it is given, McNemar's p; None: open."""
    if p >= SIGNIFICANT:
        return None
    return True if low > 0 else False if high < 0 else None


def _paired(ours: ArrayLike, base: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(ours, dtype=float), np.asarray(base, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"expected two equally long one-dimensional arrays of at least one question, got shapes {a.shape} and {b.shape}")
    return a, b
