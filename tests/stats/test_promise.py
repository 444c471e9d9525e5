"""The promise keeps its promise: simulated, and against arithmetic done by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from drllm import InputError
from drllm.stats.promise import (
    SHARE_ERROR,
    Promise,
    _tails,
    exact_p,
    fewest_questions,
    find_promise,
    p_of_counts,
    share_error_for,
    smaller_promise,
    smallest_gain,
    surest_first,
)


def promise(n: int, epsilon: float, delta: float) -> Promise:
    return Promise(epsilon, delta, n, {"t": n}, "calibrate")


def draw(rng, n: int, gain: float, changed: float) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts of a policy with a true gain, and of the base, of which a share `changed` differ."""
    kind = rng.choice(3, size=n, p=[(changed + gain) / 2, (changed - gain) / 2, 1 - changed])
    base = np.where(kind == 0, 0, np.where(kind == 1, 1, rng.integers(0, 2, n)))
    return np.where(kind == 2, base, 1 - base), base


@pytest.fixture
def no_power(monkeypatch):
    """Without the simulated power, nine tenths of the work, which changes no verdict: three tests below are about it."""
    monkeypatch.setattr("drllm.stats.promise.smallest_gain", lambda *_: None)


@pytest.mark.long
@pytest.mark.parametrize(
    ("n", "changed"), [(200, 0.15), (1369, 0.02), *(pytest.param(*many, marks=pytest.mark.slow) for many in ((1369, 0.15), (500, 0.6)))]
)
def test_a_policy_just_too_bad_passes_no_more_often_than_promised(n, changed):
    """1,000 redraws; 73 is the 99.9 % limit of a binomial with probability 0.05."""
    assert stats.binom.ppf(0.999, 1000, 0.05) == 73
    rng = np.random.default_rng(1)
    passed = sum(exact_p(*draw(rng, n, -0.0101, changed), 0.01) <= 0.05 for _ in range(1000))
    assert passed <= 73


@pytest.mark.slow
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
        found = find_promise(promise(n, 0.01, 0.05), base, [good, *bad], [30, *range(29, 23, -1)], 30)
        wrong += found.point not in (None, 0)
        reached += len(found.tested) > 1
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
    found = find_promise(promise(400, 0.01, 0.05), base[:400], verdicts, [30, 29, 28], 30, order)
    assert [row["point"] for row in found.tested] == [2, 1]
    assert found.point == 2
    # In the order given, the base itself fails with 400 questions, and hides the good point.
    assert find_promise(promise(400, 0.01, 0.05), base[:400], [base[:400], better[:400]], [30, 28], 30).point is None


@pytest.mark.long
def test_the_power_is_that_of_the_chosen_point():
    base = np.arange(1000) % 2
    better = np.where(np.arange(1000) % 10 == 0, 1, base)
    noisy = np.where(np.arange(1000) % 3 == 0, 1 - base, base)
    found = find_promise(promise(1000, 0.01, 0.05), base, [better, noisy], [29, 28], 30)
    assert found.point == 0
    assert found.would_pass == smallest_gain(1000, 0.1, 0.01, 0.05)


@pytest.mark.parametrize(("epsilon", "changed"), [(0.05, 0.0), (0.05, 0.1), (0.02, 0.0)])
def test_the_fewest_questions_pass_and_clearly_fewer_do_not(epsilon, changed):
    n = fewest_questions(epsilon, 0.05, changed)

    def p(n: int) -> float:
        verdicts = np.zeros((2, n))
        either = round(n * changed / 2)
        verdicts[0, :either], verdicts[1, either : 2 * either] = 1, 1
        return exact_p(*verdicts, epsilon)

    assert p(n) <= 0.05 < p(round(0.9 * n))


def test_the_tail_against_every_outcome():
    """Four questions, each better, worse or the same: all 81 outcomes."""
    epsilon, share = 0.1, 0.4
    step = {1: (share - epsilon) / 2, -1: (share + epsilon) / 2, 0: 1 - share}
    for seen in range(-4, 5):
        wanted = sum(np.prod([step[kind] for kind in kinds]) for kinds in itertools.product(step, repeat=4) if sum(kinds) >= seen)
        assert _tails(4, seen, np.array([share]), epsilon)[0] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("seen", [-2300, -2100, -2043, -2000, -1957, -1900, -1700])
def test_the_tail_of_losses_alone_is_the_binomial_s(seen):
    """Where the share is epsilon there are no gains: the sum is the negative of a binomial, far from 0."""
    found = _tails(20_000, seen, np.array([0.1, 0.1]), 0.1)
    assert found == pytest.approx(np.full(2, stats.binom.cdf(-seen, 20_000, 0.1)), abs=1e-12)
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_a_tail_is_a_probability():
    assert all(0 <= _tails(n, seen, np.array([0.4]), 0.01)[0] <= 1 for n in range(1, 40) for seen in range(-n, n + 2))


