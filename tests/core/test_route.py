"""Routes: one form, its text, its path, and what it does in words."""

import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.core.route import Action, Route, Span, kept_passes
from drllm.core.route_words import in_words, loops_in_words
from random_paths import paths

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


def test_routes_are_frozen():
    with pytest.raises(AttributeError):
        Route.full(3).actions = ()  # type: ignore[misc]


@given(st.text(st.characters(exclude_characters="-,+(/"), max_size=8).filter(lambda text: not text or set(text) - set("012")))
@example("1X1")
def test_other_text_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="cannot read route") as caught:
        Route.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[3], [-1], ["1"], [1, None], [0.5], 7])
def test_other_actions_are_refused(values):
    with pytest.raises(InputError, match="one action a block"):
        Route(values)


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    known = ["arc_easy", "arc_challenge", "piqa"]
    assert did_you_mean("arc_eassy", known) == "; did you mean 'arc_easy'?"
    assert did_you_mean("zzz", known) == ""
    assert did_you_mean("arc_easy", []) == ""


@given(paths())
def test_a_path_and_its_text_are_inverse(drawn):
    spans, n_layers = drawn
    route = Route.along(spans, n_layers)
    assert Route.parse(str(route)) == route == eval(repr(route)) == pickle.loads(pickle.dumps(route))
    assert hash(Route.parse(str(route))) == hash(route)
    assert route.path == tuple(block for span in spans for block in span.blocks)
    assert route.n_passes == len(route.path) == sum(route.actions)
    assert len(route) == n_layers


@given(paths())
def test_visits_say_the_whole_path_in_order(drawn):
    """At block v runs what lies behind v and before the first higher block, so every block has had its own visit."""
    route = Route.along(*drawn)
    assert Route.of_visits(route.visits) == route
    assert [span for visit in route.visits for span in visit] == list(route.spans)
    for block, visit in enumerate(route.visits):
        assert all(span.last <= block for span in visit)
        assert not visit or visit[0].last == block
    assert route.first_edit() == next((b for b, visit in enumerate(route.visits) if visit != (Span(b, b),)), len(route))


@pytest.mark.parametrize(
    ("text", "shown", "path"),
    [
        ("0-4,2-4,5", "0-4,2-5", (0, 1, 2, 3, 4, 2, 3, 4, 5)),
        ("0-4+2-5", "0-4,2-5", (0, 1, 2, 3, 4, 2, 3, 4, 5)),
        (" 0-4, 2-5 ", "0-4,2-5", (0, 1, 2, 3, 4, 2, 3, 4, 5)),
        ("0-4,(2-4)*0.50,5", "0-4,(2-4)*0.5,5", (0, 1, 2, 3, 4, 2, 3, 4, 5)),
        ("0-4,(2-4)*1,5", "0-4,2-5", (0, 1, 2, 3, 4, 2, 3, 4, 5)),
        ("0-2,(2)*.5,4/6", "0-2,(2)*0.5,4/6", (0, 1, 2, 2, 4)),
        ("0,1,1,3/5", "12010", (0, 1, 1, 3)),
        ("1,1,1/2", "1,1,1", (1, 1, 1)),
        ("2,0/4", "2,0/4", (2, 0)),
    ],
)
def test_a_path_has_one_text(text, shown, path):
    route = Route.parse(text)
    assert (str(route), route.path) == (shown, path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-9,7-12/12", "got block 12 in a path through 12 blocks, 0 to 11"),
        ("0-9,7-9,7-9,7-9,7-9", "got 5 passes of block 7: expected at most 4 of one block"),
        ("0-9,(7-9)*1.5", "got strength 1.5 for 7-9: expected a number above 0, at most 1"),
        ("0-9,(7-9)*0", "got strength 0 for 7-9: expected a number above 0, at most 1"),
        ("0-9,(7-9)*e.", "cannot read strength 'e.' in route '0-9,(7-9)*e.': expected a number above 0, at most 1"),
        ("0-6,(7-9)*0.5", "got strength 0.5 for 7-9: only a span that is run again can have one"),
        ("0-9,9-7", "cannot read 9-7 in route '0-9,9-7': a span goes from its lower block to its higher one"),
        ("0-9,", "cannot read route '0-9,': write one digit a block"),
        ("0-9/", "cannot read route '0-9/': write one digit a block"),
        ("0-123456", "cannot read route '0-123456': write one digit a block"),
        ("-", "cannot read route '-': write one digit a block"),
    ],
)
def test_a_path_that_cannot_run_is_refused_in_one_line(text, said):
    with pytest.raises(InputError) as caught:
        Route.parse(text)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_path_takes_the_number_of_blocks_that_it_does_not_say():
    assert len(Route.parse("0-3,2-4")) == 5
    assert len(Route.parse("0-3,2-4/8", 8)) == 8
    assert str(Route.parse("0-3,2-4/8", 8)) == "0-3,2-4/8"
    assert Route.parse("0-3,2-7", 8) == Route.parse("0-3,2-7")
    assert Route.parse("1102", 4) == Route.parse("1102")
    for text, n_layers, said in (
        ("0-3,2-4", 8, r"^route '0-3,2-4' ends before the last of 8 blocks: write 0-3,2-4/8 if it skips the last ones$"),
        ("1102", 8, "^route 1102 leads through 4 blocks, the model has 8$"),
        ("0-3", 0, "^got a path through 0 blocks: expected at least one$"),
    ):
        with pytest.raises(InputError, match=said):
            Route.parse(text, n_layers)


