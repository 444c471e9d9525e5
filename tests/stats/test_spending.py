"""The least loss at so many passes, against a search through all mixes, and against hand-made cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from drllm.stats.spending import by_group, dealt_loss, least_loss

PASSES = np.array([30.0, 27.0, 24.0, 21.0])


def by_program(losses: np.ndarray, shares: np.ndarray, mean: float) -> float:
    """The same as a linear program over all mixes of every group."""
    g, k = losses.shape
    cost = (shares[:, None] * losses).ravel()
    rows = np.kron(np.eye(g), np.ones(k))
    spent = (shares[:, None] * PASSES).ravel()
    return linprog(cost, A_eq=np.vstack([rows, spent]), b_eq=[*np.ones(g), mean], bounds=(0, 1)).fun


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_least_of_all_mixes(seed):
    rng = np.random.default_rng(seed)
    losses = np.concatenate([np.zeros((40, 1)), rng.gamma(1, [0.2, 0.5, 0.6], (40, 3))], 1)
    groups = rng.integers(0, 4, 40)
    for of, mean in itertools.product((groups, np.zeros(40), np.arange(40)), (29.5, 27, 23, 21)):
        found = by_group(losses, of)
        assert least_loss(*found, PASSES, mean) == pytest.approx(by_program(*found, mean), abs=1e-9)


def test_by_hand():
    losses = np.array([[0.0, 0.3, 0.4, 1.0]])
    assert least_loss(losses, np.ones(1), PASSES, 24) == pytest.approx(0.4)
    assert least_loss(losses, np.ones(1), PASSES, 27) == pytest.approx(0.2), "half to 24 is less than all to 27"
    assert least_loss(losses, np.ones(1), PASSES, 30) == 0
    with pytest.raises(ValueError, match="as few as 20"):
        least_loss(losses, np.ones(1), PASSES, 20)


def test_dealt_routes_lose_what_they_lose_on_average():
    losses = np.array([[0.0, 1.0], [0.0, 3.0]])
    assert dealt_loss(losses, np.array([0, 1])) == 1.0
    rng = np.random.default_rng(0)
    losses, taken = rng.random((50, 3)), rng.integers(0, 3, 50)
    deals = [losses[np.arange(50), rng.permutation(taken)].mean() for _ in range(4000)]
    assert dealt_loss(losses, taken) == pytest.approx(np.mean(deals), abs=2e-3)
