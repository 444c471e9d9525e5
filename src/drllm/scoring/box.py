r"""How many more tokens a text needs at least before it can hold an answer in \boxed{}: with fewer left, its verdict is certain.

A text is read by a small automaton; a vocabulary's tokens are its steps, and the shortest way to a closed box is found once, breadth first.
It is a lower bound: an answer may need more tokens, never fewer.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from drllm.tasks.grading import BOX

_NAMED, _OPEN, _FILLED, _CLOSED = len(BOX), len(BOX) + 1, len(BOX) + 2, len(BOX) + 3
_CONTENT = "0"  # stands for every token without a part of a box; a vocabulary that lacks it only makes the bound smaller
_MARKS = frozenset(string.punctuation)  # these and white space alone make no expression a number


class BoxBound:
    r"""Fewest tokens from a text to one in which `boxed_matches` can find an answer; `pieces` is the text of every token."""

    def __init__(self, pieces: Sequence[str]):
        parts = {BOX[start:end] for start in range(len(BOX)) for end in range(start + 1, len(BOX) + 1)}
        useful = {piece for piece in pieces if any(mark in piece for mark in "\\{}") or piece.strip() in parts} | {_CONTENT}
        after = [{_read(state, piece) for piece in useful} for state in range(_CLOSED)]
        self._n_tokens: list[float] = [float("inf")] * _CLOSED + [0]
        for _ in range(_CLOSED):  # no shortest way visits a state twice
            self._n_tokens[:_CLOSED] = [1 + min(self._n_tokens[state] for state in states) for states in after]

    @classmethod
    def of(cls, tokenizer: Any) -> BoxBound:
        """The bound of a tokenizer's vocabulary."""
        return cls(tokenizer.batch_decode([[token] for token in range(len(tokenizer))]))

    def __call__(self, text: str, gold: str) -> float:
        """Tokens at least; 0 when a box is closed already, infinite when no token of the vocabulary leads to one.

        Where the gold answer has a digit, a box is taken to need more in it than white space and ASCII marks. Of other gold answers nothing
        is known, 0: an empty set may be written in marks alone.
        """
        return self._n_tokens[_read(0, text)] if any(char in string.digits for char in gold) else 0


def _read(state: int, text: str) -> int:
    r"""The automaton: `\boxed`, white space, `{`, something, `}`. A box closed stays closed."""
    for char in text:
        if state == _CLOSED:
            break
        if state == _FILLED:
            state = _CLOSED if char == "}" else _FILLED
        elif state == _OPEN:
            state = _OPEN if char.isspace() or char in _MARKS else _FILLED
        elif state == _NAMED and (char.isspace() or char == "{"):
            state = _OPEN if char == "{" else _NAMED
        elif state < _NAMED and char == BOX[state]:
            state += 1
        else:
            state = int(char == BOX[0])
    return state
