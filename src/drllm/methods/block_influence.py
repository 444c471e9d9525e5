"""ShortGPT's block influence: one less the mean cosine between the states entering and leaving a block (arXiv 2403.03853, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.policies.constant import RoutePolicy
from drllm.scoring.route_prediction import prompt_steps


@torch.no_grad()
def block_influence(routed: RoutedModel, prompts: Sequence[Sequence[int]], max_step_tokens: int = 512) -> list[float]:
    """Influence of every block but the last, whose output no block sees, averaged over all tokens of the prompts."""
    sums = [0.0] * (routed.n_layers - 1)
    full = RoutePolicy(Route.full(routed.n_layers))
    for _, inputs in prompt_steps(routed, prompts, max_step_tokens, by_length=True):
        real_BT, entered = inputs["attention_mask"].bool(), []

        def compare(block: int, x_BTD: Tensor, _: Any, real_BT: Tensor = real_BT, entered: list[Tensor] = entered) -> None:
            x = x_BTD[real_BT.to(x_BTD.device)].float()
            if entered:
                sums[block - 1] += float(torch.nn.functional.cosine_similarity(entered.pop().to(x.device), x, dim=-1).sum())
            entered.append(x)

        routed.decoder_forward(routed.new_cache(full, real_BT, compare), **inputs)
    n_tokens = sum(map(len, prompts))
    return [1 - value / n_tokens for value in sums]
