"""The selector of a codebook: ridge regression with out-of-fold predictions, and the threshold above which a gain is sure.

Shapes: N questions, F features, K routes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg, stats

PENALTIES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)  # from little shrinkage to hardly more than the mean
STAY = 1e9  # a threshold that no score is above
MIN_SWITCHED = 30  # questions that leave the base, at least: fewer say nothing about a gain


@dataclass(frozen=True)
class Ridge:
    """mean, scale (F,) standardise; weight (F, K) and bias (K,) predict."""

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    penalty: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.scale @ self.weight + self.bias


def moments(features: np.ndarray, one_scale: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The mean and scale (F,) by which (N, F) features are standardised; with `one_scale` all have the same, and rare ones stay small."""
    mean, scale = features.mean(0, dtype=float), features.std(0, dtype=float)
    if one_scale:
        scale = np.full_like(scale, np.sqrt((scale**2).mean()))
    return mean, scale + 1e-6


class Folds:
    """Ridges of every penalty from one set of features to every target: fitted on all questions, and on all but each part of them.

    Columns of the targets are fitted independently, so any codebook is a choice of columns and costs nothing more.

    `features`, `targets`: (N, F) and (N, K); `n_components`, `one_scale`: as in `fit_ridges`.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, n_folds: int, seed: int, n_components: int = 0, one_scale: bool = False):
        fold_of = np.random.default_rng(seed).permutation(len(features)) % n_folds
        self._all = fit_ridges(features, targets, n_components, one_scale)
        self._predicted = {penalty: np.zeros(targets.shape) for penalty in PENALTIES}
        for fold in range(n_folds):
            here = fold_of == fold
            for penalty, ridge in fit_ridges(features[~here], targets[~here], n_components, one_scale).items():
                self._predicted[penalty][here] = ridge.predict(features[here])
        self._errors = {penalty: ((values - targets) ** 2).mean(0) for penalty, values in self._predicted.items()}

    def pick(self, columns: Sequence[int]) -> tuple[Ridge, np.ndarray]:
        """The ridge of the penalty that predicts some columns best, and predictions (N, len(columns)) of each question without it."""
        places = list(columns)
        best = min(PENALTIES, key=lambda penalty: float(self._errors[penalty][places].mean()))
        ridge = self._all[best]
        return replace(ridge, weight=ridge.weight[:, places], bias=ridge.bias[places]), self._predicted[best][:, places]


def fit_ridges(features: np.ndarray, targets: np.ndarray, n_components: int = 0, one_scale: bool = False) -> dict[float, Ridge]:
    """The ridge of every penalty, on all features (0 components) or on their first principal components; by Cholesky factors."""
    mean, scale = moments(features, one_scale)
    z = (features - mean) / scale
    bias = targets.mean(0)
    directions = principal_directions(z, n_components) if n_components else None
    x = z if directions is None else z @ directions
    primal = x.shape[1] <= x.shape[0]
    square = x.T @ x if primal else x @ x.T
    right = x.T @ (targets - bias) if primal else targets - bias
    diagonal = np.diag(square).copy()
    found = {}
    for penalty in PENALTIES:
        np.fill_diagonal(square, diagonal + penalty)
        solved = linalg.cho_solve(linalg.cho_factor(square, lower=True), right)
        weight = solved if primal else x.T @ solved
        found[penalty] = Ridge(mean, scale, weight if directions is None else directions @ weight, bias, penalty)
    return found


def principal_directions(z: np.ndarray, n: int) -> np.ndarray:
    """(F, n): the directions of the largest variance of (N, F) standardised features, scaled so that each component has variance 1."""
    size = min(z.shape)
    n = min(n, size)
    square = z.T @ z if z.shape[1] <= z.shape[0] else z @ z.T
    values, vectors = linalg.eigh(square, subset_by_index=[size - n, size - 1])
    vectors = vectors if z.shape[1] <= z.shape[0] else z.T @ vectors / np.sqrt(np.maximum(values, 1e-12))
    return vectors / np.sqrt(np.maximum(values, 1e-12) / len(z))


def sure_gain(gains: np.ndarray, confidence: float) -> bool:
    """Whether the one-sided normal bound of the mean of (N,) gains is above 0."""
    error = gains.std() / np.sqrt(len(gains))
    return bool(gains.mean() > stats.norm.ppf(confidence) * error and error > 0)


def lower_bound(scores: np.ndarray, gains: np.ndarray, confidence: float) -> float:
    """The threshold with the highest lower bound of the total gain of those above it; `STAY` where no bound is positive.

    A rule of thumb, not a test: the bound (one-sided, normal) holds for one threshold, and here the best of many is taken, so on pure noise
    it leaves the base in some 40 % of draws at a confidence of 0.9. What a codebook is worth is decided on tune, and by the promise.
    `scores` and `gains` (N,) are of each question's best route, predicted without it, and what it really gained.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores, sorted_gains = scores[order], gains[order].astype(float)
    counts = np.arange(1, len(gains) + 1)
    total, squares = np.cumsum(sorted_gains), np.cumsum(sorted_gains**2)
    variance = np.maximum(squares / counts - (total / counts) ** 2, 0)
    bound = total - stats.norm.ppf(confidence) * np.sqrt(variance * counts)
    # Only where the next score is lower: equal scores leave together.
    ends = np.append(sorted_scores[1:] < sorted_scores[:-1], True)
    bound[~ends | (counts < MIN_SWITCHED)] = -np.inf
    best = int(bound.argmax())
    if bound[best] <= 0:
        return STAY
    following = sorted_scores[best + 1] if best + 1 < len(scores) else sorted_scores[best] - 1.0
    return float((sorted_scores[best] + following) / 2)