def test_a_loop_runs_its_span_again():
    full = Route.full(6)
    assert str(full.loop(2, 4)) == "0-4,2-5"
    assert str(full.loop(2, 4, strength=0.5)) == "0-4,(2-4)*0.5,5"
    assert str(full.loop(2, 4, times=3)) == "0-4,2-4,2-5"
    assert str(full.loop(3, 3)) == "111211"
    assert str(full.loop(1, 2).loop(4, 5, 0.25)) == "0-2,1-5,(4-5)*0.25"
    assert str(full.edit(0, 0).loop(2, 4)) == "1-4,2-5"
    for arguments, said in (
        ((4, 2), "cannot loop blocks 4 to 2 2 times"),
        ((2, 6), "blocks 2 to 6"),
        ((2, 3, 1.0, 1), "blocks 2 to 3 1 times: expected 2 to 4 times in all"),
        ((2, 3, 1.0, 10**9), "expected 2 to 4 times in all"),
    ):
        with pytest.raises(InputError, match=said):
            full.loop(*arguments)
    with pytest.raises(InputError, match=r"^cannot loop blocks 1 to 3: this route skips block 2$"):
        full.edit(2, 0).loop(1, 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Route.full(2.5), "got a path through 2.5 blocks: expected a whole number"),
        (lambda: Route.full(0), "got a path through 0 blocks: expected at least one"),
        (lambda: Route.along([1, 2], "a"), "got a path through 'a' blocks: expected a whole number"),
        (lambda: Route.along([], 4), "got an empty path: a route runs at least one block"),
        (lambda: Route.along(None, 3), "got a path None: expected blocks and spans, one after the other"),
        (lambda: Route([]), "a route leads through one block at least"),
        (lambda: Route.parse("11@" + 16 * "a", 3), "route 11 leads through 2 blocks, the model has 3"),
        (lambda: Route.full(3).loop(1, "a"), "cannot loop blocks 1 to a 2 times: expected whole numbers"),
        (lambda: FULL.loop(2, 30), "cannot loop blocks 2 to 30 2 times: expected a span within blocks 0 to 29, its lower block first"),
    ],
)
def test_what_is_no_route_is_one_line(make, said):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == said


def test_an_edit_of_a_looped_route():
    looped = Route.full(6).loop(2, 4, 0.5)
    assert looped.edit(0, 0, 2) == Route.full(6).edit(0, 0, 2).loop(2, 4, 0.5)
    assert str(looped.edit(5, 0)) == "0-4,(2-4)*0.5/6"
    with pytest.raises(InputError, match=r"^cannot edit block 3 of route 0-4,\(2-4\)\*0.5,5: it does not run once by itself$"):
        looped.edit(3, 0)


def test_where_a_looped_route_leaves_the_base():
    assert Route.full(6).loop(2, 4).first_edit() == 4
    assert Route.full(6).loop(2, 4).actions == (1, 1, 2, 2, 2, 1)
    assert not Route.full(6).loop(2, 4).is_in_place
    assert not Route.full(6).loop(2, 4).is_full
    assert Route.full(6).loop(3, 3, times=4).is_in_place


@given(paths())
def test_passes_in_place_and_loops_are_the_whole_route(drawn):
    route = Route.along(*drawn)
    visits = [[Span(block, block)] * action for block, action in enumerate(route.in_place_actions)]
    for at, span in route.loops:
        visits[at] += [span] if span.strength < 1 else [Span(block, block) for block in span.blocks]
    assert Route.of_visits([tuple(visit) for visit in visits]) == route
    assert route.is_in_place == (not route.loops)


