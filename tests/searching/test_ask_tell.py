"""Asking and telling: strictly in turn, verdicts true or false."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.presets import make_tree
from drllm.searching.tree import Strategy


def both() -> list[Strategy]:
    return [make_tree(4, SearchConfig(preset=preset), 0) for preset in ("default", "paper")]


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
