"""Window means as routers read them."""

from __future__ import annotations

from torch import Tensor

from drllm.policies.routers import pool, pool_matrix


def pool_windows(x_BTD: Tensor, prompt_mask_BT: Tensor, n_windows: int) -> tuple[Tensor, Tensor]:
    """(means (B, W, D), valid (B, W)) of the prompt's states."""
    weights_BWT, valid_BW = pool_matrix(prompt_mask_BT, n_windows)
    return pool(weights_BWT, x_BTD), valid_BW
