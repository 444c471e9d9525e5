"""The search tree: legal routes, none twice, real branching, and algorithm 1's scores."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.config import SearchConfig
from drllm.errors import InputError
from drllm.routes import Route
from drllm.searching.tree import Evaluation, RouteTree


def run(tree: RouteTree, reward, margin=lambda route: math.nan) -> list[Route]:
    """Every route asked, with the rewards of a function of the route."""
    asked = []
    while (route := tree.ask()) is not None:
        tree.tell(route, reward(route), margin(route))
        asked.append(route)
    return asked


def endless(**knobs) -> SearchConfig:
    """A configuration that only the budget stops."""
    return SearchConfig(**{"early_stop": False, **knobs})


configs = st.builds(
    SearchConfig,
    n_simulations=st.integers(0, 80),
    exploration=st.floats(0, 5),
    length_penalty=st.floats(0, 20),
    random_prob=st.floats(0, 1),
    max_skip_run=st.integers(1, 5),
    max_passes_ratio=st.floats(1, 2),
    widening=st.floats(0.1, 10),
    early_stop=st.booleans(),
)


def reachable(n_layers: int, config: SearchConfig) -> int:
    """Routes other than the identity that edits can reach, counted by brute force over all action lists."""
    cap = config.max_passes_ratio * n_layers + 1e-9
    return sum(1 <= sum(actions) <= cap for actions in product((0, 1, 2), repeat=n_layers)) - 1


@settings(max_examples=150, deadline=None)
@given(n_layers=st.integers(1, 100), config=configs, seed=st.integers(0, 2**64 - 1), noise=st.randoms(use_true_random=False))
def test_routes_are_legal_and_never_asked_twice(n_layers, config, seed, noise):
    tree = RouteTree(n_layers, config, seed)
    asked = run(tree, lambda route: noise.choice([0.0, 0.3, 1.0]))
    assert asked[0] == Route.full(n_layers)
    assert len(set(asked)) == len(asked) <= config.n_simulations + 1
    for route in asked:
        assert len(route) == n_layers
        assert 1 <= route.n_passes <= config.max_passes_ratio * n_layers + 1e-9
    assert [told.route for told in tree.evaluated] == asked
    assert tree.ask() is None  # and stays so
    _check_bookkeeping(tree)


def _check_bookkeeping(tree: RouteTree) -> None:
    """Each told reward went once along one line from the root; every link is one legal edit."""
    assert tree._root.visits == len(tree.evaluated)
    assert tree._root.value == pytest.approx(sum(told.reward for told in tree.evaluated))
    assert set(tree._nodes) == {told.route for told in tree.evaluated}
    # A line passes one node a depth (number of edits), so no depth has more visits than there were lines.
    for node in tree._nodes.values():
        assert 1 <= node.visits <= len(tree.evaluated)
        assert -1e-9 <= node.value <= node.visits
        for child in node.children:
            changed = [block for block in range(len(node.route)) if node.route[block] != child.route[block]]
            assert all(node.route[block] == 1 for block in changed)
            assert changed == list(range(changed[0], changed[-1] + 1))
            new = [int(child.route[block]) for block in changed]
            assert new == [2] or (len(new) <= tree._config.max_skip_run and set(new) == {0})


@settings(max_examples=60, deadline=None)
@given(n_layers=st.integers(1, 4), config=configs, seed=st.integers(0, 1000))
def test_a_budget_beyond_the_tree_visits_every_legal_route_and_ends(n_layers, config, seed):
    knobs = {name: getattr(config, name) for name in ("exploration", "length_penalty", "random_prob", "max_skip_run", "widening")}
    config = endless(n_simulations=1000, max_passes_ratio=config.max_passes_ratio, **knobs)
    noise = random.Random(seed)
    asked = run(RouteTree(n_layers, config, seed), lambda route: noise.random())
    # Any legal route can be built skips first, repeats after, except where that goes through the empty path.
    assert len(asked) - 1 == _closure(n_layers, config) <= reachable(n_layers, config)


def _closure(n_layers: int, config: SearchConfig) -> int:
    """Routes other than the identity within reach of legal edits, by breadth-first search written apart from the tree's code."""
    cap = config.max_passes_ratio * n_layers + 1e-9
    seen, front = {(1,) * n_layers}, [(1,) * n_layers]
    while front:
        route = front.pop()
        runs = [(start, length) for start in range(n_layers) for length in range(1, config.max_skip_run + 1) if start + length <= n_layers]
        edits = [(start, (0,) * length) for start, length in runs] + [(start, (2,)) for start in range(n_layers)]
        for start, new in edits:
            if route[start : start + len(new)] == (1,) * len(new):
                edited = (*route[:start], *new, *route[start + len(new) :])
                if 1 <= sum(edited) <= cap and edited not in seen:
                    seen.add(edited)
                    front.append(edited)
    return len(seen) - 1


