"""The default preset: which child stands best, what edits gained, the prior, dead edits, comfort."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.core.config import SearchConfig, to_dict
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.edits import EditSpace, Evaluation
from drllm.searching.presets import make_tree
from drllm.searching.prior import EditPrior, fit_prior, sweep_routes
from landscapes import additive, closure, config_of, never, noise, run, seen_by


def prior_over(n_layers: int, weights: dict[str, float], max_skip_run: int = 2, scale: float = math.nan) -> EditPrior:
    """A prior with these weights, each edit named by the route it makes of the base; all other edits are dead."""
    space = EditSpace(n_layers, max_skip_run)
    names = [str(space.apply(Route.full(n_layers), code)) for code in range(space.n_codes)]
    assert set(weights) <= set(names)
    return EditPrior(n_layers, max_skip_run, tuple(weights.get(name, 0.0) for name in names), scale, 1)


def all_but(n_layers: int, dead: set[str]) -> EditPrior:
    """A prior over single blocks and pairs that holds all live edits alike."""
    space = EditSpace(n_layers, 2)
    live = {str(route) for code in range(space.n_codes) if (route := space.apply(Route.full(n_layers), code))} - dead
    return prior_over(n_layers, dict.fromkeys(live, 1 / max(len(live), 1)))


def better(one: Evaluation, other: Evaluation, base: Evaluation, comfort: float) -> bool:
    """Whether one told route stands better than another, as the module's first lines say it."""
    enough = min(base.margin, comfort * base.margin)
    fine = [base.correct and told.margin >= enough for told in (one, other)]
    if fine[0] != fine[1]:
        return fine[0]
    if fine[0] and one.route.n_passes != other.route.n_passes:
        return one.route.n_passes < other.route.n_passes
    return one.margin > other.margin


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("comfort", [0.0, 0.5, 1.0])
def test_the_search_descends_to_the_child_that_stands_best(base, comfort):
    """Every step of a search, with what stood below each child counted from the lines before it."""
    tree = make_tree(20, config_of("margins", n_simulations=200, random_prob=0.0, comfort=comfort), 1)
    answer = noise(4, base=base)
    below: dict[Route, Evaluation] = {}
    choices = 0
    while (route := tree.ask()) is not None:
        line = list(tree._line)
        for node, child in zip(line[:-2], [node.route for node in line[1:-1]], strict=True):
            rivals = [below[other.route] for other in node.children if other.route != child and not other.done]
            choices += len(rivals) > 0
            assert not any(better(rival, below[child], tree.evaluated[0], comfort) for rival in rivals)
        tree.tell(route, *answer(route))
        for node in line:
            told = tree.evaluated[-1]
            if node.route not in below or better(told, below[node.route], tree.evaluated[0], comfort):
                below[node.route] = told
    assert choices > 50


def test_a_route_without_a_margin_stands_last():
    """A broken route (margin nan) under a base that has one."""
    tree = make_tree(4, config_of("margins", random_prob=0.0, n_simulations=60), 0, all_but(4, set()))
    lines = []
    while (route := tree.ask()) is not None:
        lines.append([str(node.route) for node in tree._line])
        tree.tell(route, False, math.nan if route[0] == 0 else -5.0)
    assert sum(line[1] == "0111" for line in lines[1:]) == 1


@pytest.mark.parametrize("base", [-1.0, 1.0])
def test_an_edit_is_tried_below_by_what_it_gained_at_the_root(base):
    """Three live edits, all told at the root; the best of them grows first, with the better of the other two."""
    prior = prior_over(6, {"011111": 0.2, "111112": 0.4, "110111": 0.4})
    for gains, expected in [
        ({(0, 0): 3.0, (5, 2): 0.2, (2, 0): -0.3}, "011112"),
        ({(0, 0): 3.0, (5, 2): -0.3, (2, 0): 0.2}, "010111"),
    ]:
        for seed in range(20):
            config = config_of("margins", n_simulations=4, random_prob=0.0, comfort=1.0)
            asked = run(make_tree(6, config, seed, prior), additive(gains, base))
            assert {str(route) for route in asked[1:4]} == {"011111", "111112", "110111"}
            # The mean change is (3 + 0.2 + 0.3) / 4 and a saved pass is worth 0.3 of it: when the base was right the skip is as good.
            assert str(asked[4]) == ("010111" if base > 0 and expected == "011112" else expected)


