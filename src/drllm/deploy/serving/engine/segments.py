"""Runs of blocks that all known routes treat alike, each compiled as one: what makes routed steps as fast as compiled ones.

vLLM compiles a model whole, which fits one route. A code book's routes cut the blocks into a few stretches in which every route does the
same, so any of them, and any mixture of rows, is a sequence of whole stretches. Steps with other routes run block by block, uncompiled.

Shapes: N tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context


@dataclass(eq=False)
class Stretch:
    """Consecutive passes that the same rows make.

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
    """(first block, one past the last) of each stretch in which every route does the same; a block that some route repeats stands alone.

    A stretch begins with block `decided`, too, before which a policy in the engine chooses among the routes.
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
    """Passes of a block that some route makes: more than these no stretch holds."""
    return max(int(route[block]) for route in routes)


def single(block_of: Callable[[int, int], Any], block: int, n_pass: int) -> Stretch:
    """One block, uncompiled."""
    module = block_of(block, n_pass)
    return Stretch(block, block + 1, n_pass, [module.self_attn.attn.layer_name], module)


def compiled(routes: Sequence[str], decided: int, block_of: Callable[[int, int], Any], vllm_config: VllmConfig) -> list[Stretch]:
    """The stretches of some known routes (`cuts`) in the order they run, compiled as vLLM compiles models."""
    stretches = []
    for first, end in cuts(routes, decided):
        for n_pass in range(most_passes(routes, first)):
            blocks = [block_of(block, n_pass) for block in range(first, end)]
            names = [block.self_attn.attn.layer_name for block in blocks]
            with set_current_vllm_config(vllm_config):
                module = _segment_class(f"{first}-{end}-{n_pass}")(vllm_config=vllm_config, blocks=blocks)
            stretches.append(Stretch(first, end, n_pass, names, module))
    return stretches


def warm_up(stretches: Sequence[Stretch], vllm_config: VllmConfig, like: Tensor) -> None:
    """Compile each, before the first request: `like` is some parameter of the model, for its type, device and width D."""
    n_tokens = vllm_config.scheduler_config.max_num_batched_tokens
    for stretch in stretches:
        states = torch.zeros((n_tokens, like.shape[-1]), dtype=like.dtype, device=like.device)
        positions = torch.zeros(n_tokens, dtype=torch.long, device=like.device)
        with torch.inference_mode(), set_forward_context(None, vllm_config, num_tokens=n_tokens):
            stretch.run(positions, states, torch.zeros_like(states))


def _segment_class(name: str) -> Any:
    """A class of its own for each stretch: vLLM keeps compiled code on disk by the qualified name of the method it compiled."""

    class Segment(nn.Module):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", blocks: Sequence[nn.Module] = ()):
            super().__init__()
            self.blocks = nn.ModuleList(blocks)

        def forward(self, positions: Tensor, states: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
            for block in self.blocks:
                states, residual = block(positions, states, residual)
            return states, residual

    Segment.forward.__qualname__ = f"Segment.forward[{name}]"
    return support_torch_compile(dynamic_arg_dims={"positions": 0, "states": 0, "residual": 0})(Segment)
