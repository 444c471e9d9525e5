"""Paths drawn by hypothesis."""

from __future__ import annotations

from collections import Counter

from hypothesis import assume
from hypothesis import strategies as st

from drllm.core.route import MAX_PASSES, Span


@st.composite
def paths(draw: st.DrawFn, n_layers: int = 6, most: int = 10) -> tuple[list[Span], int]:
    """(blocks and damped spans, n_layers): any order, no block more often than a route may run it."""
    spans, highest = [], -1
    for _ in range(draw(st.integers(1, most))):
        if highest >= 0 and draw(st.booleans()):
            last = draw(st.integers(0, highest))
            spans.append(Span(draw(st.integers(0, last)), last, draw(st.sampled_from([0.25, 0.5, 0.3, 1 / 3, 1.0]))))
        else:
            block = draw(st.integers(0, n_layers - 1))
            spans.append(Span(block, block))
            highest = max(highest, block)
    assume(max(Counter(block for span in spans for block in span.blocks).values()) <= MAX_PASSES)
    return spans, n_layers