def test_gains_add_up_over_the_nodes_of_a_question():
    tree = make_tree(6, config_of("margins", n_simulations=40), 0)
    run(tree, additive({(0, 0): 0.5, (3, 2): 0.25}, other=-0.125))
    means = {code: total / count for code, (total, count) in tree._gains.items()}
    assert sum(count for _, count in tree._gains.values()) == 40
    assert means[3] == 0.25  # repeat block 3
    assert means[6 + 0] == 0.5  # skip block 0
    assert means[12 + 0] == 0.5 - 0.125  # skip blocks 0 and 1
    assert means[12 + 1] == -0.25


def test_edits_are_first_drawn_in_proportion_to_their_weights():
    weights = {"0111": 0.6, "1101": 0.3, "1112": 0.1}
    prior = prior_over(4, weights)
    firsts: Counter[str] = Counter()
    n = 600
    for seed in range(n):
        firsts[str(run(make_tree(4, config_of("margins", n_simulations=1), seed, prior), never)[1])] += 1
    for name, weight in weights.items():  # four standard errors
        assert abs(firsts[name] / n - weight) < 4 * math.sqrt(weight * (1 - weight) / n)


def test_a_prior_finds_a_planted_edit_sooner():
    planted = "1" * 15 + "2" + "1" * 14
    names = [str(Route.full(30).edit(start, *new)) for new in ((0,), (2,), (0, 0)) for start in range(31 - len(new))]
    prior = prior_over(30, {name: 0.5 if name == planted else 0.5 / (len(names) - 1) for name in names})

    def places(prior: EditPrior | None) -> list[int]:
        asked = [[str(route) for route in run(make_tree(30, config_of("margins"), seed, prior), noise(seed))] for seed in range(40)]
        return sorted((*routes, planted).index(planted) for routes in asked)

    assert places(prior)[35] <= 10
    assert places(None)[20] > 20


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["margins", "verdicts"]), n_layers=st.integers(2, 4), seed=st.integers(0, 10**6), data=st.data())
def test_dead_edits_are_never_tried_and_all_other_routes_are(kind, n_layers, seed, data):
    """Not alone, not as a part, not built up from smaller edits; a route that stays clear of them is asked when the budget allows."""
    space = EditSpace(n_layers, 2)
    names = [str(route) for code in range(space.n_codes) if (route := space.apply(Route.full(n_layers), code))]
    dead = data.draw(st.sets(st.sampled_from(names)))
    tree = make_tree(n_layers, config_of(kind, n_simulations=200), seed, all_but(n_layers, dead))
    asked = run(tree, seen_by(kind, noise(seed)))

    def touches(route: Route, name: str) -> bool:
        return all(action == int(wanted) for action, wanted in zip(route, name, strict=True) if wanted != "1")

    expected = {route for route in closure(n_layers, 2, 2 * n_layers) if not any(touches(route, name) for name in dead)}
    # Every allowed route has an order of allowed edits: one block at a time unless a block alone is dead, and then so is the run.
    assert set(asked) == expected


def test_where_every_edit_is_dead_only_the_base_is_asked():
    assert run(make_tree(5, config_of("margins"), 0, prior_over(5, {})), never) == [Route.full(5)]


@pytest.mark.parametrize(
    ("n_layers", "changes"),
    [(4, {"preset": "paper"}), (5, {}), (4, {"max_skip_run": 1}), (3, {"max_skip_run": 3}), (6, {"max_skip_run": 1}), (12, {})],
)
def test_a_prior_over_other_edits_is_refused(n_layers, changes):
    """Three blocks with runs of 3 and six with runs of 1 have 12 codes too, but they stand for other edits."""
    reason = "expected preset default" if changes.get("preset") == "paper" else "a prior over 4 blocks and skips of up to 2 .* equal sizes"
    with pytest.raises(InputError, match=reason):
        make_tree(n_layers, SearchConfig(**changes), 0, all_but(4, set()))


