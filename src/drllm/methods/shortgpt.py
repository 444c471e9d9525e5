"""ShortGPT (arXiv 2403.03853): skip the blocks that change the states least; one route for every prompt, no labels needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drllm.core.files import write_json
from drllm.core.options import Options, option
from drllm.methods.base import Method
from drllm.methods.budget import kept_passes, without

if TYPE_CHECKING:
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


@dataclass(frozen=True)
class ShortGPTConfig(Options):
    """Block influence."""

    budget: float = option(0.9, "passes to keep, as a share of the base's", ge=0.1, le=1)
    questions: int = option(256, "fit prompts that influence is measured on", ge=1)


def fit(routed: RoutedModel, training_data: TrainingData, config: ShortGPTConfig, folder: Path) -> Policy:
    """Influence of each block goes to `folder/influence.json`. The last block is kept: what leaves it meets only the final norm."""
    from drllm.methods.block_influence import block_influence

    prompts = training_data.prompts
    step = max(1, len(prompts) // config.questions)
    influence = block_influence(routed, prompts[::step][: config.questions])
    write_json(folder / "influence.json", {"influence": influence})
    n_skipped = routed.n_layers - kept_passes(config.budget, routed.n_layers)
    skipped = sorted(range(routed.n_layers - 1), key=lambda block: (influence[block], block))[:n_skipped]
    return training_data.constant(without(routed.n_layers, skipped))


METHOD = Method("shortgpt", "the blocks of least influence skipped; one route", "ShortGPT, arXiv 2403.03853", ShortGPTConfig, fit)
