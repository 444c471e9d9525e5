"""Blocks that all known routes treat alike, compiled as one segment: what makes routed steps as fast as compiled ones.

vLLM compiles a model whole, which fits one route. A codebook's routes cut the blocks into a few segments in which every route does the
same, so any of them, and any mixture of sequences, runs whole segments. A span that some route runs again is a segment of its own, which
the sequences that take it run. Steps with other routes run block by block: compiled too where a policy decides inside the engine.

Shapes: N tokens, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from drllm.core.route import Route
from drllm.deploy.serving.engine.schedule import Loop, loops_of
from drllm.deploy.serving.engine.vllm_private import Blocks, attention_name, compile_blocks


@dataclass(eq=False)
class Segment:
    """Consecutive passes that the same sequences make."""

    block: int  # the first one, whose action holds for all
    n_pass: int  # 0, or more for a later pass of a single block
    names: list[str]  # of the attentions inside, by which they find their metadata
    run: Callable[..., tuple[Tensor, Tensor]]  # (positions (N), states (N, D), residual (N, D)) to (states, residual)


def cuts(routes: Sequence[str]) -> list[tuple[int, int]]:
    """(first block, one past the last) of each segment in which every route does the same; repeated blocks stand alone, loops end one."""
    parsed = _parsed(routes)
    columns = list(zip(*(route.in_place_actions for route in parsed), strict=True))
    looped = {block for route in parsed for block, _ in route.loops}
    found: list[tuple[int, int]] = []
    for block, column in enumerate(columns):
        alone = max(column) > 1 or (block > 0 and max(columns[block - 1]) > 1)
        if block == 0 or alone or block - 1 in looped or column != columns[block - 1]:
            found.append((block, block + 1))
        else:
            found[-1] = (found[-1][0], block + 1)
    return found


def most_passes(routes: Sequence[str]) -> list[int]:
    """For each block, the passes in place that some route makes."""
    return list(map(max, zip(*(route.in_place_actions for route in _parsed(routes)), strict=True)))


def _parsed(routes: Sequence[str]) -> list[Route]:
    """The routes of one policy, whose base, digits, stands first."""
    n_layers = len(Route.parse(routes[0]))
    return [Route.parse(text, n_layers) for text in routes]


def single(block_of: Callable[[int, int], Any], block: int, n_pass: int) -> Segment:
    module = block_of(block, n_pass)
    return Segment(block, n_pass, [attention_name(module)], module)


def compiled_single(one: Segment, vllm_config: Any) -> Segment:
    return replace(one, run=compile_blocks([one.run], f"single-{one.block}-{one.n_pass}", vllm_config))  # type: ignore[list-item]


def looped(block_of: Callable[[int, int], Any], loop: Loop) -> Segment:
    """A span that is run again, uncompiled."""
    blocks = [block_of(*step) for step in loop.steps]
    return Segment(loop.span.first, 1, [attention_name(block) for block in blocks], Blocks(blocks, loop.span.strength))


def compiled(routes: Sequence[str], block_of: Callable[[int, int], Any], vllm_config: Any) -> list[Segment]:
    """The segments of some known routes (`cuts`) in the order they run."""
    segments, most = [], most_passes(routes)
    for first, end in cuts(routes):
        for n_pass in range(most[first]):
            blocks = [block_of(block, n_pass) for block in range(first, end)]
            module = compile_blocks(blocks, f"{first}-{end}-{n_pass}", vllm_config)
            segments.append(Segment(first, n_pass, [attention_name(block) for block in blocks], module))
    return segments


def compiled_loops(routes: Sequence[str], block_of: Callable[[int, int], Any], vllm_config: Any) -> dict[Loop, Segment]:
    """A segment for each span that some known route runs again."""
    segments = {}
    for loop in loops_of(_parsed(routes)):
        segment = looped(block_of, loop)
        segment.run = compile_blocks(segment.run.blocks, loop.name, vllm_config, loop.span.strength)  # type: ignore[attr-defined]
        segments[loop] = segment
    return segments
