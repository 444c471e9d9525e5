"""ShortGPT's block influence: one less the mean cosine between the states entering and leaving a block (arXiv 2403.03853, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Route
from drllm.model.cache import RoutedCache
from drllm.model.routed import RoutedModel
from drllm.policies.constant import RoutePolicy
from drllm.scoring.route_prediction import prompt_steps


class _Comparing(RoutedCache):
    """Adds up the cosines between the states entering one block and the next."""

    before: Tensor | None = None
    sums: list[float]

    def enter(self, block: int, x_BTD: Tensor, arguments: dict[str, Any]) -> Tensor:
        x = x_BTD[self._prompt_mask.to(x_BTD.device)].float()
        if self.before is not None:
            self.sums[block - 1] += float(torch.nn.functional.cosine_similarity(self.before.to(x.device), x, dim=-1).sum())
        self.before = x
        return super().enter(block, x_BTD, arguments)


@torch.no_grad()
def block_influence(routed: RoutedModel, prompts: Sequence[Sequence[int]], max_step_tokens: int = 512) -> list[float]:
    """Influence of every block but the last, whose output no block sees, averaged over all tokens of the prompts."""
    sums = [0.0] * (routed.n_layers - 1)
    full = RoutePolicy(Route.full(routed.n_layers))
    for _, inputs in prompt_steps(routed, prompts, max_step_tokens, by_length=True):
        cache = _Comparing(routed.config, routed.n_layers, full, inputs["attention_mask"])
        cache.sums = sums
        routed.decoder_forward(cache, **inputs)
    n_tokens = sum(map(len, prompts))
    return [1 - value / n_tokens for value in sums]
