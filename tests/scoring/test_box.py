r"""The fewest tokens to a closed \boxed{}: never more than an answer really takes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.scoring.box import BoxBound
from drllm.tasks.grading import boxed_matches

LETTERS = list("\\boxed{}5 x")
SMOLLM2 = [*LETTERS, "box", "ed", "}.", "$\\", "}$", " \\", " answer"]  # how it writes a box: 6 tokens


@pytest.mark.parametrize(
    ("pieces", "text", "n_tokens"),
    [
        (LETTERS, "", 9),
        (SMOLLM2, "", 6),
        (SMOLLM2, "The answer is $\\", 5),
        (SMOLLM2, "\\bo", 5),
        (SMOLLM2, "\\boxed", 3),
        (SMOLLM2, "\\boxed {", 2),
        (SMOLLM2, "\\boxed{}", 2),  # an empty box is none
        (SMOLLM2, "\\boxed{12", 1),
        (SMOLLM2, "\\boxed{12}", 0),
        (SMOLLM2, "\\boxed{12} and \\b", 0),  # closed once: a later one may still change the verdict
        (SMOLLM2, "\\boxed 12}", 6),
        (["\\boxed{", "5}"], "", 2),
        (["\\boxed{5}", "x"], "\\boxed{", 1),
        (["a", "b"], "", float("inf")),
        (["a", "}"], "\\boxed{", 2),
        ([*LETTERS, ")}"], "\\boxed{", 2),  # marks alone are no answer
        ([*LETTERS, "{\\", "\\}"], "\\boxed", 3),
    ],
)
def test_bound_by_hand(pieces: list[str], text: str, n_tokens: float):
    assert BoxBound(pieces)(text, "5") == n_tokens


VOCABULARY = ["\\", "box", "ed", "\\boxed", "{", "}", "5", "5}", "ed{", " ", "o", "b", "xed", "{}", "$", "\n", "the "]
BOUND = BoxBound(VOCABULARY)


@settings(deadline=None)  # the grader is a process of its own
@given(st.lists(st.sampled_from(VOCABULARY), max_size=10))
def test_no_answer_comes_sooner(pieces: list[str]):
    """Whatever the grader accepts was within reach at every token before."""
    whole = "".join(pieces)
    if BOUND(whole, "5"):
        assert not boxed_matches(whole, "5")
    for n in range(len(pieces)):
        assert BOUND("".join(pieces[:n]), "5") <= BOUND(whole, "5") + len(pieces) - n


@pytest.mark.parametrize("start", ["", "\\", "\\bo", "\\boxed", "\\boxed{", "\\boxed{5", "x\\box"])
def test_the_bound_is_the_shortest_way(start: str):
    """Every continuation tried, from the shortest on: the first that the grader accepts has as many tokens as the bound says."""
    vocabulary = ["\\", "box", "ed", "{", "}", "5"]
    n = next(
        n
        for n in range(7)
        for way in itertools.product(vocabulary, repeat=n)
        if boxed_matches(start + "".join(way), "5") or boxed_matches(start + "".join(way), "55")
    )
    assert BoxBound(vocabulary)(start, "5") == n


def test_of_a_gold_answer_without_a_digit_nothing_is_known():
    assert boxed_matches("\\boxed{\\{\\}}", "\\emptyset"), "marks alone can be an answer"
    assert BOUND("", "\\emptyset") == BOUND("", "x") == 0
    assert BOUND("", "-1") > 0