@pytest.mark.filterwarnings("error")
def test_a_tail_where_a_step_s_characteristic_is_zero():
    """Half of all steps up or down, alike: at the turn of half a circle the step's value is exactly 0."""
    found = _tails(10, 2, np.array([0.5]), 0.0)
    every = [
        math.prod((0.25, 0.5, 0.25)[1 + step] for step in steps) for steps in itertools.product((-1, 0, 1), repeat=10) if sum(steps) >= 2
    ]
    assert found[0] == pytest.approx(math.fsum(every), abs=1e-12)


@pytest.mark.long
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
    found = find_promise(promise(1000, 0.02, 0.05), base, [base, better, worse, better], [30, 29, 28, 27], 30)
    assert [row["passed"] for row in found.tested] == [True, True, False]
    assert found.point == 1, "the fewest passes among those that passed; what follows a failure is not looked at"
    assert found.n == 1000
    assert find_promise(promise(1000, 0.02, 0.05), base, [worse], [28], 30).point is None


def test_the_sentence_says_what_was_promised_of_what_or_why_nothing_is():
    kept = Promise(0.02, 0.05, 300, {"t": 200, "u": 100}, "calibrate", point=0, would_pass=0.035, judged="acc", earlier=2)
    of = "300 calibrate questions (200 of t, 100 of u), judged by acc"
    tail = " A true gain of +3.5 points would have passed on 80 % of sets of as many questions."
    tail += " Other policies tried on these questions before: 2; this holds for each by itself, not for the best of them."
    promised = "with 95 % confidence less than 2 points below the base on prompts like those it was calibrated on"
    assert kept.sentence == f"{promised}, {of}.{tail}"
    assert replace(kept, point=None).sentence == f"the test failed on {of}: the base is kept.{tail}"
    least = fewest_questions(0.02, 0.05, 0.0)
    few = Promise(0.02, 0.05, least - 1, {"t": least - 1}, "tune", judged="acc")
    said = (
        f"{least - 1} tune questions of t, judged by acc are too few: a promise of at most 2 points lost needs {least:,}, or a larger gain"
    )
    assert few.told("nothing is kept") == f"{said}. Nothing is kept."
    assert replace(few, n=least).sentence.startswith("the test failed on")
    assert exact_p([1] * least, [1] * least, 0.02) <= 0.05 < exact_p([1] * (least - 1), [1] * (least - 1), 0.02)
    assert [smaller_promise(0.01, 0.05, 300, better=20, worse=worse) for worse in (10, 20, 26, 60)] == [0.02, 0.05, 0.1, None]
    assert smaller_promise(0.02, 0.05, 3000) == 0.03


def test_what_saves_nothing_takes_the_best_point(no_power):
    base = np.arange(2000) % 2
    better = np.where(np.arange(2000) % 10 == 0, 1, base)
    assert find_promise(promise(2000, 0.02, 0.05), base, [base, better, better], [30, 30.5, 31], 30).point == 2
    assert find_promise(promise(2000, 0.02, 0.05), base, [base, better, better], [29.9, 29, 29.5], 30).point == 1


def test_a_small_delta_can_be_passed(no_power):
    base = np.arange(4000) % 2
    assert find_promise(promise(4000, 0.02, 1e-5), base, [np.where(np.arange(4000) % 10 == 0, 1, base)], [29], 30).point == 0


