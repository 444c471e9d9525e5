"""What a sweep says about edits: weights and dead edits worked out on paper, the file form, and the blind baseline."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.edits import EditSpace, Evaluation
from drllm.searching.prior import EditPrior, fit_prior, random_routes, sweep_routes
from landscapes import closure

# Two blocks and single skips: the edits in the order of their codes.
TWO = ("21", "12", "01", "10")


def row(base: tuple[bool, float], *told: tuple[bool, float], routes: Sequence[str] = TWO) -> list[Evaluation]:
    """One question: its base, then each edit's verdict and margin."""
    full = "1" * len(routes[0])
    return [Evaluation(Route.parse(text), *pair) for text, pair in zip((full, *routes), (base, *told), strict=True)]


def by_margin(base: float, *margins: float, routes: Sequence[str] = TWO) -> list[Evaluation]:
    """One question whose verdicts are the signs of its margins."""
    return row(*((margin > 0, margin) for margin in (base, *margins)), routes=routes)


def soft(means: Sequence[float], temperature: float) -> list[float]:
    """Four fifths softmax, one fifth uniform."""
    powers = [math.exp(mean / temperature) for mean in means]
    return [0.8 * power / sum(powers) + 0.2 / len(means) for power in powers]


# Gains 1, 0, -1, -10 and 3, 2, -1, -12: means 2, 1, -1, -11 and root mean squares sqrt 5, sqrt 2, 1, sqrt 122, of which the median.
TABLE = [by_margin(1.0, 2.0, 1.0, 0.0, -9.0), by_margin(-1.0, 2.0, 1.0, -2.0, -13.0)]
SCALE = (math.sqrt(2) + math.sqrt(5)) / 2


def test_margins_by_hand():
    """The last edit loses 11, less a standard error of 1, that is more than twice the scale of 1.83; no right question survives it."""
    prior = fit_prior(2, 1, TABLE)
    assert prior.weights == pytest.approx([*soft([2.0, 1.0, -1.0], 0.25 * SCALE), 0.0])
    assert prior.scale == pytest.approx(SCALE)
    assert (prior.n_layers, prior.max_skip_run, prior.n_questions, prior.dead) == (2, 1, 2, (3,))


def test_an_edit_lives_when_it_is_sometimes_right_or_its_loss_is_unsure():
    spared = [row((True, 1.0), (True, 2.0), (True, 1.0), (True, 0.0), (True, -9.0)), TABLE[1]]
    assert fit_prior(2, 1, spared).dead == ()
    assert fit_prior(2, 1, spared).weights == pytest.approx(soft([2.0, 1.0, -1.0, -11.0], 0.25 * SCALE))
    # What it does to questions the base had wrong spares no edit.
    assert fit_prior(2, 1, [TABLE[0], row((False, -1.0), (True, 2.0), (True, 1.0), (False, -2.0), (True, -13.0))]).dead == (3,)
    # Losses of 10 and 3: 6.5 less a standard error of 3.5 is below twice the scale.
    assert fit_prior(2, 1, [TABLE[0], by_margin(-1.0, 2.0, 1.0, -2.0, -4.0)]).dead == ()
    # One question alone has no standard error.
    assert fit_prior(2, 1, TABLE[:1]).dead == ()
    # Half of the right questions may survive a dead edit, more may not.
    for n_right, dead in ((1, (3,)), (2, (3,)), (3, ())):
        rows = [row((True, 1.0), (True, 2.0), (True, 1.0), (True, 0.0), (index < n_right, -10.0)) for index in range(4)]
        assert fit_prior(2, 1, rows).dead == dead


def test_order_of_routes_and_questions_do_not_matter():
    shuffled = [[told[0], *reversed(told[1:])] for told in reversed(TABLE)]
    assert fit_prior(2, 1, shuffled).weights == pytest.approx(fit_prior(2, 1, TABLE).weights)


def test_runs_that_contain_a_dead_skip_are_dead():
    """Skips of block 1 ruin three blocks; the runs over it are dead although they look good here."""
    routes = [str(route) for route in sweep_routes(3, 2)]
    margins = {"101": -50.0, "001": 3.0, "100": 9e5}
    rows = [by_margin(1.0, *(margins.get(text, 1.5) for text in routes), routes=routes) for _ in range(3)]
    prior = fit_prior(3, 2, rows)
    space = EditSpace(3, 2)
    assert {str(space.apply(Route.full(3), code)) for code in prior.dead} == {"101", "001", "100"}
    assert sum(weight > 0 for weight in prior.weights) == 5
    assert prior.weights[8] == 0.0  # a run of two from the last block is no edit
    assert 8 not in prior.dead


@pytest.mark.parametrize("worst", [math.nan, -math.inf])
def test_a_margin_that_is_no_number_is_the_worst_there_is(worst):
    broken = [TABLE[0], row((False, -1.0), (True, 2.0), (False, worst), (False, -2.0), (False, -13.0))]
    as_bad = [TABLE[0], by_margin(-1.0, 2.0, -13.0, -2.0, -13.0)]
    assert fit_prior(2, 1, broken) == fit_prior(2, 1, as_bad)


