"""Blocks that all known routes treat alike, compiled as one segment: what makes routed steps as fast as compiled ones.

vLLM compiles a model whole, which fits one route. A codebook's routes cut the blocks into a few segments in which every route does the
same, so any of them, and any mixture of sequences, runs whole segments. Steps with other routes run block by block, uncompiled.

Shapes: N tokens, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from drllm.deploy.serving.engine.vllm_private import attention_name, compile_blocks


@dataclass(eq=False)
class Segment:
    """Consecutive passes that the same sequences make.

    Attributes:
        block, end: the first block, whose action holds for all, and one past the last.
        n_pass: 0, or 1 for the second pass of a single block.
        names: of the attentions inside, by which they find their metadata.
        run: (positions (N), states (N, D), residual (N, D)) to (states, residual).
    """

    block: int
    end: int
    n_pass: int
    names: list[str]
    run: Callable[..., tuple[Tensor, Tensor]]


def cuts(routes: Sequence[str], decided: int = 0) -> list[tuple[int, int]]:
    """(first block, one past the last) of each segment in which every route does the same; a block that some route repeats stands alone.

    A segment begins with block `decided`, too, before which a policy in the engine chooses among the routes.
    """
    columns = list(zip(*routes, strict=True))
    found: list[tuple[int, int]] = []
    for block, column in enumerate(columns):
        alone = "2" in column or (block > 0 and "2" in columns[block - 1])
        if block in (0, decided) or alone or column != columns[block - 1]:
            found.append((block, block + 1))
        else:
            found[-1] = (found[-1][0], block + 1)
    return found


def most_passes(routes: Sequence[str], block: int) -> int:
    """Passes of a block that some route makes: more than these no segment holds."""
    return max(int(route[block]) for route in routes)


def single(block_of: Callable[[int, int], Any], block: int, n_pass: int) -> Segment:
    """One block, uncompiled."""
    module = block_of(block, n_pass)
    return Segment(block, block + 1, n_pass, [attention_name(module)], module)


def compiled(routes: Sequence[str], decided: int, block_of: Callable[[int, int], Any], vllm_config: Any) -> list[Segment]:
    """The segments of some known routes (`cuts`) in the order they run."""
    segments = []
    for first, end in cuts(routes, decided):
        for n_pass in range(most_passes(routes, first)):
            blocks = [block_of(block, n_pass) for block in range(first, end)]
            module = compile_blocks(blocks, f"{first}-{end}-{n_pass}", vllm_config)
            segments.append(Segment(first, end, n_pass, [attention_name(block) for block in blocks], module))
    return segments
