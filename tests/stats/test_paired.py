"""Intervals and tests against closed forms, scipy and published values."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from drllm.stats.paired import decided, discordant, even_weights, holm, mcnemar, paired_bootstrap, sign_flips, wilson

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_agrees_with_scipy_and_stays_in_the_unit_interval_around_the_share(count):
    n_right, n = count
    expected = scipy_stats.binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    low, high = wilson(n_right, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= low <= n_right / n <= high <= 1.0
    assert wilson(n - n_right, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3, 95 %.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (8, 10, 0.4902, 0.9433),
    ],
)
def test_wilson_published(n_right, n, low, high):
    assert wilson(n_right, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_none_and_of_all_reaches_the_end_exactly():
    """Computed, some of these bounds lie beyond it by a rounding."""
    assert {wilson(0, n)[0] for n in range(1, 300)} == {0.0}
    assert {wilson(n, n)[1] for n in range(1, 300)} == {1.0}
    assert wilson(0, 0) == (0.0, 1.0), "of nothing it says nothing"


@pytest.mark.parametrize(("n_right", "n"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(n_right, n):
    with pytest.raises(ValueError, match="right answers"):
        wilson(n_right, n)


def test_bootstrap_agrees_with_scipy_on_scores():
    rng = np.random.default_rng(1)
    ours, base = rng.normal(0.3, 1, 200), rng.normal(0, 1, 200)
    difference, low, high = paired_bootstrap(ours, base, 20_000, seed=2)
    expected = scipy_stats.bootstrap((ours - base,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3))
    assert difference == pytest.approx(float((ours - base).mean()))
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)


def test_bootstrap_agrees_with_a_plain_loop_over_strata():
    rng = random.Random(0)
    strata = [0] * 30 + [1] * 10
    ours, base = [rng.random() < 0.5 + 0.4 * stratum for stratum in strata], [rng.random() < 0.5 for _ in strata]
    groups = [[int(a) - int(b) for a, b, s in zip(ours, base, strata, strict=True) if s == stratum] for stratum in (0, 1)]
    means = sorted(sum(rng.choice(group) for group in groups for _ in group) / 40 for _ in range(4000))
    difference, low, high = paired_bootstrap(ours, base, 4000, seed=1, strata=strata)
    assert difference == pytest.approx(sum(map(sum, groups)) / 40)
    # One question is 1/40; the quantiles of 4,000 resamples are sharper than that.
    assert low == pytest.approx(means[100], abs=1 / 40 + 1e-9)
    assert high == pytest.approx(means[3899], abs=1 / 40 + 1e-9)


def test_bootstrap_pairs_the_answers():
    """The same verdicts give no spread at all, however noisy they are by themselves."""
    verdicts = np.random.default_rng(6).random(300) < 0.5
    assert paired_bootstrap(verdicts, verdicts, 500, seed=0) == (0.0, 0.0, 0.0)
    _, low, high = paired_bootstrap(verdicts, np.roll(verdicts, 1), 500, seed=0)
    assert high - low > 0.05


def test_bootstrap_resamples_within_strata():
    """Tasks that differ from one another but not within leave no spread; without strata there is one."""
    strata = np.repeat(["a", "b"], [30, 70])
    ours, base = (strata == "a").astype(float), np.zeros(100)
    assert paired_bootstrap(ours, base, 500, seed=0, strata=strata) == pytest.approx((0.3, 0.3, 0.3))
    _, low, high = paired_bootstrap(ours, base, 500, seed=0)
    assert low < 0.25 < 0.35 < high


def test_bootstrap_is_seeded_and_its_memory_bound_changes_nothing():
    rng = np.random.default_rng(9)
    ours, base = rng.normal(size=50), rng.normal(size=50)
    once = paired_bootstrap(ours, base, 301, seed=1)
    assert paired_bootstrap(ours, base, 301, seed=1) == once
    assert paired_bootstrap(ours, base, 301, seed=2) != once
    assert paired_bootstrap(ours, base, 100_000, seed=1) == pytest.approx(once, abs=0.05), "five million draws, in two parts"
    assert paired_bootstrap(np.ones(4_100_000), np.zeros(4_100_000), 2) == (1, 1, 1), "more questions than fit: one resample at once"


@pytest.mark.parametrize(("ours", "base"), [([1, 0], [1]), ([1], [1, 0]), ([], []), ([[1, 0]], [[1, 0]]), (1, 0)])
def test_unpaired_answers_are_refused(ours, base):
    with pytest.raises(ValueError, match="equally long"):
        paired_bootstrap(ours, base)
    with pytest.raises(ValueError, match="equally long"):
        mcnemar(ours, base)


def test_wrong_strata_and_no_resamples_are_refused():
    with pytest.raises(ValueError, match="stratum"):
        paired_bootstrap([1, 0], [0, 0], strata=[0])
    with pytest.raises(ValueError, match="resample"):
        paired_bootstrap([1, 0], [0, 0], n_resamples=0)


def verdicts(both: int, better: int, worse: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers to the four kinds of questions."""
    kinds = [(1, 1)] * both + [(1, 0)] * better + [(0, 1)] * worse + [(0, 0)] * neither
    ours, base = np.array(kinds, dtype=bool).T
    return ours, base


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))
def test_mcnemar_is_the_two_sided_binomial(both, better, worse, neither):
    ours, base = verdicts(both, better, worse, neither)
    assert discordant(ours, base) == (better, worse)
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
    assert mcnemar(ours, base) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(base, ours) == pytest.approx(mcnemar(ours, base))


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (10, 2, 0.03857421875), (5, 15, 0.04138946533203125)],
)
def test_mcnemar_by_hand(better, worse, p):
    assert mcnemar(*verdicts(7, better, worse, 9)) == pytest.approx(p)