def test_longest_runs_beyond_the_model_are_the_same_edits():
    prior = all_but(2, set())
    asked = run(make_tree(2, config_of("margins", max_skip_run=5), 0, prior), never)
    assert set(asked) == {Route(actions) for actions in product(range(3), repeat=2)} - {Route([0, 0])}


@pytest.mark.parametrize(
    ("told", "paper", "default"),
    [
        # Base right: half its margin is enough, less is not.
        ([("1111", True, 1.0), ("0111", True, 0.5), ("0011", True, 0.49)], "0011", "0111"),
        ([("1111", True, 1.0), ("0111", True, 0.4)], "0111", "1111"),
        # A base that is right with a margin below 0 (a tie broken its way) asks for no more than it has.
        ([("1111", True, -1.0), ("0111", True, -1.0), ("0011", True, -1.1)], "0011", "0111"),
        # Base wrong: half the largest margin of all right routes; wrong routes do not set it.
        ([("1111", False, -1.0), ("2111", True, 1.0), ("1111", False, 9.0), ("0111", True, 0.4)], "0111", "2111"),
        ([("1111", False, -1.0), ("2111", True, 1.0), ("0111", True, 0.5)], "0111", "0111"),
    ],
)
def test_default_chooses_among_comfortable_margins(told, paper, default):
    for preset, chosen in (("paper", paper), ("default", default)):
        tree = make_tree(4, SearchConfig(preset=preset), 0)
        tree.evaluated = [Evaluation(Route.parse(text), correct, margin) for text, correct, margin in told]
        assert str(tree.chosen) == chosen


@pytest.mark.parametrize(("comfort", "chosen"), [(0.0, "0001"), (0.25, "0001"), (0.5, "0011"), (0.75, "0111"), (1.0, "1111")])
def test_comfort_is_the_share_of_the_base_margin_to_keep(comfort, chosen):
    tree = make_tree(4, SearchConfig(comfort=comfort), 0)
    margins = {"1111": 1.0, "0111": 0.75, "0011": 0.5, "0001": 0.25}
    tree.evaluated = [Evaluation(Route.parse(text), True, margin) for text, margin in margins.items()]
    assert str(tree.chosen) == chosen


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_planted_loop_is_found_and_kept(strength):
    """One span of six blocks, run again, is all that turns the answer right: a sweep points to it, and the search tries it first."""
    planted = Route.full(6).loop(2, 4, strength)
    config = SearchConfig(max_loop_span=3, loop_strength=strength, n_simulations=20, patience=0)

    def answer(route):
        return route == planted, 1.0 if route == planted else -0.1 * (not route.is_full)

    routes = [Route.full(6), *sweep_routes(6, 2, 3, strength)]
    prior = fit_prior(6, 2, [[Evaluation(route, *answer(route)) for route in routes]] * 4, 3, strength)
    assert EditPrior.from_json(prior.to_json()) == prior
    tree = make_tree(6, config, 0, prior)
    asked = run(tree, answer)
    assert asked.index(planted) <= 3
    assert tree.chosen == planted
    with pytest.raises(
        InputError, match=r"skips of up to 2, loops of up to 3 with strength .* for a search over 6 blocks and skips of up to 2: "
    ):
        make_tree(6, SearchConfig(), 0, prior)


def test_loops_are_off_unless_asked_for():
    assert not any(not route.is_in_place for route in run(make_tree(5, config_of("margins", n_simulations=500), 0), never))
    asked = run(make_tree(5, config_of("margins", n_simulations=500, max_loop_span=2), 0), never)
    assert Route.full(5).loop(1, 2) in asked
    assert Route.full(5).loop(1, 2) in run(make_tree(5, config_of("paper", n_simulations=500, max_loop_span=2), 0), never)
    with pytest.raises(InputError, match=r"loop_strength is 0\.5 and max_loop_span 0, so there is no loop: set both"):
        SearchConfig(loop_strength=0.5)
    with pytest.raises(InputError, match="counted is 'all', which preset default has no steps for: set preset paper, or leave it out"):
        SearchConfig(counted="all")
    assert to_dict(SearchConfig(max_loop_span=2))["max_loop_span"] == 2
