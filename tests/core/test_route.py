"""Routes: one form, its text, its path."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drllm.core.errors import DrllmError, InputError
from drllm.core.names import did_you_mean
from drllm.core.route import Action, GatedDepth, Route

actions = st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=100)


@given(actions)
def test_text_and_route_are_inverse(values):
    route = Route(values)
    assert str(route) == "".join(map(str, values))
    assert Route.parse(str(route)) == route
    assert eval(repr(route)) == route
    assert hash(Route.parse(str(route))) == hash(route)
    assert pickle.loads(pickle.dumps(route)) == route


@given(actions)
def test_path_runs_each_block_as_often_as_its_action_says(values):
    route = Route(values)
    assert [route.path.count(block) for block in range(len(values))] == values
    assert list(route.path) == sorted(route.path)
    assert route.n_passes == len(route.path) == sum(values)
    assert len(route) == len(values)
    assert list(route) == values == [route[block] for block in range(len(values))]


@given(actions)
def test_first_edit_and_identity_agree(values):
    route = Route(values)
    assert route.is_full == (route == Route.full(len(values))) == (route.first_edit() == len(values))
    assert all(action == Action.EXECUTE for action in route.actions[: route.first_edit()])
    assert route.is_full or route[route.first_edit()] != Action.EXECUTE


@given(actions, st.data())
def test_edit_changes_the_named_blocks_only(values, data):
    start = data.draw(st.integers(0, len(values) - 1))
    new = data.draw(st.lists(st.sampled_from([0, 1, 2]), max_size=len(values) - start))
    route = Route(values)
    assert list(route.edit(start, *new)) == [*values[:start], *new, *values[start + len(new) :]]
    assert list(route) == values


@pytest.mark.parametrize(("start", "new", "last"), [(-1, (0,), -1), (4, (0,), 4), (3, (0, 0), 4), (5, (), 4)])
def test_an_edit_outside_the_route_is_refused(start, new, last):
    with pytest.raises(InputError, match=f"^cannot edit blocks {start} to {last} of a route of 4 blocks$"):
        Route.full(4).edit(start, *new)


def test_example_of_the_docs():
    route = Route.parse("1102")
    assert route.actions == (Action.EXECUTE, Action.EXECUTE, Action.SKIP, Action.REPEAT)
    assert route.path == (0, 1, 3, 3)
    assert route.n_passes == 4
    assert not route.is_full


def test_routes_are_frozen():
    with pytest.raises(AttributeError):
        Route.full(3).actions = ()  # type: ignore[misc]


@given(st.text(max_size=8).filter(lambda text: not text or set(text) - set("012")))
@example("1X1")
def test_other_text_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="cannot read route") as caught:
        Route.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[3], [-1], ["1"], [1, None], [0.5], 7])
def test_other_actions_are_refused(values):
    with pytest.raises(InputError, match="one action a block"):
        Route(values)


def test_errors_are_one_family_and_input_errors_are_value_errors():
    assert issubclass(InputError, DrllmError)
    assert issubclass(InputError, ValueError)


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    known = ["arc_easy", "arc_challenge", "piqa"]
    assert did_you_mean("arc_eassy", known) == "; did you mean 'arc_easy'?"
    assert did_you_mean("zzz", known) == ""
    assert did_you_mean("arc_easy", []) == ""


def test_a_depth_of_parts_of_blocks_writes_no_route():
    depth = GatedDepth(2.5)
    assert (str(depth), depth.n_passes, depth.is_full) == ("", 2.5, False)