def test_one_and_two_blocks_are_exhausted():
    assert [str(route) for route in run(RouteTree(1, endless(), 0), lambda route: 0.0)] == ["1", "2"]
    two = [str(route) for route in run(RouteTree(2, endless(), 0), lambda route: 0.0)]
    assert two[0] == "11"
    assert sorted(two) == ["01", "02", "10", "11", "12", "20", "21", "22"]


def test_the_base_is_not_one_of_the_simulations():
    assert len(run(RouteTree(30, endless(), 0), lambda route: 0.0)) == 51
    assert [str(route) for route in run(RouteTree(3, endless(n_simulations=0), 0), lambda route: 0.0)] == ["111"]


def test_passes_are_capped_exactly():
    # 1.16 * 25 is 28.999999999999996 in floating point; 29 passes are allowed all the same, 30 are not.
    config = endless(n_simulations=2000, max_passes_ratio=1.16, length_penalty=0.0, exploration=0.0)
    asked = run(RouteTree(25, config, 1), lambda route: route.n_passes / 50)
    assert max(route.n_passes for route in asked) == 29


@pytest.mark.parametrize("n_layers", [12, 30])
def test_the_tree_branches(n_layers):
    tree = RouteTree(n_layers, endless(), 3)
    run(tree, lambda route: 0.0)
    root = tree._root
    assert len(root.children) == math.ceil(2 * math.sqrt(50))  # widening * sqrt(visits) when the last route was asked
    grown = [child for child in root.children if child.children]
    assert len(grown) >= 2
    # Depth too: some route has two separate edits.
    assert any(child.children for child in grown)


def test_a_planted_sibling_is_found():
    """The released code's tree is a chain and cannot do this: one single edit is right, all others are wrong."""
    n_layers = 12
    siblings = [Route.full(n_layers).edit(block, action) for block in range(n_layers) for action in (0, 2)]
    for planted in siblings:
        tree = RouteTree(n_layers, SearchConfig(n_simulations=500), seed=int(planted.n_passes))
        run(tree, lambda route, planted=planted: float(route == planted))
        assert tree.chosen == planted


def test_a_planted_route_of_three_edits_is_found_when_rewards_guide_there():
    """Budget: 400 of the 6,559 routes of 8 blocks, for each of 20 seeds; blind search would find it within that for one or two of them."""
    planted = Route.parse("11012110")

    def graded(route: Route) -> float:
        hits = sum(action == wanted != 1 for action, wanted in zip(route, planted, strict=True))
        strays = sum(action not in (1, wanted) for action, wanted in zip(route, planted, strict=True))
        return 1.0 if route == planted else max(0.0, 0.3 * (hits - strays))

    for seed in range(20):
        tree = RouteTree(8, SearchConfig(n_simulations=400, length_penalty=0.0, exploration=0.1), seed)
        run(tree, graded)
        assert tree.chosen == planted, seed


def test_seeds_decide():
    def asked(seed):
        return run(RouteTree(30, endless(), seed), lambda route: route.n_passes % 2)

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_the_global_generator_is_left_alone():
    random.seed(5)
    before = random.getstate()
    run(RouteTree(10, SearchConfig(), 0), lambda route: 0.0)
    assert random.getstate() == before


def test_stops_early_only_when_the_base_was_wrong():
    right = Route.full(10).edit(4, 0)
    wrong_base = run(RouteTree(10, SearchConfig(n_simulations=300), 0), lambda route: float(route == right))
    assert wrong_base[-1] == right
    assert len(wrong_base) < 301
    assert len(run(RouteTree(10, SearchConfig(n_simulations=300), 0), lambda route: 1.0)) == 301
    assert len(run(RouteTree(10, endless(n_simulations=300), 0), lambda route: float(route == right))) == 301
    # Almost right is not right.
    assert len(run(RouteTree(10, SearchConfig(n_simulations=300), 0), lambda route: 0.0 if route.is_full else 0.999)) == 301


