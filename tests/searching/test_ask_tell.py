"""Asking and telling: strictly in turn, verdicts true or false; and lists of given routes behind the same interface."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.presets import make_tree
from drllm.searching.tree import FixedRoutes, Strategy
from landscapes import run


def both() -> list[Strategy]:
    return [make_tree(4, SearchConfig(), 0), FixedRoutes([Route.parse("1011")])]


def test_asking_twice_in_a_row_is_refused():
    for asks in both():
        asks.ask()
        with pytest.raises(RuntimeError, match="tell"):
            asks.ask()


def test_telling_what_was_not_asked_is_refused():
    for asks in both():
        with pytest.raises(RuntimeError, match="not the route asked last"):
            asks.tell(Route.full(4), False)
        asks.ask()
        with pytest.raises(RuntimeError, match="got 1110"):
            asks.tell(Route.parse("1110"), False)
        asks.tell(Route.full(4), False)
        with pytest.raises(RuntimeError, match="not the route asked last"):
            asks.tell(Route.full(4), False)
        assert len(asks.evaluated) == 1


@pytest.mark.parametrize("verdict", [-0.1, 0.5, 1.5, 2, math.nan, math.inf])
def test_verdicts_that_are_neither_true_nor_false_are_refused_and_leave_no_trace(verdict):
    for asks in both():
        asks.ask()
        with pytest.raises(InputError, match="expected true or false"):
            asks.tell(Route.full(4), verdict)
        assert asks.evaluated == []
        asks.tell(Route.full(4), np.bool_(True), np.float32(0.5))
        assert asks.evaluated == [(Route.full(4), True, 0.5)]
        assert [type(value) for value in asks.evaluated[0][1:]] == [bool, float]


def test_fixed_routes_come_once_each_after_the_base():
    routes = [Route.parse(text) for text in ("1011", "2111", "1011", "1111", "0000")]
    for right in (True, False):
        fixed = FixedRoutes(iter(routes))
        assert [str(route) for route in run(fixed, lambda route, right=right: (right, 0.5))] == ["1111", "1011", "2111", "0000"]
        assert fixed.ask() is None
        with pytest.raises(RuntimeError, match="not the route asked last"):
            fixed.tell(routes[0], True)
    assert fixed.chosen is None
    fixed = FixedRoutes(routes)
    run(fixed, lambda route: (route.n_passes > 2, float(route[0])))
    assert fixed.chosen == Route.parse("1011")
    assert [(str(told.route), told.correct, told.margin) for told in fixed.evaluated][1:3] == [("1011", True, 1.0), ("2111", True, 2.0)]


@pytest.mark.parametrize(("texts", "what"), [([], "0 routes over no blocks"), (["11", "111"], r"2 routes over \[2, 3\] blocks")])
def test_no_fixed_routes_or_routes_of_two_lengths_are_refused(texts, what):
    with pytest.raises(InputError, match=f"a list of {what}: expected at least one, all of one length"):
        FixedRoutes(Route.parse(text) for text in texts)
