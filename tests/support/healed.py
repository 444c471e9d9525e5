"""Settings to heal a tiny model by, and adapters with random weights: what healing would train, at once."""

from __future__ import annotations

import torch
from torch import nn

from drllm import HealConfig, Route, RoutedModel
from drllm.model.copies import block_list
from drllm.policies.adapter import DTYPE, Adapter
from drllm.policies.healed import HealedPolicy

# Of a tiny model, in a second or two.
CONFIG = HealConfig(budget=0.75, steps=40, rank=4, lr=1e-2, held_out=16, choose_on=8, step_tokens=400, new_tokens=3)


def random_adapter(routed: RoutedModel, route: Route, rank: int = 3, seed: int = 0, size: float = 0.1) -> Adapter:
    """On every linear map of the blocks that the route runs; `size` is the standard deviation of A's and of B's numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (size * torch.randn(shape, generator=generator)).to(DTYPE)

    weights = {
        (block, name): (draw(rank, linear.in_features), draw(linear.out_features, rank))
        for block in sorted(set(route.path))
        for name, linear in routed.blocks[block].named_modules()
        if isinstance(linear, nn.Linear)
    }
    return Adapter(route, block_list(routed), 2.0, weights)


def random_policy(routed: RoutedModel, route: Route, seed: int = 0) -> HealedPolicy:
    return HealedPolicy(random_adapter(routed, route, seed=seed))