def _told(*told: tuple[str, float, float]) -> RouteTree:
    """A tree with a history: `chosen` reads nothing else."""
    tree = RouteTree(4, SearchConfig(), 0)
    tree.evaluated = [Evaluation(Route.parse(text), reward, margin) for text, reward, margin in told]
    return tree


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        ([("1111", 1.0, 0.1), ("2111", 1.0, 9.0)], "1111"),  # base right: longer routes do not count
        ([("1111", 1.0, 0.1), ("0111", 0.0, -1.0)], "1111"),
        ([("1111", 1.0, 0.1), ("0111", 1.0, 0.0), ("0011", 1.0, -0.1)], "0011"),  # base right: the shortest
        ([("1111", 0.0, -1.0), ("2111", 1.0, 0.5)], "2111"),  # base wrong: a longer route is kept
        ([("1111", 0.0, -1.0), ("2211", 1.0, 0.5), ("2111", 1.0, 0.1)], "2111"),
        ([("1111", 0.0, -1.0), ("0111", 0.999, 0.5)], None),  # nothing right
        ([("1111", 0.0, -1.0), ("0111", 1 - 1e-12, 0.5)], "0111"),  # right up to rounding
        ([("1111", 0.0, -1.0), ("0111", 1.0, 0.1), ("1011", 1.0, 0.3), ("1101", 1.0, 0.2)], "1011"),  # tie: larger margin
        ([("1111", 0.0, -1.0), ("0111", 1.0, 0.1), ("1011", 1.0, 0.1)], "0111"),  # tie again: first told
        ([("1111", 0.0, math.nan), ("0111", 1.0, math.nan), ("1011", 1.0, math.nan)], "0111"),
        ([("1111", 0.0, math.nan), ("0111", 1.0, math.nan), ("1011", 1.0, -3.0)], "1011"),  # a known margin beats none
        ([("1111", 1.0, 0.1), ("2011", 1.0, 0.3)], "2011"),
        ([], None),
    ],
)
def test_chosen(told, chosen):
    assert _told(*told).chosen == (None if chosen is None else Route.parse(chosen))


def test_ucb_by_hand():
    """Three lines over one block each way: Q, v and the score worked out on paper."""
    tree = RouteTree(2, endless(exploration=1.8, length_penalty=3.0, random_prob=0.0), 0)
    rewards = iter([0.5, 1.0, 0.25])
    first, second, third = (route for route in run_three(tree, rewards))
    root = tree._root
    assert (root.value, root.visits) == (1.75, 3)
    assert first.is_full
    node = tree._nodes[second]
    if third in [child.route for child in root.children]:
        assert (node.value, node.visits) == (1.0, 1)
        assert tree._ucb(root, node) == pytest.approx(1.0 + 1.8 * math.sqrt(math.log(3)) - 3.0 * second.n_passes / 2)
    # One child twice visited, out of a parent's nine: 0.7 / 2 + 1.8 sqrt(ln 9 / 2) - 3 * 1 / 2 = 0.35 + 1.886664 - 1.5
    short = tree._nodes[Route.parse("11")]
    node.value, node.visits, node.route, short.visits = 0.7, 2, Route.parse("01"), 9
    assert tree._ucb(short, node) == pytest.approx(0.736664, abs=1e-6)


def run_three(tree, rewards):
    for reward in rewards:
        route = tree.ask()
        assert route is not None
        tree.tell(route, reward)
        yield route


@settings(deadline=None, max_examples=100)
@given(n_layers=st.integers(1, 7), config=configs, seed=st.integers(0, 10**6))
def test_the_budget_is_spent_to_the_last_route(n_layers, config, seed):
    """A search ends for three reasons only: the budget beyond the base is spent, every legal route was asked, or a fix was found."""

    def reward(route: Route) -> float:
        return random.Random(f"{seed}:{route}").choice([0.0, 0.0, 0.5, 1.0])

    asked = run(RouteTree(n_layers, config, seed), reward)
    limit = 1 + min(config.n_simulations, reachable(n_layers, config))
    if config.early_stop and reward(asked[0]) < 1:
        limit = min([limit, *(index + 1 for index, route in enumerate(asked) if reward(route) == 1)])
    assert len(asked) == limit


