"""The guarantee keeps its promise: simulated, and against arithmetic done by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from drllm import InputError
from drllm.stats.guarantee import SHARE_ERROR, Guarantee, _tails, exact_p, find_guarantee, smallest_gain, surest_first


def promise(n: int, epsilon: float, delta: float) -> Guarantee:
    return Guarantee(epsilon, delta, n, {"t": n}, "calibrate")


def draw(rng, n: int, gain: float, changed: float) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts of a policy with a true gain, and of the base, of which a share `changed` differ."""
    kind = rng.choice(3, size=n, p=[(changed + gain) / 2, (changed - gain) / 2, 1 - changed])
    base = np.where(kind == 0, 0, np.where(kind == 1, 1, rng.integers(0, 2, n)))
    return np.where(kind == 2, base, 1 - base), base


@pytest.fixture
def no_power(monkeypatch):
    """Without the simulated power, nine tenths of the work, which changes no verdict: three tests below are about it."""
    monkeypatch.setattr("drllm.stats.guarantee.smallest_gain", lambda *_: None)


@pytest.mark.long
@pytest.mark.parametrize(("n", "changed"), [(200, 0.15), (1369, 0.15), (1369, 0.02), (500, 0.6)])
def test_a_policy_just_too_bad_passes_no_more_often_than_promised(n, changed):
    """1,000 redraws; 73 is the 99.9 % limit of a binomial with probability 0.05."""
    assert stats.binom.ppf(0.999, 1000, 0.05) == 73
    rng = np.random.default_rng(1)
    passed = sum(exact_p(*draw(rng, n, -0.0101, changed), 0.01) <= 0.05 for _ in range(1000))
    assert passed <= 73


@pytest.mark.long
def test_a_sequence_of_points_passes_a_bad_one_no_more_often_than_promised(no_power):
    """A good point that passes, then six bad ones, each by itself: testing all of them would break the promise."""
    rng = np.random.default_rng(2)
    n, wrong, reached, without_stopping = 600, 0, 0, 0
    for _ in range(1000):
        base = rng.integers(0, 2, n)

        def point(lost: float, won: float, base: np.ndarray = base) -> np.ndarray:
            """Loses and wins these shares of what the base has right and wrong."""
            draws = rng.random(n)
            return np.where(base == 1, draws >= lost, draws < won).astype(int)

        good, bad = point(0.02, 0.14), [point(0.16, 0.1398) for _ in range(6)]  # 6 points won; 1.01 lost
        guarantee = find_guarantee(promise(n, 0.01, 0.05), base, [good, *bad], [30, *range(29, 23, -1)], 30)
        wrong += guarantee.point not in (None, 0)
        reached += len(guarantee.tested) > 1
        without_stopping += any(exact_p(verdicts, base, 0.01) <= 0.05 for verdicts in bad)
    assert reached > 900, "the good point passes, so that a bad one is tested"
    assert wrong <= 73
    assert without_stopping > 73, "the test can fail"


def test_tune_says_which_point_is_tested_first(no_power):
    base = np.arange(1000) % 2
    worse = np.where(np.arange(1000) % 10 == 1, 0, base)
    better = np.where(np.arange(1000) % 10 == 0, 1, base)
    order = surest_first(base, [base, worse, better], 400, 0.01, 0.05)
    assert order == [2, 1], "what changes nothing promises nothing; the better one first"
    assert surest_first(base, [base, base], 400, 0.01, 0.05) == [1]
    verdicts = [base[:400], worse[:400], better[:400]]
    found = find_guarantee(promise(400, 0.01, 0.05), base[:400], verdicts, [30, 29, 28], 30, order)
    assert [row["point"] for row in found.tested] == [2, 1]
    assert found.point == 2
    # In the order given, the base itself fails with 400 questions, and hides the good point.
    assert find_guarantee(promise(400, 0.01, 0.05), base[:400], [base[:400], better[:400]], [30, 28], 30).point is None


@pytest.mark.long
def test_the_power_is_that_of_the_chosen_point():
    base = np.arange(1000) % 2
    better = np.where(np.arange(1000) % 10 == 0, 1, base)
    noisy = np.where(np.arange(1000) % 3 == 0, 1 - base, base)
    found = find_guarantee(promise(1000, 0.01, 0.05), base, [better, noisy], [29, 28], 30)
    assert found.point == 0
    assert found.would_pass == smallest_gain(1000, 0.1, 0.01, 0.05)


@pytest.mark.long
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


def test_points_are_tested_in_order_up_to_the_first_failure(no_power):
    base = np.arange(1000) % 2
    worse = np.where(np.arange(1000) % 10 == 1, 0, base)
    better = np.where(np.arange(1000) % 10 == 0, 1, base)
    found = find_guarantee(promise(1000, 0.02, 0.05), base, [base, better, worse, better], [30, 29, 28, 27], 30)
    assert [row["passed"] for row in found.tested] == [True, True, False]
    assert found.point == 1, "the fewest passes among those that passed; what follows a failure is not looked at"
    assert found.n == 1000
    assert "less than 2 points below the base" in found.sentence
    nothing = find_guarantee(promise(1000, 0.02, 0.05), base, [worse], [28], 30)
    assert nothing.point is None
    assert "the base is kept" in nothing.sentence


def test_what_saves_nothing_takes_the_best_point(no_power):
    base = np.arange(2000) % 2
    better = np.where(np.arange(2000) % 10 == 0, 1, base)
    assert find_guarantee(promise(2000, 0.02, 0.05), base, [base, better, better], [30, 30.5, 31], 30).point == 2
    assert find_guarantee(promise(2000, 0.02, 0.05), base, [base, better, better], [29.9, 29, 29.5], 30).point == 1


def test_a_small_delta_can_be_passed(no_power):
    base = np.arange(4000) % 2
    assert find_guarantee(promise(4000, 0.02, 1e-5), base, [np.where(np.arange(4000) % 10 == 0, 1, base)], [29], 30).point == 0


@pytest.mark.long
def test_the_power_says_which_gain_would_have_passed():
    small, large = (smallest_gain(n, 0.15, 0.01, 0.05) for n in (200, 1000))
    assert small is not None
    assert large is not None
    assert large < small
    assert smallest_gain(20, 0.15, 0.001, 0.05) is None


@pytest.mark.parametrize(("epsilon", "delta", "wanted"), [(0, 0.05, "epsilon is 0"), (0.01, 1, "delta is 1"), (1, 0.05, "epsilon is 1")])
def test_what_promises_nothing_is_refused(epsilon, delta, wanted):
    with pytest.raises(InputError, match=wanted):
        find_guarantee(promise(2, epsilon, delta), [0, 1], [[0, 1]], [30], 30)


def test_impossible_verdicts_are_refused():
    with pytest.raises(ValueError, match="verdicts"):
        exact_p([3, 0], [0, 1], 0.01)
    with pytest.raises(ValueError, match="verdicts"):
        exact_p([], [], 0.01)
