"""Skip blocks drawn at random: what any way of choosing them has to beat at the same passes. One route for every prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.options import MAX_SEED, Options, option
from drllm.methods.base import Method
from drllm.methods.budget import kept_passes, without

if TYPE_CHECKING:
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


@dataclass(frozen=True)
class RandomSkipConfig(Options):
    """A share of the base's passes."""

    budget: float = option(0.9, "passes to keep, as a share of the base's", ge=0.01, le=1)
    seed: int = option(0, "seed of the draw", ge=0, le=MAX_SEED)


def fit(routed: RoutedModel, training_data: TrainingData, config: RandomSkipConfig, folder: Path) -> Policy:
    """No record is read, but for the prompts' format."""
    n_skipped = routed.n_layers - kept_passes(config.budget, routed.n_layers)
    skipped = np.random.default_rng(config.seed).choice(routed.n_layers, n_skipped, replace=False)
    return training_data.constant(without(routed.n_layers, skipped))


METHOD = Method("random_skip", "random blocks skipped; one route, a baseline", "what choosing blocks is worth", RandomSkipConfig, fit)