@pytest.mark.parametrize("widening", [0.01, 2.0, 1000.0])
@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_exhaustion_asks_every_route_but_the_empty_one(n_layers, widening):
    asked = run(RouteTree(n_layers, endless(n_simulations=1000, widening=widening), 0), lambda route: 0.0)
    assert len(asked) == 3**n_layers - 1
    assert set(asked) == {Route(actions) for actions in product(range(3), repeat=n_layers)} - {Route([0] * n_layers)}


@pytest.mark.parametrize(("max_skip_run", "edits"), [(1, {"2", "0"}), (2, {"2", "0", "00"}), (4, {"2", "0", "00", "000", "0000"})])
def test_one_edit_skips_at_most_the_longest_run(max_skip_run, edits):
    """Wide enough for all children of the root before any grandchild: the single edits, each once."""
    n_edits = sum(7 - max(len(edit), 1) for edit in edits)
    asked = run(RouteTree(6, endless(n_simulations=n_edits, widening=1000.0, max_skip_run=max_skip_run), 0), lambda route: 0.0)[1:]
    assert len(asked) == n_edits
    assert {str(route).strip("1") for route in asked} == edits


def _share_of_deeper_routes(random_prob: float) -> float:
    """How much of what lies below the root's children lies below those that skip block 0, where all the reward is."""
    deeper = []
    for seed in range(10):
        config = endless(n_simulations=80, exploration=0.0, length_penalty=0.0, random_prob=random_prob)
        asked = run(RouteTree(8, config, seed), lambda route: 0.9 if route[0] == 0 else 0.0)
        deeper += [route for route in asked if str(route).strip("1") not in ("", "0", "00", "2")]
    return sum(route[0] == 0 for route in deeper) / len(deeper)


def test_selection_follows_the_rewards_and_the_random_child_does_not():
    assert _share_of_deeper_routes(0.0) > 0.8
    assert _share_of_deeper_routes(1.0) < 0.5


def test_the_length_penalty_prefers_short_paths():
    def mean_passes(length_penalty: float) -> float:
        passes = [
            route.n_passes
            for seed in range(10)
            for route in run(RouteTree(12, endless(n_simulations=100, length_penalty=length_penalty), seed), lambda route: 0.5)
        ]
        return sum(passes) / len(passes)

    assert mean_passes(30.0) < mean_passes(3.0) < mean_passes(0.0) - 0.5


def test_trees_asked_in_turns_do_not_share_a_generator():
    def reward(route: Route) -> float:
        return route.n_passes % 2 / 2

    alone = [run(RouteTree(16, SearchConfig(), seed), reward) for seed in (7, 8)]
    trees = [RouteTree(16, SearchConfig(), seed) for seed in (7, 8)]
    together: list[list[Route]] = [[], []]
    for _ in range(51):
        for tree, seen in zip(trees, together, strict=True):
            route = tree.ask()
            assert route is not None
            tree.tell(route, reward(route))
            seen.append(route)
    assert together == alone


def test_asking_twice_in_a_row_is_refused():
    tree = RouteTree(4, SearchConfig(), 0)
    tree.ask()
    with pytest.raises(RuntimeError, match="tell"):
        tree.ask()


def test_telling_what_was_not_asked_is_refused():
    tree = RouteTree(4, SearchConfig(), 0)
    with pytest.raises(RuntimeError, match="not the route asked last"):
        tree.tell(Route.full(4), 0.0)
    tree.ask()
    with pytest.raises(RuntimeError, match="got 1110"):
        tree.tell(Route.parse("1110"), 0.0)
    tree.tell(Route.full(4), 0.0)
    with pytest.raises(RuntimeError, match="not the route asked last"):
        tree.tell(Route.full(4), 0.0)
    assert len(tree.evaluated) == 1


@pytest.mark.parametrize("reward", [-0.1, 1.5, math.nan, math.inf])
def test_rewards_outside_zero_to_one_are_refused(reward):
    tree = RouteTree(4, SearchConfig(), 0)
    tree.ask()
    with pytest.raises(InputError, match="between 0 and 1"):
        tree.tell(Route.full(4), reward)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_simulations", -1), ("random_prob", 1.1), ("max_skip_run", 0), ("max_passes_ratio", 0.9), ("max_passes_ratio", 2.1),
     ("exploration", -0.1), ("length_penalty", -1.0), ("widening", 0.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=rf"SearchConfig\.{name} is {value}"):
        SearchConfig(**{name: value})
