"""The race on made-up answers: it finds what is best, spends what it says, and does not hear from those it left behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm.scanning.race import race, schedule, scores, shares
from landscapes import spread_answers


@given(st.integers(1, 1000), st.integers(1, 100))
def test_rounds_double_and_end_with_all_questions(n, first):
    found = schedule(n, first)
    assert (found[0], found[-1]) == (min(n, first), n)
    assert found == sorted(set(found))
    assert schedule(100, 8) == [8, 16, 32, 64, 100]


def test_half_of_a_kind_goes_on_and_never_fewer_than_are_wanted():
    assert shares(465, 5, 5) == [465, 233, 117, 59, 30]
    assert shares(10, 5, 4) == [10, 5, 4, 4, 4]
    assert shares(3, 4, 5) == [3, 3, 3, 3]


def test_scores_join_verdict_and_margin():
    verdicts = np.array([[True, True, False]])
    margins = np.array([[2.0, 4.0, -2.0]])
    found = scores(verdicts, margins)[0]
    assert found[0] == pytest.approx(0.5 + 0.5 / (1 + math.exp(-1)))
    assert found[1] > found[0] > found[2]
    assert ((found >= 0) & (found <= 1)).all()


def test_without_margins_the_verdict_is_all_and_broken_logits_have_nothing():
    verdicts = np.array([[True, False], [False, True]])
    assert (scores(verdicts, np.full((2, 2), np.nan)) == verdicts).all()
    assert scores(np.array([[True, False]]), np.array([[1.0, np.nan]]))[0, 1] == 0


def test_scores_do_not_depend_on_the_unit_of_margins():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=(20, 4))
    assert scores(margins > 0, margins) == pytest.approx(scores(margins > 0, 1000 * margins))


@pytest.mark.parametrize("seed", range(5))
def test_a_clear_best_wins(seed):
    answers = spread_answers(60, 128, best=17, lead=0.6, seed=seed)
    standing = race(["loop"] * 60, schedule(128, 8), 3, answers.ask)
    assert standing.ranking[0] == 17
    assert [n for n, _ in answers.asked] == [60, 30, 15, 8, 4]


def test_each_kind_races_by_itself():
    answers = spread_answers(40, 64, best=3, lead=1.0, seed=1)
    kinds = ["loop"] * 20 + ["skip"] * 20
    standing = race(kinds, schedule(64, 8), 2, answers.ask)
    assert sum(one >= 20 for one in standing.last) == sum(one < 20 for one in standing.last) == 3
    assert standing.ranking[0] == 3


def test_questions_are_new_in_each_round_and_candidates_were_in_the_one_before():
    answers = spread_answers(30, 64, best=0, lead=0.1, seed=2)
    race(["loop"] * 30, schedule(64, 8), 1, answers.ask)
    assert [(start, stop) for _, start, stop in answers.calls] == [(0, 8), (8, 16), (16, 32), (32, 64)]
    for (before, _, _), (after, _, _) in zip(answers.calls, answers.calls[1:], strict=False):
        assert set(after) <= set(before)
        assert after == sorted(after)


def test_the_standing_says_how_many_questions_each_had_and_what_it_scored():
    answers = spread_answers(10, 32, best=4, lead=0.5, seed=3)
    standing = race(["loop"] * 10, schedule(32, 8), 1, answers.ask)
    assert sorted(set(standing.n_C.tolist())) == [8, 16, 32]
    whole = scores(answers.verdicts, answers.margins)
    for one in standing.last:
        assert standing.accuracy_C[one] == pytest.approx((answers.verdicts[:, 1 + one].astype(float) - answers.verdicts[:, 0]).mean())
        assert standing.score_C[one] == pytest.approx((whole[:, 1 + one] - whole[:, 0]).mean())
        assert (standing.verdicts_QR[:, 1 + standing.last.index(one)] == answers.verdicts[:, 1 + one]).all()
    out = int(np.flatnonzero(standing.n_C == 8)[0])
    first = scores(answers.verdicts[:8], answers.margins[:8])
    assert standing.score_C[out] == pytest.approx((first[:, 1 + out] - first[:, 0]).mean())


def test_equal_candidates_go_on_in_an_order_that_says_nothing_of_their_place():
    same = np.tile(np.array([[True], [False]]), (8, 7))

    def ask(alive, start, stop):
        return same[start:stop, : 1 + len(alive)], np.zeros((stop - start, 1 + len(alive)))

    assert race(["loop"] * 6, schedule(16, 4), 1, ask).last == race(["loop"] * 6, schedule(16, 4), 1, ask).last == [3, 4]
