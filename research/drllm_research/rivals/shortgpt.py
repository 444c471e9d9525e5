"""ShortGPT (arXiv 2403.03853): skip the blocks that change the states least; one route for every prompt, no labels needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.files import write_json
from drllm.core.options import Options, option
from drllm.core.route import Route, kept_passes
from drllm.methods.base import Method, without
from drllm.runs.layout import INFLUENCE_FILE

if TYPE_CHECKING:
    from torch import Tensor

    from drllm.methods.base import Policy, RoutedModel, TrainingData

STEP_TOKENS = 512  # padded tokens that influence is measured on at once


@dataclass(frozen=True)
class ShortGPTConfig(Options):
    budget: float = option(0.9, "passes to keep, as a share of the base's", ge=0.1, le=1)
    questions: int = option(256, "fit prompts that influence is measured on", ge=1)


def fit(routed: RoutedModel, training_data: TrainingData, config: ShortGPTConfig, folder: Path) -> Policy:
    """Influence of each block goes to `folder/influence.json`. The last block is kept: what leaves it meets only the final norm."""
    prompts = training_data.prompts
    step = max(1, len(prompts) // config.questions)
    influence = block_influence(routed, prompts[::step][: config.questions])
    write_json(folder / INFLUENCE_FILE, {"influence": influence})
    n_skipped = routed.n_layers - kept_passes(config.budget, routed.n_layers)
    skipped = sorted(range(routed.n_layers - 1), key=lambda block: (influence[block], block))[:n_skipped]
    return training_data.constant(without(routed.n_layers, skipped))


def block_influence(routed: RoutedModel, prompts: Sequence[Sequence[int]]) -> list[float]:
    """Influence of every block but the last, whose output no block sees, averaged over all tokens of the prompts.

    It is one less the mean cosine between the states entering and leaving a block (equation 1).
    """
    import torch

    from drllm.policies.constant import RoutePolicy
    from drllm.scoring.route_prediction import prompt_steps

    sums = [0.0] * (routed.n_layers - 1)
    full = RoutePolicy(Route.full(routed.n_layers))
    for _, inputs in prompt_steps(routed, prompts, STEP_TOKENS, by_length=True):
        real_BT, entered = inputs["attention_mask"].bool(), []

        def compare(block: int, x_BTD: Tensor, _: Any, real_BT: Tensor = real_BT, entered: list[Tensor] = entered) -> None:
            x = x_BTD[real_BT.to(x_BTD.device)].float()
            if entered:
                sums[block - 1] += float(torch.nn.functional.cosine_similarity(entered.pop().to(x.device), x, dim=-1).sum())
            entered.append(x)

        with torch.no_grad():
            routed.decoder_forward(routed.new_cache(full, real_BT, compare), **inputs)
    n_tokens = sum(map(len, prompts))
    return [1 - value / n_tokens for value in sums]


METHOD = Method("shortgpt", "the blocks of least influence skipped; one route", "ShortGPT, arXiv 2403.03853", ShortGPTConfig, fit)