def test_a_question_with_a_broken_base_is_left_out():
    """Its routes cannot be compared; the other questions still go by margins."""
    broken = row((False, math.nan), (False, -1.0), (True, 5.0), (False, math.nan), (False, -1.0))
    prior = fit_prior(2, 1, [TABLE[0], broken, TABLE[1]])
    assert prior.weights == fit_prior(2, 1, TABLE).weights
    assert prior.scale == fit_prior(2, 1, TABLE).scale
    assert prior.n_questions == 3


def test_a_table_without_any_finite_gain_or_any_gain_at_all_weighs_alike():
    for rows in ([by_margin(1.0, *[math.nan] * 4)] * 2, [by_margin(1.0, *[1.0] * 4)] * 2):
        prior = fit_prior(2, 1, rows)
        assert prior.weights == pytest.approx([0.25] * 4)
        assert prior.scale == 0.0


def verdicts(base: str, *columns: str) -> list[list[Evaluation]]:
    """Questions without margins: one letter each, y for right, in the base's and in each edit's column."""
    return [row(*((letter == "y", math.nan) for letter in letters)) for letters in zip(base, *columns, strict=True)]


def test_verdicts_by_hand():
    """Five questions, four of them right: mean gains 1/5, 0, -3/5; the last edit turns every verdict wrong."""
    prior = fit_prior(2, 1, verdicts("yyyyn", "yyyyy", "yyyny", "ynnnn", "nnnnn"))
    assert prior.weights == pytest.approx([*soft([0.2, 0.0, -0.6], 0.25 * 0.5), 0.0])
    assert math.isnan(prior.scale)
    assert prior.dead == (3,)


def test_an_edit_lives_when_it_fixes_one_or_too_few_were_right():
    assert fit_prior(2, 1, verdicts("yyyyn", "yyyyy", "yyyny", "ynnnn", "nnnny")).dead == ()
    assert fit_prior(2, 1, verdicts("yyynn", "yyyyy", "yyyny", "ynnnn", "nnnnn")).dead == ()


def test_every_edit_may_be_dead():
    prior = fit_prior(2, 1, verdicts("yyyy", *["nnnn"] * 4))
    assert prior.weights == (0.0,) * 4
    assert prior.dead == (0, 1, 2, 3)


def test_one_block_has_one_edit():
    assert [str(route) for route in sweep_routes(1, 2)] == ["2"]
    prior = fit_prior(1, 2, [by_margin(1.0, 0.5, routes=["2"])])
    assert prior.weights == (1.0, 0.0)
    assert prior.dead == ()


margins = st.floats(-10, 10) | st.sampled_from([math.nan, -math.inf, 0.0])


@settings(deadline=None)
@given(n_layers=st.integers(1, 4), max_skip_run=st.integers(1, 3), n_questions=st.integers(1, 5), data=st.data())
def test_weights_are_a_distribution_in_the_order_of_gains(n_layers, max_skip_run, n_questions, data):
    routes = [Route.full(n_layers), *sweep_routes(n_layers, max_skip_run)]
    generated = data.draw(st.booleans())
    rows = [
        [Evaluation(route, data.draw(st.booleans()), math.nan if generated else data.draw(margins)) for route in routes]
        for _ in range(n_questions)
    ]
    prior = fit_prior(n_layers, max_skip_run, rows)
    live = [weight for weight in prior.weights if weight > 0]
    assert len(live) + len(prior.dead) == len(routes) - 1
    if live:
        assert sum(live) == pytest.approx(1)
        assert min(live) >= 0.2 / len(live) - 1e-12
    if generated:
        space = EditSpace(n_layers, max_skip_run)
        n_right = {space.apply(routes[0], code): weight for code, weight in enumerate(prior.weights) if weight > 0}
        ranked = [(sum(told.correct for told in column), n_right.get(column[0].route)) for column in zip(*rows, strict=True)]
        known = sorted((right, weight) for right, weight in ranked if weight is not None)
        assert [weight for _, weight in known] == sorted(weight for _, weight in known)
    assert repr(EditPrior.from_json(json.loads(json.dumps(prior.to_json())))) == repr(prior)  # nan equals itself in a repr


def test_sweeps_that_lack_a_route_are_refused():
    with pytest.raises(InputError, match="a sweep of no questions"):
        fit_prior(2, 1, [])
    for missing, text in enumerate(("11", *TWO)):
        rows = [TABLE[0], [*TABLE[1][:missing], *TABLE[1][missing + 1 :]]]
        with pytest.raises(InputError, match=f"lacks route {text}: expected the base and all 4 single edits"):
            fit_prior(2, 1, rows)