def test_loops_of_a_route():
    assert Route.full(6).loop(2, 4, 0.5, times=3).loops == ((4, Span(2, 4, 0.5)), (4, Span(2, 4, 0.5)))
    assert Route.parse("0-4,2-5").loops == ((4, Span(2, 4)),)
    assert Route.parse("0-4,2-5").in_place_actions == (1,) * 6
    assert Route.parse("4,2-3/6").loops == ((4, Span(2, 3)),)
    assert Route.parse("1102").loops == ()
    assert Route.parse("1,1,1/2").in_place_actions == (0, 3)


def test_numbers_of_other_libraries_become_python_s():
    """Else the one object of a route, which is shared, would be written with them."""
    route = Route.full(6).loop(np.int64(1), np.int64(2), strength=np.float64(0.5))
    assert str(route) == "0-2,(1-2)*0.5,3-5"
    assert {type(number) for span in route.spans for number in span[:3]} == {int, float}
    assert Route.full(6).loop(1, 2, times=np.int64(3)) == Route.full(6).loop(1, 2, times=3)
    for arguments in ((1, 2, "a"), (1, 2, 1.0, 2.5), (1.5, 2), ("a", 2), (1, None)):
        with pytest.raises(InputError):
            Route.full(6).loop(*arguments)
    for path, shown in (([0, 1.7], r"1\.7"), (["0"], "'0'"), ([None], "None")):
        with pytest.raises(InputError, match=rf"^cannot read {shown} in a path: expected a block's number"):
            Route.along(path, 3)
    assert Route.along([0, np.int64(1), 1], 3) == Route.parse("120")
    with pytest.raises(InputError, match=r"^got a path through 0 blocks: expected at least one$"):
        Route.parse("0-1/0")


@given(actions)
def test_a_route_with_an_adapter_says_so_everywhere(values):
    bare = Route(values)
    healed = bare.with_adapter("0123456789abcdef")
    assert str(healed) == f"{bare}@0123456789abcdef"
    assert Route.parse(str(healed), len(values)) == healed != bare
    assert pickle.loads(pickle.dumps(healed)) == healed
    assert healed.bare == bare
    assert Route.of_visits(healed.visits) == healed or not bare.n_passes
    assert (healed.path, healed.in_place_actions, healed.loops) == (bare.path, bare.in_place_actions, bare.loops)
    assert {span.adapter for span in healed.spans} <= {"0123456789abcdef"}
    assert not healed.is_full
    assert not healed.has_digits


def test_one_adapter_runs_along_a_loop_too_and_two_are_refused():
    looped = Route.full(4).with_adapter("a" * 16).loop(1, 2)
    assert str(looped) == "0-2,1-3@aaaaaaaaaaaaaaaa"
    assert Route.along(looped.spans, 4) == looped
    with pytest.raises(InputError, match="a route has one adapter"):
        Route.along([Span(0, 0, 1.0, "a" * 16), 1], 2)
    with pytest.raises(InputError, match="16 hexadecimal digits"):
        Route.parse("11@tea")


FULL = Route.full(30)


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (FULL, "the base's route"),
        (Route.parse("1102"), "skips 2; repeats 3"),
        (FULL.loop(12, 14), "runs 12-14 again after 14"),
        (FULL.loop(12, 14, 0.5), "runs 12-14 again after 14 at strength 0.5"),
        (FULL.loop(12, 14, times=4), "runs 12-14 again three times after 14"),
        (FULL.loop(3, 3, 0.5), "runs 3 again after 3 at strength 0.5"),
        (FULL.edit(4, 0).loop(12, 13), "skips 4; runs 12-13 again after 13"),
        (Route.parse("0-4,4,4-9"), "runs 4 3 times"),
        (Route.parse("0-5,7,6,8-9"), "runs 6 after 7"),
        (Route.parse("2,0/4"), "skips 1, 3; runs 0 after 2"),
        (Route.parse("0-5,7-8,6,6,9"), "runs 6 after 8; runs 6 again after 8"),
    ],
)
def test_what_a_route_does_otherwise_than_the_base(route, words):
    assert in_words(route) == words


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.data())
def test_digits_say_a_route_exactly_where_it_is_written_as_digits(actions, data):
    route = Route(actions)
    assert route.has_digits
    assert loops_in_words(route) == []
    once = [block for block, action in enumerate(route) if action]
    if once:
        block = data.draw(st.sampled_from(once))
        route = route.loop(block, block, data.draw(st.sampled_from([0.5, 1.0])))
    assert route.has_digits == (not set(str(route)) - set("012"))


@pytest.mark.parametrize(("budget", "passes"), [(0.9, 27), (0.7, 21), (0.8, 24), (0.75, 22), (1.0, 30), (0.01, 1), (0.0, 1)])
def test_passes_that_a_budget_keeps_of_thirty_blocks(budget, passes):
    """Rounded down, but for what floats lose: 0.7 of 30 is 21."""
    assert kept_passes(budget, 30) == passes