def test_tasks_weigh_the_same_whatever_their_sizes():
    strata = ["a"] * 2 + ["b"] * 8
    weighted = even_weights(strata) * np.array([1.0, 0.0, *[0.0] * 8])
    assert weighted.mean() == pytest.approx((0.5 + 0.0) / 2)
    assert even_weights(["a"] * 5).tolist() == [1.0] * 5
    # Interleaved strata get the weights of their own places.
    assert even_weights(["b", "a", "b", "b"]).tolist() == pytest.approx([2 / 3, 2.0, 2 / 3, 2 / 3])


def test_sign_flips_are_mcnemars_test_where_nothing_is_weighted():
    ours, base = np.array([1.0] * 9 + [0.0] * 2 + [1.0] * 30), np.array([0.0] * 9 + [1.0] * 2 + [1.0] * 30)
    assert sign_flips(ours - base) == pytest.approx(mcnemar(ours, base), rel=1e-9), "11 changes: every sign is tried"
    many, few = np.array([1.0] * 60 + [0.0] * 40), np.array([0.0] * 60 + [1.0] * 40)
    assert sign_flips(many - few) == pytest.approx(mcnemar(many, few), abs=0.01)
    assert sign_flips(many - few) == sign_flips(many - few), "drawn from a seed"
    assert sign_flips(np.zeros(5)) == sign_flips(np.array([0.0, 1.0])) == 1.0
    # Weights decide: the same changes, where those against weigh more.
    assert sign_flips(np.array([1.0] * 12)) < 0.01
    assert sign_flips(np.array([1.0] * 9 + [-9.0])) == 1.0
    assert sign_flips([1, 1]) == 0.5, "two of the four signs are as far from 0"
    assert sign_flips(many - few, n_resamples=4) in (0.4, 0.8, 1.0), "one in five at the least: of four draws and what was seen"
    with pytest.raises(ValueError, match="could not convert"):
        sign_flips(["a", "b"])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    assert holm([0.6, 0.9, 0.8]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("p_values", [[1.2], [-0.1], [[0.5]]])
def test_holm_refuses_what_is_no_list_of_p_values(p_values):
    with pytest.raises(ValueError, match=r"expected p-values between 0 and 1 in one dimension, got \["):
        holm(p_values)
    assert holm([0.0, 1.0]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "p", "wanted"),
    [
        (0.1, 0.2, 0.0, True),
        (-0.2, -0.1, 0.04, False),
        (-0.1, 0.1, 0.0, None),
        (0.1, 0.2, 0.05, None),
        (0.0, 0.2, 0.0, None),
        (-0.2, 0.0, 0.0, None),
    ],
)
def test_a_difference_is_decided_by_its_interval_and_its_p(low, high, p, wanted):
    assert decided(low, high, p) is wanted
    assert decided(low, high) is (None if low <= 0 <= high else low > 0)


def test_the_same_defaults_give_the_same_figures_from_one_version_to_the_next():
    """Pages and tables of stored verdicts are made again by other versions: draws, seed and their order are part of the figures."""
    ours, base = [1, 1, 1, 0, 1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 1, 1, 0, 0, 1]
    assert paired_bootstrap(ours, base) == pytest.approx((0.2, -0.2, 0.6), abs=1e-12)
    assert paired_bootstrap(ours, base, n_resamples=1) == pytest.approx((0.2, 0.3, 0.3), abs=1e-12)
    assert sign_flips([1.0] * 11 + [-1.0] * 5 + [0.5, 0.25]) == pytest.approx(0.102, abs=1e-12)
