"""Routes in words, and which of them digits say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm import Route
from drllm.core.route_words import in_words, loops_in_words

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
