"""A route as an engine runs it: passes in place, block by block, and behind some blocks spans that run again. No vLLM, no torch.

A step of a path is (block, pass): the n-th time that a block occurs is its n-th pass and has keys and values of its own, those of the
block's n-th module. Requests lie apart in the paged cache, so it does not matter at which visit another request makes the same pass.

Shapes: L blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drllm.core.route import Route, Span


class Loop(NamedTuple):
    """A span that runs behind a block's own passes.

    Attributes:
        span: its blocks, and how far the states go.
        passes: for each of them, which pass this is, counted from 0.
    """

    span: Span
    passes: tuple[int, ...]

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """(block, pass) in order."""
        return tuple(zip(self.span.blocks, self.passes, strict=True))

    @property
    def name(self) -> str:
        """Letters, digits and signs, another for each loop."""
        return f"{self.span}-{'.'.join(map(str, self.passes))}"


Loops = tuple[tuple[int, Loop], ...]  # (block, loop) in the order they run: behind which block, and what


class Laid(NamedTuple):
    """A route laid out.

    Attributes:
        actions: passes (L,) of each block in place, int8, when the forward comes to it.
        loops: what runs behind its blocks' own passes.
    """

    actions: np.ndarray
    loops: Loops


def number(span: Span, used: list[int]) -> Loop:
    """The span as the next pass of each of its blocks; `used` are the passes that each block has made, which are counted on."""
    passes = tuple(used[block] for block in span.blocks)
    for block in span.blocks:
        used[block] += 1
    return Loop(span, passes)


@functools.lru_cache(maxsize=4096)
def lay_out(route: Route) -> Laid:
    """The route as an engine runs it; the array is shared, so it must not be written to."""
    in_place = list(map(int, route.in_place_actions))
    used = list(in_place)  # a loop never comes before its blocks' own passes
    return Laid(np.array(in_place, dtype=np.int8), tuple((block, number(span, used)) for block, span in route.loops))


def loops_of(routes: Sequence[Route]) -> tuple[Loop, ...]:
    """Every loop that some route has, each once, in a fixed order."""
    return tuple(dict.fromkeys(loop for route in routes for _, loop in lay_out(route).loops))
