"""The search tree: asking and telling in turn, legal routes, none twice, real branching, algorithm 1's scores, early stop and choice."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.tree import Evaluation, RouteTree
from landscapes import closure, config_of, never, noise, one_right, run

seeds = st.integers(0, 2**64 - 1)
options = st.fixed_dictionaries(
    {
        "n_simulations": st.integers(0, 60),
        "exploration": st.floats(0, 5),
        "length_penalty": st.floats(0, 20),
        "random_prob": st.floats(0, 1),
        "max_skip_run": st.integers(1, 5),
        "max_passes_ratio": st.floats(1, 2),
        "widening": st.floats(0.1, 10),
        "early_stop": st.booleans(),
    }
)


def lines_of(tree: RouteTree, answer) -> list[list[Route]]:
    """The line of every simulation, from the root to the route asked."""
    lines = []
    while (route := tree.ask()) is not None:
        lines.append([node.route for node in tree.line])
        tree.tell(route, *answer(route))
    return lines


def broken_at_times(answer, seed):
    """Now and then the logits are no numbers: wrong, with a margin of nan, or of -inf."""

    def broken(route: Route) -> tuple[bool, float]:
        pick = random.Random(f"broken {seed}:{route}").random()
        return answer(route) if pick > 0.1 else (False, math.nan if pick > 0.05 else -math.inf)

    return broken


@settings(max_examples=60, deadline=None)
@given(n_layers=st.integers(1, 60), values=options, seed=seeds)
def test_routes_are_legal_never_asked_twice_and_booked(n_layers, values, seed):
    config = config_of(**values)
    tree = RouteTree(n_layers, config, seed)
    answer = broken_at_times(noise(seed), seed)
    lines = lines_of(tree, answer)
    asked = [line[-1] for line in lines]
    assert asked[0] == Route.full(n_layers)
    assert len(set(asked)) == len(asked) <= config.n_simulations + 1
    for route in asked:
        assert len(route) == n_layers
        assert 1 <= route.n_passes <= config.max_passes_ratio * n_layers + 1e-9
    assert [told.route for told in tree.evaluated] == asked == list(tree.nodes)
    assert [(told.correct, str(told.margin)) for told in tree.evaluated] == [(answer(route)[0], str(answer(route)[1])) for route in asked]
    assert tree.ask() is None  # and stays so
    # Each verdict is counted once at every node of its line; every link is one legal edit.
    visits = Counter(route for line in lines for route in line)
    values_seen = Counter(route for line in lines if answer(line[-1])[0] for route in line)
    for node in tree.nodes.values():
        assert (node.visits, node.value) == (visits[node.route], values_seen[node.route])
        for child in node.children:
            assert tree.nodes[child.route] is child
            changed = [block for block in range(n_layers) if node.route[block] != child.route[block]]
            assert all(node.route[block] == 1 for block in changed)
            assert changed == list(range(changed[0], changed[-1] + 1))
            new = [int(child.route[block]) for block in changed]
            assert new == [2] or (len(new) <= config.max_skip_run and set(new) == {0})
        assert len({child.route for child in node.children}) == len(node.children)


@settings(max_examples=60, deadline=None)
@given(n_layers=st.integers(1, 5), values=options, seed=seeds)
def test_a_search_ends_for_three_reasons_only(n_layers, values, seed):
    """The budget is spent, every legal route was asked, or a fix was found, or two blocks are saved."""
    config = config_of(**values)
    answer = noise(seed, right=0.1)
    asked = run(RouteTree(n_layers, config, seed), answer)
    limit = min(config.n_simulations + 1, len(closure(n_layers, config.max_skip_run, config.max_passes_ratio * n_layers)))
    fixes = [index for index, route in enumerate(asked) if answer(route)[0]]
    if config.early_stop and fixes and fixes[0] > 0:
        limit = min(limit, fixes[0] + 1)
    shorter = [index for index in fixes if asked[index].n_passes <= n_layers - 2]
    if config.early_stop and shorter:
        limit = min(limit, shorter[0] + 1)
    assert len(asked) == limit


@settings(max_examples=40, deadline=None)
@given(n_layers=st.integers(1, 4), values=options, seed=seeds)
def test_a_budget_beyond_the_tree_visits_every_legal_route_and_ends(n_layers, values, seed):
    config = config_of(**{**values, "n_simulations": 1000, "early_stop": False})
    asked = run(RouteTree(n_layers, config, seed), noise(seed))
    assert set(asked) == closure(n_layers, config.max_skip_run, config.max_passes_ratio * n_layers)


def test_two_orders_of_edits_meet_in_one_node():
    """All 8 routes of two blocks: 00 is illegal, each of 02, 20 and 22 has the two single edits it is made of as parents."""
    tree = RouteTree(2, config_of(), 0)
    asked = [str(route) for route in run(tree, never)]
    assert asked[0] == "11"
    assert sorted(asked) == ["01", "02", "10", "11", "12", "20", "21", "22"]
    parents = {
        text: sorted(str(node.route) for node in tree.nodes.values() if tree.nodes[Route.parse(text)] in node.children)
        for text in ("02", "20", "22")
    }
    assert parents == {"02": ["01", "12"], "20": ["10", "21"], "22": ["12", "21"]}


def test_the_base_is_not_one_of_the_simulations():
    assert len(run(RouteTree(30, config_of(), 0), never)) == 51
    assert run(RouteTree(3, config_of(n_simulations=0), 0), never) == [Route.full(3)]
    assert [str(route) for route in run(RouteTree(1, config_of(), 0), never)] == ["1", "2"]


@pytest.mark.parametrize("widening", [0.5, 2.0, 3.7])
def test_nodes_widen_by_the_root_of_their_visits(widening):
    """A line goes on below full nodes and ends with a new child of one that had room."""
    tree = RouteTree(60, config_of(n_simulations=150, widening=widening), 3)
    answer = noise(5)
    while (route := tree.ask()) is not None:
        *above, _ = tree.line
        for node in above:
            room = math.ceil(widening * math.sqrt(node.visits))
            if not any(child.done for child in node.children):
                assert len(node.children) <= room if node is above[-1] else len(node.children) >= room
        tree.tell(route, *answer(route))


def test_a_planted_sibling_is_found():
    """A search that walks a chain cannot do this: one single edit of 35 is right, no other route hints at it; 300 of half a million."""
    singles = [Route.full(12).edit(start, *new) for new in ((0,), (2,), (0, 0)) for start in range(13 - len(new))]
    for seed, planted in enumerate(singles):
        tree = RouteTree(12, config_of(n_simulations=300, early_stop=True), seed)
        run(tree, one_right(planted, seed))
        assert tree.chosen == planted


@pytest.mark.long
def test_it_finds_a_planted_route_of_three_edits():
    """400 of the 6,560 routes of 8 blocks, 20 seeds; with nothing to guide it the same search finds it for one seed in five."""
    planted = Route.parse("11012110")

    def hits_beyond_strays(route: Route) -> tuple[bool, float]:
        hits = sum(action == wanted != 1 for action, wanted in zip(route, planted, strict=True))
        strays = sum(action not in (1, wanted) for action, wanted in zip(route, planted, strict=True))
        return hits > strays, math.nan

    config = config_of(n_simulations=400, length_penalty=0.0, exploration=0.1)
    assert all(planted in run(RouteTree(8, config, seed), hits_beyond_strays) for seed in range(20))


def test_trees_asked_in_turns_share_no_generator_and_leave_the_global_one_alone():
    answer = noise(2)
    random.seed(5)
    before = random.getstate()
    alone = [run(RouteTree(16, config_of(), seed), answer) for seed in (7, 8)]
    trees = [RouteTree(16, config_of(), seed) for seed in (7, 8)]
    together: list[list[Route]] = [[], []]
    for _ in range(51):
        for tree, seen in zip(trees, together, strict=True):
            route = tree.ask()
            assert route is not None
            tree.tell(route, *answer(route))
            seen.append(route)
    assert together == alone
    assert alone[0] != alone[1], "seeds decide"
    assert random.getstate() == before


def test_selection_is_the_ucb_of_algorithm_1():
    """Every step of a search, with V, v and Q counted from the lines before it: Q / v + c sqrt(ln V / v) - lambda passes / L."""
    config = config_of(n_simulations=300, random_prob=0.0, exploration=0.7, length_penalty=1.3)
    tree, answer = RouteTree(20, config, 1), noise(4)
    visits: Counter[Route] = Counter()
    right: Counter[Route] = Counter()

    def ucb(parent: Route, child: Route) -> float:
        explore = 0.7 * math.sqrt(math.log(visits[parent]) / visits[child])
        return right[child] / visits[child] + explore - 1.3 * child.n_passes / 20

    choices = 0
    while (route := tree.ask()) is not None:
        line = [node.route for node in tree.line]
        for node, child in zip(tree.line[:-2], line[1:-1], strict=True):
            choices += len(node.children) > 1
            assert ucb(node.route, child) == pytest.approx(max(ucb(node.route, other.route) for other in node.children))
        correct, margin = answer(route)
        tree.tell(route, correct, margin)
        visits.update(line)
        right.update(line if correct else [])
    assert choices > 200


def test_the_random_child_is_taken_with_its_probability():
    """Reward lies below skips of block 0 alone: pure selection stays there, pure chance does not."""

    def share(random_prob: float) -> float:
        below = []
        for seed in range(5):
            config = config_of(n_simulations=80, exploration=0.0, length_penalty=0.0, random_prob=random_prob)
            lines = lines_of(RouteTree(8, config, seed), lambda route: (route[0] == 0, math.nan))
            below += [line[1] for line in lines if len(line) > 2]
        return sum(route[0] == 0 for route in below) / len(below)

    assert share(0.0) > 0.7
    assert share(1.0) < 0.4


def test_early_stop_by_example():
    """The base wrong, every other route right: it stops at once; the base right: at the first that saves two blocks."""

    def count(answer, early_stop=True) -> int:
        return len(run(RouteTree(12, config_of(early_stop=early_stop, n_simulations=40), 0), answer))

    def easy(route: Route) -> tuple[bool, float]:
        return not route.is_full, 1.0

    assert count(easy) == 2
    assert count(easy, early_stop=False) == 41
    assert count(never) == 41
    assert count(lambda route: (route.n_passes >= 11, 1.0)) == 41, "the base was right, and no route that is right saves two blocks"
    asked = run(RouteTree(12, config_of(early_stop=True, n_simulations=40), 0), lambda route: (route.n_passes != 11, 1.0))
    assert [route.n_passes <= 10 for route in asked] == [False] * (len(asked) - 1) + [True], "it stops at the first that saves two"


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        ([], None),
        ([("1111", False, -1.0), ("0111", False, 0.5)], None),  # nothing right
        ([("1111", True, 0.1), ("2111", True, 9.0)], "1111"),  # base right: longer routes do not count
        ([("1111", True, 0.1), ("0111", False, -1.0)], "1111"),
        ([("1111", True, 0.1), ("0111", True, 0.1), ("0011", True, 0.1)], "0011"),  # base right: the shortest
        ([("1111", True, 0.1), ("2011", True, 0.3)], "2011"),  # as long, larger margin
        ([("1111", False, -1.0), ("2111", True, 0.5)], "2111"),  # base wrong: a longer route is kept
        ([("1111", False, -1.0), ("2211", True, 0.5), ("2111", True, 0.3)], "2111"),
        ([("1111", False, -1.0), ("0111", True, 0.2), ("1011", True, 0.3), ("1101", True, 0.2)], "1011"),  # tie: larger margin
        ([("1111", False, -1.0), ("0111", True, 0.1), ("1011", True, 0.1)], "0111"),  # tie again: first told
        ([("1111", False, math.nan), ("0111", True, math.nan), ("1011", True, math.nan)], "0111"),
        ([("1111", True, math.nan), ("0111", True, math.nan), ("2011", True, math.nan)], "0111"),
        ([("1111", False, math.nan), ("0111", True, math.nan), ("1011", True, 3.0)], "1011"),  # a known margin beats none
        ([("1111", False, math.nan), ("1120", True, math.nan), ("2200", True, math.nan)], "2200"),  # as long, fewer blocks
        ([("1111", False, math.nan), ("2200", True, math.nan), ("0111", True, math.nan)], "0111"),  # shorter
    ],
)
def test_the_shortest_path_is_chosen_then_that_of_the_fewest_blocks_then_that_of_the_larger_margin(told, chosen):
    tree = RouteTree(4, SearchConfig(), 0)
    tree.evaluated = [Evaluation(Route.parse(text), correct, margin) for text, correct, margin in told]
    assert str(tree.chosen) == str(chosen)


@settings(max_examples=60, deadline=None)
@given(n_layers=st.integers(1, 40), n_simulations=st.integers(0, 80), seed=seeds)
def test_all_simulations_count_the_base_known_routes_and_edits_that_change_nothing(n_layers, n_simulations, seed):
    config = config_of(counted="all", n_simulations=n_simulations)
    tree = RouteTree(n_layers, config, seed)
    asked = run(tree, noise(seed))
    assert len(set(asked)) == len(asked) <= max(1, n_simulations)
    assert len(asked) + tree.n_met <= max(1, n_simulations)
    if not tree.root.done:
        assert len(asked) + tree.n_met == max(1, n_simulations)
    assert tree.root.visits == len(asked) + tree.n_met, "each simulation passes the root once"


def test_about_three_quarters_of_fifty_simulations_judge_another_route():
    """The authors' code judges 35 to 37 routes a question of a model of 28 to 30 blocks (docs/reproduce.md)."""
    for n_layers in (28, 30):
        n = [len(run(RouteTree(n_layers, SearchConfig(), seed), never)) for seed in range(60)]
        assert 35 <= sum(n) / len(n) <= 39
        assert max(n) <= 50


