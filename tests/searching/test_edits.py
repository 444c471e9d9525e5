"""The edits of a search: what each code stands for, where it is legal, every single one; the blind baseline; and what searches cost."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route, Span
from drllm.scoring.generated import NEW_TOKENS
from drllm.searching.cost import PATH_COST, stages_of
from drllm.searching.edits import EditSpace, random_routes
from drllm.tasks import Example, LoadedTask, get_task
from drllm.tasks.wording import WORDINGS
from landscapes import closure

TEXT = {0: "2", 1: "0", 2: "00", 3: "000"}


@pytest.mark.parametrize(("n_layers", "max_skip_run", "n_codes"), [(1, 1, 2), (1, 9, 2), (2, 2, 6), (2, 5, 6), (30, 2, 90), (4, 1, 8)])
def test_codes_are_counted_up_to_the_longest_run_that_fits(n_layers, max_skip_run, n_codes):
    assert EditSpace(n_layers, max_skip_run).n_codes == n_codes
    with pytest.raises(InputError, match="a search over 0 blocks"):
        EditSpace(0, 2)


@given(n_layers=st.integers(1, 12), run=st.integers(1, 3), ratio=st.floats(1, 2), data=st.data())
def test_an_edit_replaces_executed_blocks_where_the_path_stays_legal(n_layers, run, ratio, data):
    """Against the edit written out in text."""
    space = EditSpace(n_layers, run, ratio)
    text = "".join(data.draw(st.lists(st.sampled_from("0111112"), min_size=n_layers, max_size=n_layers)))
    code = data.draw(st.integers(0, space.n_codes - 1))
    kind, start = divmod(code, n_layers)
    new = TEXT[kind]
    edited = text[:start] + new + text[start + len(new) :]
    legal = text[start : start + len(new)] == "1" * len(new) and 1 <= sum(map(int, edited)) <= ratio * n_layers + 1e-9
    assert space.apply(Route.parse(text), code) == (Route.parse(edited) if legal else None)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("ratio", [1.0, 1.3, 2.0])
def test_edits_reach_every_route_but_the_empty_one_below_the_cap(n_layers, ratio):
    space, full = EditSpace(n_layers, 2, ratio), Route.full(n_layers)
    seen, front = {full}, [full]
    while front:
        route = front.pop()
        new = {edited for code in range(space.n_codes) if (edited := space.apply(route, code)) is not None} - seen
        seen |= new
        front += new
    assert seen == closure(n_layers, 2, ratio * n_layers)
    legal = {Route(actions) for actions in product(range(3), repeat=n_layers) if 1 <= sum(actions) <= ratio * n_layers + 1e-9}
    assert seen == legal


def test_passes_are_capped_exactly():
    """1.16 * 25 is 28.999999999999996 in floating point; 29 passes are allowed all the same, 30 are not."""
    space = EditSpace(25, 2, 1.16)
    assert space.max_passes == 29
    assert space.apply(Route([2] * 3 + [1] * 22), 24) == Route([2] * 3 + [1] * 21 + [2])
    assert space.apply(Route([2] * 4 + [1] * 21), 24) is None


@given(n_layers=st.integers(1, 9), run=st.integers(1, 3), loops=st.integers(0, 5), data=st.data())
def test_a_loop_runs_a_span_of_executed_blocks_once_more(n_layers, run, loops, data):
    """Against the path written out: one code for each span of two blocks or more."""
    space = EditSpace(n_layers, run, 2.0, loops)
    actions = data.draw(st.lists(st.sampled_from([0, 1, 1, 1, 2]), min_size=n_layers, max_size=n_layers))
    first = EditSpace(n_layers, run).n_codes
    found = [edited for code in range(first, space.n_codes) if (edited := space.apply(Route(actions), code)) is not None]
    spans = [(i, j) for i in range(n_layers) for j in range(i + 2, min(i + loops, n_layers) + 1)]
    spans = [(i, j) for i, j in spans if set(actions[i:j]) == {1} and sum(actions) + j - i <= 2 * n_layers]
    expected = set()
    for i, j in spans:
        before = [Span(block, block) for block in range(j) for _ in range(actions[block])]
        behind = [Span(block, block) for block in range(j, n_layers) for _ in range(actions[block])]
        expected.add(Route.along([*before, Span(i, j - 1), *behind], n_layers))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_edits_of_before_keep_their_codes_where_loops_are_added():
    plain, looped = EditSpace(6, 2), EditSpace(6, 2, 2.0, 3)
    for code in range(plain.n_codes):
        assert looped.apply(Route.full(6), code) == plain.apply(Route.full(6), code)
    assert looped.n_codes == plain.n_codes + 2 * 6


def test_looped_blocks_are_edited_once():
    """Neither repeated nor looped again."""
    space, looped = EditSpace(4, 1, 2.0, 2), Route.full(4).loop(1, 2)
    loops = [code for code in range(space.n_codes) if space.apply(Route.full(4), code) == looped]
    assert len(loops) == 1
    assert space.apply(looped, 1) is None
    assert space.apply(looped, loops[0]) is None


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
    assert random_routes(30, 50, SearchConfig(), 1) != random_routes(30, 50, SearchConfig(), 2)
    assert random.getstate() == before


@pytest.mark.long
def test_random_routes_are_drawn_as_stated():
    """Edits a route 1 : 2 : 1.5, each drawn alike from all legal ones; expected counts with four standard errors."""
    single = SearchConfig(max_skip_run=1)
    n = 500
    edits = Counter(sum(action != 1 for action in route) for seed in range(n) for route in random_routes(20, 1, single, seed))
    for n_edits, share in ((1, 1 / 4.5), (2, 2 / 4.5), (3, 1.5 / 4.5)):
        assert abs(edits[n_edits] / n - share) < 4 * math.sqrt(share * (1 - share) / n)
    kinds = Counter(str(route).strip("1") for seed in range(500) for route in random_routes(20, 1, SearchConfig(), seed))
    alone = np.array([kinds[kind] for kind in ("2", "0", "00")])
    assert np.all(abs(alone / alone.sum() - 1 / 3) < 4 * math.sqrt(2 / 9 / alone.sum()))


@pytest.mark.parametrize(("n_layers", "ratio", "n_routes"), [(1, 2.0, 1), (1, 1.0, 0), (2, 2.0, 7), (3, 2.0, 25)])
def test_all_random_routes_there_are_can_be_had_and_no_more(n_layers, ratio, n_routes):
    config = SearchConfig(max_passes_ratio=ratio)
    routes = random_routes(n_layers, n_routes, config, 0)
    assert {*routes, Route.full(n_layers)} == closure(n_layers, 2, ratio * n_layers)
    with pytest.raises(InputError, match=f"asked for {n_routes + 1} random routes over {n_layers} blocks, found {n_routes}"):
        random_routes(n_layers, n_routes + 1, config, 0)


@pytest.mark.parametrize(("n_layers", "max_skip_run", "n_routes"), [(1, 1, 1), (2, 2, 4), (3, 3, 8), (12, 2, 35), (30, 2, 89)])
def test_every_single_edit_is_there_once(n_layers, max_skip_run, n_routes):
    """The run over all blocks is the empty path and not among them."""
    routes = EditSpace(n_layers, max_skip_run).edited(Route.full(n_layers))
    assert len(set(routes)) == len(routes) == n_routes
    assert {str(route).strip("1") for route in routes} <= {"2", *("0" * length for length in range(1, max_skip_run + 1))}


def test_every_reward_has_a_cost():
    generated = {*NEW_TOKENS, *WORDINGS["ours"].new_tokens}
    assert set(PATH_COST) == {"loglik", *generated}
    assert all(PATH_COST[reward] > PATH_COST["loglik"] for reward in generated), "decoding comes on top"


@pytest.mark.parametrize(("reward", "decoded"), [("loglik", 0.0), ("letter", 0.15)])
def test_a_list_shares_its_prompts_and_decodes_each_answer(reward, decoded):
    """By hand, 4 blocks: the base runs 4; 1110 is a part of that; 1101 runs block 3 anew. 5 of 4 blocks, and three answers."""
    rows = [Example(f"q{n}", f"{n}?", ("no", "yes"), 0, "arc_easy") for n in range(10)]
    loaded = LoadedTask(get_task("arc_easy"), "nowhere", {"fit": rows, "tune": rows[:3], "calibrate": [], "test": []}, {})
    routes = [Route.parse("1110"), Route.parse("1101")]
    found = stages_of({"arc_easy": loaded}, SearchConfig(reward=reward, splits=("fit", "tune"), limit=8), 4, routes)
    each = 1.25 + 3 * decoded
    assert found == {f"arc_easy: fit 8, tune 3 questions, 2 routes, {each:.1f} a question": pytest.approx(11 * each)}