@pytest.mark.parametrize(("n_layers", "max_skip_run", "n_routes"), [(1, 1, 1), (2, 1, 4), (2, 2, 4), (3, 3, 8), (12, 2, 35), (30, 2, 89)])
def test_a_sweep_is_every_single_edit_once(n_layers, max_skip_run, n_routes):
    """The run over all blocks is the empty path and not among them."""
    routes = sweep_routes(n_layers, max_skip_run)
    assert len(set(routes)) == len(routes) == n_routes
    assert {str(route).strip("1") for route in routes} <= {"2", *("0" * length for length in range(1, max_skip_run + 1))}
    if n_layers <= 3:
        assert set(routes) <= closure(n_layers, max_skip_run, 2 * n_layers)


PRIOR = EditPrior(2, 1, (0.5, 0.25, 0.25, 0.0), 0.1, 7)


def test_the_file_form_is_plain_json():
    values = PRIOR.to_json()
    assert values == {"n_layers": 2, "max_skip_run": 1, "weights": [0.5, 0.25, 0.25, 0.0], "scale": 0.1, "n_questions": 7}
    assert EditPrior.from_json(values) == PRIOR
    assert EditPrior(2, 1, PRIOR.weights, math.nan, 7).to_json()["scale"] is None
    assert math.isnan(EditPrior.from_json({**values, "scale": None}).scale)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "text",
        {},
        *({name: value for name, value in PRIOR.to_json().items() if name != left_out} for left_out in PRIOR.to_json()),
        *({**PRIOR.to_json(), name: None} for name in ("n_layers", "max_skip_run", "weights", "n_questions")),
        *({**PRIOR.to_json(), "n_layers": value} for value in (0, -2, 3, 2.5, math.inf, "two")),
        *({**PRIOR.to_json(), "max_skip_run": value} for value in (2, 0, 1.5)),
        *({**PRIOR.to_json(), "n_questions": value} for value in (math.nan, "7")),
        *({**PRIOR.to_json(), "scale": value} for value in (-0.1, math.inf, "wide", [], 10**400)),
        *(
            {**PRIOR.to_json(), "weights": value}
            for value in (
                [],
                [1.0],
                [0.5, 0.5, 0.5, 0.5],
                [1.5, -0.5, 0.0, 0.0],
                [math.nan, 0.5, 0.5, 0.0],
                [0.5, 0.2, 0.2, 0.0],
                ["a", 0, 0, 1],
                3,
            )
        ),
    ],
)
def test_anything_else_is_refused(values):
    with pytest.raises(InputError, match=r"edit prior|expected at least 1"):
        EditPrior.from_json(values)


CONFIG = SearchConfig()


@settings(deadline=None, max_examples=40)
@given(n_layers=st.integers(6, 16), n=st.integers(0, 20), seed=st.integers(0, 2**64 - 1), ratio=st.floats(1, 2), run=st.integers(1, 4))
def test_random_routes_are_distinct_legal_and_of_one_to_three_edits(n_layers, n, seed, ratio, run):
    config = SearchConfig(max_passes_ratio=ratio, max_skip_run=run)
    routes = random_routes(n_layers, n, config, seed)
    assert len(set(routes)) == len(routes) == n
    for route in routes:
        assert not route.is_full
        assert 1 <= route.n_passes <= ratio * n_layers + 1e-9
        assert sum(action == 2 for action in route) <= 3
        assert sum(action != 1 for action in route) <= 3 * run
    assert random_routes(n_layers, n, config, seed) == routes


def test_random_routes_differ_by_seed_and_leave_the_global_generator_alone():
    random.seed(5)
    before = random.getstate()
    assert random_routes(30, 50, CONFIG, 1) != random_routes(30, 50, CONFIG, 2)
    assert random.getstate() == before


@pytest.mark.long
def test_random_routes_are_drawn_as_stated():
    """Edits a route 1 : 2 : 1.5, each drawn alike from all legal ones; expected counts with four standard errors."""
    single = SearchConfig(max_skip_run=1)
    n = 500
    edits = Counter(sum(action != 1 for action in route) for seed in range(n) for route in random_routes(20, 1, single, seed))
    for n_edits, share in ((1, 1 / 4.5), (2, 2 / 4.5), (3, 1.5 / 4.5)):
        assert abs(edits[n_edits] / n - share) < 4 * math.sqrt(share * (1 - share) / n)
    kinds = Counter(str(route).strip("1") for seed in range(500) for route in random_routes(20, 1, CONFIG, seed))
    alone = np.array([kinds[kind] for kind in ("2", "0", "00")])
    assert np.all(abs(alone / alone.sum() - 1 / 3) < 4 * math.sqrt(2 / 9 / alone.sum()))


@pytest.mark.parametrize(("n_layers", "ratio", "n_routes"), [(1, 2.0, 1), (1, 1.0, 0), (2, 2.0, 7), (3, 2.0, 25)])
def test_all_random_routes_there_are_can_be_had_and_no_more(n_layers, ratio, n_routes):
    config = SearchConfig(max_passes_ratio=ratio)
    routes = random_routes(n_layers, n_routes, config, 0)
    assert {*routes, Route.full(n_layers)} == closure(n_layers, 2, ratio * n_layers)
    with pytest.raises(InputError, match=f"asked for {n_routes + 1} random routes over {n_layers} blocks, found {n_routes}"):
        random_routes(n_layers, n_routes + 1, config, 0)