def test_met_routes_are_told_what_is_known_of_them():
    """A tree over one block soon knows all of its routes: every further simulation adds the known verdict to the root."""
    tree = RouteTree(1, config_of(counted="all", n_simulations=30), 0)
    run(tree, lambda route: (route.n_passes == 2, math.nan))
    assert len(tree.evaluated) == 2
    assert tree.root.visits == len(tree.evaluated) + tree.n_met
    assert tree.root.value == tree.nodes[Route([2])].value


def test_loops_are_off_unless_asked_for():
    assert all(route.is_in_place for route in run(RouteTree(5, config_of(n_simulations=500), 0), never))
    assert Route.full(5).loop(1, 2) in run(RouteTree(5, config_of(n_simulations=500, max_loop_span=2), 0), never)


def test_asking_twice_in_a_row_and_telling_what_was_not_asked_are_refused():
    tree = RouteTree(4, SearchConfig(), 0)
    with pytest.raises(RuntimeError, match="not the route asked last"):
        tree.tell(Route.full(4), False)
    tree.ask()
    with pytest.raises(RuntimeError, match="tell"):
        tree.ask()
    with pytest.raises(RuntimeError, match="got 1110"):
        tree.tell(Route.parse("1110"), False)
    tree.tell(Route.full(4), False)
    with pytest.raises(RuntimeError, match="not the route asked last"):
        tree.tell(Route.full(4), False)
    assert len(tree.evaluated) == 1


@pytest.mark.parametrize("verdict", [-0.1, 0.5, 1.5, 2, math.nan, math.inf])
def test_verdicts_that_are_neither_true_nor_false_are_refused_and_leave_no_trace(verdict):
    tree = RouteTree(4, SearchConfig(), 0)
    tree.ask()
    with pytest.raises(InputError, match="expected true or false"):
        tree.tell(Route.full(4), verdict)
    assert tree.evaluated == []
    tree.tell(Route.full(4), np.bool_(True), np.float32(0.5))
    assert tree.evaluated == [(Route.full(4), True, 0.5)]
    assert [type(value) for value in tree.evaluated[0][1:]] == [bool, float]