def counted(n: int, *points: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The base's verdicts on `n` questions, half of them right, and those of points with so many better and worse."""
    base = np.arange(n) < n // 2
    return base, [np.where(base, np.arange(n) >= worse, np.arange(n) < n // 2 + better) for better, worse in points]


def test_each_test_is_reported_and_the_report_is_plain_values(no_power):
    base, points = counted(400, (30, 5), (0, 8))
    asked = Promise(0.02, 0.05, 400, {"t": 300, "u": 100}, "calibrate", dtype="float32", judged="acc")
    found = find_promise(asked, base, points, [29, 28.5], 30)
    p = [exact_p(point, base, 0.02) for point in points]
    assert p == [p_of_counts(400, 30, 5, 0.02), p_of_counts(400, 0, 8, 0.02)]
    assert found.tested == (
        {"point": 0, "p": p[0], "difference": 25 / 400, "mean_passes": 29.0, "passed": True},
        {"point": 1, "p": p[1], "difference": -8 / 400, "mean_passes": 28.5, "passed": False},
    )
    asked_for = {"epsilon": 0.02, "delta": 0.05, "n": 400, "tasks": {"t": 300, "u": 100}, "split": "calibrate"}
    about = {"tested": found.tested, "point": 0, "would_pass": None, "dtype": "float32", "judged": "acc", "earlier": 0}
    assert found.to_json() == asked_for | about | {"sentence": found.sentence}


def test_a_p_value_of_just_delta_passes(no_power):
    base, points = counted(200, (8, 3))
    p = exact_p(points[0], base, 0.01)
    assert p > 0.05, "from here on delta does not change the p-value"
    assert find_promise(promise(200, 0.01, p), base, [*points, *points], [29, 28], 30).point == 1
    assert find_promise(promise(200, 0.01, p * (1 - 1e-9)), base, points, [29], 30).point is None


def test_of_two_points_as_cheap_as_each_other_the_later_is_taken(no_power):
    base, points = counted(1000, (60, 5), (60, 5))
    assert find_promise(promise(1000, 0.02, 0.05), base, points, [29, 29], 30).point == 1


def test_points_and_their_passes_must_match():
    for points, passes, found in (([[0, 1]], [29, 30], "got 2 for 1"), ([], [], "got 0 for 0"), ([], [30], "got 1 for 0")):
        with pytest.raises(ValueError, match=f"^expected one mean number of passes a point, {found}$"):
            find_promise(promise(2, 0.01, 0.05), [0, 1], points, passes, 30)


def order(n: int, epsilon: float, delta: float, *points: tuple[int, int]) -> list[int]:
    base, verdicts = counted(400, *points)
    return surest_first(base, verdicts, n, epsilon, delta)


def test_what_is_tested_first_depends_on_both_counts_epsilon_and_delta():
    assert order(400, 0.01, 0.05, (10, 5), (20, 5)) == [1, 0]
    assert order(400, 0.01, 0.05, (10, 5), (10, 2)) == [1, 0]
    assert order(400, 0.05, 0.05, (2, 3), (30, 25)) == [0, 1], "few changes: surely no great loss"
    assert order(400, 0.001, 0.05, (2, 3), (30, 25)) == [1, 0]
    assert order(400, 0.05, 0.0001, (3, 4), (31, 10)) == [1, 0]
    assert order(400, 0.05, 0.05, (3, 4), (31, 10)) == [0, 1], "with a larger delta more of the p-value is the error of the share"
    assert order(4, 0.01, 0.05, (0, 160), (160, 0)) == [1, 0]


@pytest.mark.long
def test_the_power_is_a_gain_in_half_points_from_a_loss_below_epsilon_up_to_ten_points():
    assert smallest_gain(3000, 0.0, 0.01, 0.05) == -0.005, "a small loss passes where verdicts hardly ever differ"
    assert smallest_gain(120, 0.1, 0.02, 0.05) == 0.075
    assert smallest_gain(92, 0.1, 0.02, 0.05) == 0.09
    assert smallest_gain(72, 0.1, 0.02, 0.05) is None
    assert smallest_gain(78, 0.1, 0.02, 0.05) is None, "ten points and a half would"
    assert smallest_gain(150, 0.02, 0.1, 0.001) == -0.005, "a small delta can be passed, too"


@pytest.mark.long
def test_the_power_is_the_same_each_time():
    sizes = (108, 116, 128, 132)
    found = [smallest_gain(n, 0.1, 0.02, 0.05) for n in sizes]
    assert found == [smallest_gain(n, 0.1, 0.02, 0.05, seed=0) for n in sizes]
    assert found != [smallest_gain(n, 0.1, 0.02, 0.05, seed=1) for n in sizes], "another seed draws others"


def test_the_share_s_error_is_a_small_part_of_delta():
    assert [share_error_for(delta) for delta in (0.5, 0.05, 0.01)] == [SHARE_ERROR, SHARE_ERROR, 0.0002]


@pytest.mark.parametrize(
    ("epsilon", "delta", "wanted"),
    [
        (0, 0.05, "epsilon is 0, expected more than 0 and less than 1: the accuracy that may be lost"),
        (1, 0.05, "epsilon is 1"),
        (0.01, 1, "delta is 1, expected more than 0 and less than 1: the probability that the promise fails"),
        (0.01, 0, "delta is 0"),
    ],
)
def test_what_promises_nothing_is_refused(epsilon, delta, wanted):
    with pytest.raises(InputError, match=wanted):
        find_promise(promise(2, epsilon, delta), [0, 1], [[0, 1]], [30], 30)


def test_impossible_verdicts_are_refused():
    with pytest.raises(ValueError, match="verdicts"):
        exact_p([3, 0], [0, 1], 0.01)
    with pytest.raises(ValueError, match="verdicts"):
        exact_p([], [], 0.01)
    with pytest.raises(ValueError, match=r"^expected verdicts 0 or 1 of at least one question, got differences of shape \(1, 2\)$"):
        exact_p([[1, 0]], [[1, 0]], 0.01)
    for epsilon in (-0.1, 1):
        with pytest.raises(ValueError, match=rf"^expected an epsilon from 0 to below 1, got {epsilon}$"):
            exact_p([1, 0], [1, 0], epsilon)
    assert exact_p([True, True], [False, False], 0) < exact_p([1, 0], [0, 0], 0) < 1
