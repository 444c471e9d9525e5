"""The promise of agreement holds as often as it says: over redrawn calibration sets, and against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from drllm.stats.agreement import Agreement, fewest_prompts, find_agreement, most_that_differ

REDRAWS, LIMIT = 1000, 73  # the 99.9 % limit of a binomial with probability 0.05


def wanted(n: int, epsilon: float = 0.0) -> Agreement:
    return Agreement(epsilon, 0.05, n, {"prompts": n}, "calibrate", tokens=16, longest=984)


@pytest.mark.parametrize(("n", "differ"), [(60, 0.05), (400, 0.05), (1000, 0.02)])
def test_a_policy_that_differs_too_often_is_promised_no_more_often_than_said(n, differ):
    """Its true share is just above the one promised; the first point is a good one, which leads to it."""
    assert stats.binom.ppf(0.999, REDRAWS, 0.05) == LIMIT
    rng = np.random.default_rng(1)
    wrong = reached = without_stopping = 0
    for _ in range(REDRAWS):
        good, bad = rng.random(n) < 0.0, [rng.random(n) < differ + 1e-4 for _ in range(4)]
        found = find_agreement(wanted(n, differ), [good, *bad], [29.0, 28.0, 27.0, 26.0, 25.0])
        reached += len(found.tested) > 1
        wrong += found.point not in (None, 0)
        without_stopping += any(stats.binom.cdf(one.sum(), n, differ) <= 0.05 for one in bad)
    assert reached == REDRAWS, "the good point passes, so that a bad one is tested"
    assert wrong <= LIMIT
    assert without_stopping > LIMIT, "the test can fail"


@pytest.mark.parametrize(("n", "share"), [(60, 0.1), (400, 0.03), (1000, 0.2)])
def test_the_smallest_share_that_the_prompts_bear_holds_as_often_as_said(n, share):
    """Of the first point alone, whatever the others are."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(REDRAWS):
        found = find_agreement(wanted(n), [rng.random(n) < share, rng.random(n) < 0.5], [29.0, 20.0])
        assert [row["point"] for row in found.tested] == [0]
        wrong += found.epsilon < share
    assert 0 < wrong <= LIMIT


def test_the_limit_is_the_binomial_s():
    assert most_that_differ(59, 0, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert stats.binom.cdf(3, 200, most_that_differ(200, 3, 0.05)) == pytest.approx(0.05)
    assert most_that_differ(5, 5, 0.05) == 1
    assert (fewest_prompts(0.05, 0.05), fewest_prompts(0.02, 0.05), fewest_prompts(1.0, 0.05)) == (59, 149, 1)
    assert find_agreement(wanted(60), [np.arange(60) < 31], [29.0]).epsilon == 0.629, "rounded up from 0.62856"


def test_the_cheapest_point_that_passed_is_taken_and_said():
    n = 100
    few, many = np.arange(n) < 1, np.arange(n) < 40
    found = find_agreement(wanted(n, 0.05), [few, few, many, few], [29.0, 28.0, 20.0, 19.0])
    assert (found.point, [row["passed"] for row in found.tested]) == (1, [True, True, False])
    assert found.sentence == (
        "with 95 % confidence the greedy answer (16 tokens) differs from the base's on at most 5 % of prompts like these, each counted "
        "once; it did on 1 of 100 calibrate prompts, which chose nothing. Prompts of more than 984 tokens were not tested: they keep every "
        "block. Another choice of budgets on the same prompts would be another try."
    )
    assert found.to_json()["sentence"] == found.sentence
    p = stats.binom.cdf(1, n, 0.05)
    assert found.tested[0] == {"point": 0, "p": pytest.approx(p), "differ": 1, "mean_passes": 29.0, "passed": True}
    assert find_agreement(wanted(n, 0.05), [few, few], [28.0, 28.0]).point == 1, "of two as cheap as each other the later"
    just = replace(wanted(n, 0.05), delta=found.tested[0]["p"])
    assert find_agreement(just, [few, few], [29.0, 28.0]).point == 1, "a p-value of just delta passes"
    assert find_agreement(wanted(n, 0.05), [np.arange(n) * 2 // 198], [29.0]).tested[0]["differ"] == 1, "whatever is not 0 differs"


def test_what_is_not_promised_says_why():
    too_few = find_agreement(wanted(20, 0.05), [np.zeros(20)], [29.0])
    assert too_few.sentence.endswith("a promise of at most 5 % needs 59 at least. The base is kept.")
    failed = find_agreement(wanted(100, 0.05), [np.arange(100) < 9], [29.0])
    assert failed.sentence.startswith("the surest operating point differs on 9 of 100 calibrate prompts")
    assert failed.point is None
    assert find_agreement(wanted(7), [np.ones(7)], [29.0]).point is None, "all differ: nothing can be promised"
    with pytest.raises(ValueError, match="got 1 for 2"):
        find_agreement(wanted(7), [np.ones(7), np.ones(7)], [29.0])
