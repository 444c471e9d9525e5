"""Candidates of a scan: every span once under every kind, what they cost together, and random ones of the same shape."""

from __future__ import annotations

import random

import pytest

from drllm import Route
from drllm.scanning.race import by_round, schedule
from drllm.scanning.spans import candidate, candidates, described, elsewhere, forwards_a_question, race_cost, random_spans, rounds_cost
from drllm.searching.cost import block_runs

KINDS = ("loop", "damped", "skip")


@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_every_span_stands_once_under_every_kind(n_layers):
    found = candidates(n_layers, KINDS, 0.5)
    spans = {(first, last) for last in range(n_layers) for first in range(last + 1)}
    for kind in KINDS:
        of_kind = [(one.first, one.last) for one in found if one.kind == kind]
        assert sorted(of_kind) == sorted(spans - ({(0, n_layers - 1)} if kind == "skip" else set()))
    assert len({one.route for one in found}) == len(found), "no two candidates are one route"


def test_routes_are_what_the_kinds_say():
    found = {(one.kind, one.first, one.last): str(one.route) for one in candidates(5, KINDS, 0.5)}
    assert found["loop", 1, 3] == "0-3,1-4"
    assert found["damped", 1, 3] == "0-3,(1-3)*0.5,4"
    assert found["skip", 1, 3] == "10001"
    assert found["loop", 2, 2] == "11211"
    assert {one.length for one in candidates(6, ("loop",), 0.5, max_span=2)} == {1, 2}


def test_a_route_is_told_as_the_candidate_that_it_is():
    for one in candidates(5, KINDS, 0.5):
        assert described(one.route, 0.5) == one
    for text in ("11111", "01011", "00000", "21111,0", "0-3,1-4,1-2/5"):
        if "," not in text:
            assert described(Route.parse(text), 0.5) is None
    assert described(Route.full(5).loop(1, 2, times=3), 0.5) is None
    assert described(Route.full(5).loop(1, 2, 0.25), 0.5) is None


def test_block_runs_count_what_begins_alike_once():
    full = Route.full(4)
    assert block_runs([full]) == 4
    assert block_runs([full, full]) == 4
    assert block_runs([full, Route.parse("1110")]) == 4
    assert block_runs([full, Route.parse("1011")]) == 6
    loop, damped = full.loop(1, 2), full.loop(1, 2, 0.5)
    assert block_runs([full, loop]) == 4 + 3
    assert block_runs([full, damped]) == 4 + 3
    assert block_runs([full, loop, damped]) == 4 + 3 + 1, "the second pass is the same, what comes behind it is not"


def test_block_runs_of_all_spans_have_their_closed_form():
    """Loops of (i, j) add L - i blocks, skips L - 1 - j, damped loops beside plain ones L - 1 - j."""
    n = 7
    full, spans = Route.full(n), [(first, last) for last in range(n) for first in range(last + 1)]
    loops = [one.route for one in candidates(n, ("loop",), 0.5)]
    assert block_runs([full, *loops]) == n + sum(n - first for first, _ in spans)
    both = [one.route for one in candidates(n, ("loop", "damped"), 0.5)]
    assert block_runs([full, *both]) == n + sum(n - first for first, _ in spans) + sum(n - 1 - last for _, last in spans)
    skips = [one.route for one in candidates(n, ("skip",), 0.5)]
    assert block_runs([full, *skips]) == n + sum(n - 1 - last for _, last in spans)


def test_random_spans_have_kind_and_length_and_are_others():
    pool = candidates(8, KINDS, 0.5)
    chosen = [candidate("loop", 2, 4, 8, 0.5), candidate("loop", 1, 3, 8, 0.5), candidate("skip", 6, 6, 8, 0.5)]
    found = random_spans(chosen, pool, seed=3)
    assert [(one.kind, one.length) for one in found] == [(one.kind, one.length) for one in chosen]
    assert len({*found, *chosen}) == 6
    assert found == random_spans(chosen, pool, seed=3)
    assert any(found != random_spans(chosen, pool, seed=seed) for seed in range(20))


def test_the_longest_span_is_set_beside_one_of_the_nearest_length_and_a_kind_that_is_all_chosen_beside_none():
    (found,) = random_spans([candidate("loop", 0, 3, 4, 0.5)], candidates(4, KINDS, 0.5), seed=0)
    assert (found.kind, found.length) == ("loop", 3)
    pool = candidates(1, KINDS, 0.5)
    assert random_spans([pool[0]], pool, seed=0) == []


@pytest.mark.parametrize("text", ["0-4,3-7", "0-4,(3-4)*0.3,5-7", "0-4,3-4,3-7", "11100111", "0-2,1-4,3-7", "0-1,3-7", "11112111"])
def test_a_change_stands_elsewhere_as_it_is(text):
    route, generator = Route.parse(text, 8), random.Random(0)
    drawn = set(elsewhere(route, 50, generator))
    assert len(drawn) > 2
    assert len(elsewhere(route, 2, generator)) == 2
    assert route not in drawn
    assert {one.n_passes for one in drawn} == {route.n_passes}
    kind, moved = described(route, 0.5), [described(one, 0.5) for one in drawn]
    assert kind is None or {(one.kind, one.length) for one in moved if one} == {(kind.kind, kind.length)}
    strengths = {tuple(span.strength for span in one.spans if span.strength < 1) for one in drawn}
    assert strengths == {tuple(span.strength for span in route.spans if span.strength < 1)}


def test_what_has_no_other_place_stays():
    generator = random.Random(0)
    assert elsewhere(Route.full(4), 5, generator) == []
    assert elsewhere(Route.full(4).loop(0, 3), 5, generator) == []


def test_the_cost_of_a_race_counts_that_fewer_share_less():
    """Whoever goes on, it is near."""
    pool, sizes = candidates(30, KINDS, 0.5), schedule(128, 8)
    guess = race_cost(sizes, rounds_cost(30, pool, 5, 5))
    assert race_cost(sizes[:3], rounds_cost(30, pool, 5, 5)) == race_cost(sizes[:3], rounds_cost(30, pool, 3, 5))
    generator, cost = random.Random(7), 0.0
    for n, count in zip((8, 8, 16, 32, 64), by_round([one.kind for one in pool], 5, 5), strict=True):
        cost += n * forwards_a_question(30, generator.sample(pool, count))
    assert guess == pytest.approx(cost, rel=0.05)
