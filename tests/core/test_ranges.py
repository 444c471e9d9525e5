"""Ranges stand in the fields, and hold for every dataclass of options that drllm builds."""

import argparse
import math
from dataclasses import dataclass

import pytest

from drllm.cli.options import build
from drllm.core.config import SECTIONS
from drllm.core.errors import InputError
from drllm.core.options import Options, option
from drllm.methods.base import get_method, method_names


@dataclass(frozen=True)
class Ranged(Options):
    """One field of each kind of range."""

    free: int = option(0, "no bound")
    least: int = option(1, "from 1", ge=1)
    above: float = option(1.0, "above 0", gt=0)
    most: int = option(1, "up to 2", le=2)
    inside: float = option(0.5, "from 0 to 1", ge=0, le=1)
    half_open: float = option(0.5, "above 0, up to 1", gt=0, le=1)
    names: tuple[str, ...] = option(("a",), "names")


@dataclass(frozen=True)
class Plain:
    """As another package may write it: nothing inherited."""

    share: float = option(0.5, "from 0 to 1", ge=0, le=1)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("least", 0, "at least 1"),
        ("above", 0.0, "more than 0"),
        ("most", 3, "at most 2"),
        ("inside", -0.1, "between 0 and 1"),
        ("inside", 1.1, "between 0 and 1"),
        ("half_open", 0, "more than 0 and at most 1"),
        ("half_open", 1.5, "more than 0 and at most 1"),
        ("least", math.nan, "at least 1"),
    ],
)
def test_a_value_out_of_range_is_one_line(field, value, expected):
    with pytest.raises(InputError) as caught:
        Ranged(**{field: value})
    assert str(caught.value) == f"Ranged.{field} is {value}, expected {expected}"


def test_bounds_that_are_included_are_taken_and_lists_become_tuples():
    assert Ranged(free=-5, least=1, above=1e-9, most=2, inside=1, half_open=1, names=["b"]) == Ranged(  # type: ignore[arg-type]
        -5, 1, 1e-9, 2, 1, 1, ("b",)
    )


def test_a_plain_dataclass_is_checked_where_drllm_builds_it():
    assert Plain(7).share == 7
    assert build(Plain, {}, argparse.Namespace(share=1.0)) == Plain(1.0)
    with pytest.raises(InputError, match=r"Plain\.share is 7, expected between 0 and 1"):
        build(Plain, {"share": 7}, argparse.Namespace())


@pytest.mark.parametrize(
    "config", [*SECTIONS.values(), *(get_method(name).config for name in method_names())], ids=lambda one: one.__name__
)
def test_every_configuration_of_ours_checks_itself(config):
    assert issubclass(config, Options)
    config()
