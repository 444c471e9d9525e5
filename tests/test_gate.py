"""The gate keeps its promise: simulated, and against arithmetic done by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from drllm import InputError
from drllm.evaluation.gate import SHARE_ERROR, _tails, exact_p, gate, smallest_gain


def draw(rng, n: int, gain: float, changed: float) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts of a policy with a true gain, and of the base, of which a share `changed` differ."""
    kind = rng.choice(3, size=n, p=[(changed + gain) / 2, (changed - gain) / 2, 1 - changed])
    base = np.where(kind == 0, 0, np.where(kind == 1, 1, rng.integers(0, 2, n)))
    return np.where(kind == 2, base, 1 - base), base


@pytest.mark.parametrize(("n", "changed"), [(200, 0.15), (1369, 0.15), (1369, 0.02), (500, 0.6)])
def test_a_policy_just_too_bad_passes_no_more_often_than_promised(n, changed):
    """1,000 redraws; 73 is the 99.9 % limit of a binomial with probability 0.05."""
    assert stats.binom.ppf(0.999, 1000, 0.05) == 73
    rng = np.random.default_rng(1)
    passed = sum(exact_p(*draw(rng, n, -0.0101, changed), 0.01) <= 0.05 for _ in range(1000))
    assert passed <= 73


def test_a_sequence_of_points_passes_a_bad_one_no_more_often_than_promised():
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(1000):
        base = rng.integers(0, 2, 400)
        good = base.copy()  # the base itself
        lost, won = (rng.random(400) < share for share in (0.16, 0.1398))  # of those the base has right, and wrong: 1 point lost
        bad = [np.where(base == 1, ~lost, won).astype(int)] * 3
        guarantee = gate(base, [good, *bad], [30, 29, 28, 27], 30, 0.01, 0.05, ["t"], "calibrate")
        wrong += guarantee.point not in (None, 0)
    assert wrong <= 73


def test_a_gain_of_two_points_passes_in_most_redraws():
    rng = np.random.default_rng(3)
    passed = sum(exact_p(*draw(rng, 1369, 0.02, 0.15), 0.01) <= 0.05 for _ in range(300))
    assert passed > 210, f"{passed} of 300"


def test_the_tail_against_every_outcome():
    """Four questions, each better, worse or the same: all 81 outcomes."""
    epsilon, share = 0.1, 0.4
    step = {1: (share - epsilon) / 2, -1: (share + epsilon) / 2, 0: 1 - share}
    for seen in range(-4, 5):
        wanted = sum(np.prod([step[kind] for kind in kinds]) for kinds in itertools.product(step, repeat=4) if sum(kinds) >= seen)
        assert _tails(4, seen, np.array([share]), epsilon)[0] == pytest.approx(wanted, abs=1e-12)


def test_the_p_value_is_the_worst_share_s():
    """Against a fine grid of all shares up to the limit; the p-value's own, coarser one must not miss a peak."""
    for n, better, worse in [(50, 8, 3), (200, 20, 15), (1369, 120, 100), (300, 1, 0), (40, 0, 0)]:
        ours = np.array([1] * better + [0] * worse + [1] * (n - better - worse))
        base = np.array([0] * better + [1] * worse + [1] * (n - better - worse))
        limit = stats.beta.ppf(1 - SHARE_ERROR, better + worse + 1, n - better - worse)
        fine = _tails(n, better - worse, np.linspace(0.02, max(0.02, limit), 2000), 0.02).max()
        assert exact_p(ours, base, 0.02) == pytest.approx(min(1, fine + SHARE_ERROR), abs=1e-4)
    assert exact_p([0], [1], 0.02) == 1.0


def test_points_are_tested_in_order_up_to_the_first_failure():
    base = np.arange(1000) % 2
    worse = np.where(np.arange(1000) % 10 == 1, 0, base)
    better = np.where(np.arange(1000) % 10 == 0, 1, base)
    found = gate(base, [base, better, worse, better], [30, 29, 28, 27], 30, 0.02, 0.05, ["t"], "calibrate")
    assert [row["passed"] for row in found.tested] == [True, True, False]
    assert found.point == 1, "the fewest passes among those that passed; what follows a failure is not looked at"
    assert found.n == 1000
    assert "less than 2 points below the base" in found.sentence
    nothing = gate(base, [worse], [28], 30, 0.02, 0.05, ["t"], "calibrate")
    assert nothing.point is None
    assert "the base is kept" in nothing.sentence


def test_what_saves_nothing_takes_the_boldest_point():
    base = np.arange(2000) % 2
    better = np.where(np.arange(2000) % 10 == 0, 1, base)
    assert gate(base, [base, better, better], [30, 30.5, 31], 30, 0.02, 0.05, ["t"], "calibrate").point == 2
    assert gate(base, [base, better, better], [29.9, 29, 29.5], 30, 0.02, 0.05, ["t"], "calibrate").point == 1


def test_a_small_delta_can_be_passed():
    base = np.arange(4000) % 2
    assert gate(base, [np.where(np.arange(4000) % 10 == 0, 1, base)], [29], 30, 0.02, 1e-5, ["t"], "calibrate").point == 0


def test_the_power_says_which_gain_would_have_passed():
    small, large = (smallest_gain(n, 0.15, 0.01, 0.05) for n in (300, 3000))
    assert small is not None
    assert large is not None
    assert large < small
    assert smallest_gain(20, 0.15, 0.001, 0.05) is None


@pytest.mark.parametrize(("epsilon", "delta", "wanted"), [(0, 0.05, "epsilon is 0"), (0.01, 1, "delta is 1"), (1, 0.05, "epsilon is 1")])
def test_what_promises_nothing_is_refused(epsilon, delta, wanted):
    with pytest.raises(InputError, match=wanted):
        gate([0, 1], [[0, 1]], [30], 30, epsilon, delta, ["t"], "calibrate")


def test_impossible_verdicts_are_refused():
    with pytest.raises(ValueError, match="verdicts"):
        exact_p([3, 0], [0, 1], 0.01)
    with pytest.raises(ValueError, match="verdicts"):
        exact_p([], [], 0.01)
