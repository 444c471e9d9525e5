"""Selectors of codebooks, made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from drllm.policies.codebook import StateSelector


def plain_selector(block: int, size: int, bias: list[float], weight: Tensor | None = None, reach: float = float("inf")) -> StateSelector:
    """Of states as they are, `size` of them: each route but the base is worth its bias, more where there is a weight."""
    weight = torch.zeros(size, len(bias)) if weight is None else weight
    return StateSelector(block, torch.zeros(size), torch.ones(size), weight, torch.tensor(bias), reach)
