"""Two baselines that look at no record: leave after the first blocks, and skip blocks drawn at random. One route for every prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.options import MAX_SEED, Options, option
from drllm.core.route import kept_passes
from drllm.methods.base import Method, without

if TYPE_CHECKING:
    from drllm.methods.base import Policy, RoutedModel, TrainingData


@dataclass(frozen=True)
class EarlyExitConfig(Options):
    budget: float = option(0.9, "passes to keep, as a share of the base's", ge=0.01, le=1)


@dataclass(frozen=True)
class RandomSkipConfig(EarlyExitConfig):
    seed: int = option(0, "seed of the draw", ge=0, le=MAX_SEED)


def fit_early_exit(routed: RoutedModel, training_data: TrainingData, config: EarlyExitConfig, folder: Path) -> Policy:
    left_out = range(kept_passes(config.budget, routed.n_layers), routed.n_layers)
    return training_data.constant(without(routed.n_layers, left_out))


def fit_random_skip(routed: RoutedModel, training_data: TrainingData, config: RandomSkipConfig, folder: Path) -> Policy:
    """What any way of choosing blocks has to beat at the same passes."""
    n_skipped = routed.n_layers - kept_passes(config.budget, routed.n_layers)
    skipped = np.random.default_rng(config.seed).choice(routed.n_layers, n_skipped, replace=False)
    return training_data.constant(without(routed.n_layers, skipped))


ABOUT_EXIT, ABOUT_RANDOM = "leave after the first blocks; one route", "random blocks skipped; one route, a baseline"
EARLY_EXIT = Method("early_exit", ABOUT_EXIT, "cf. CALM, arXiv 2207.07061", EarlyExitConfig, fit_early_exit)
RANDOM_SKIP = Method("random_skip", ABOUT_RANDOM, "what choosing blocks is worth", RandomSkipConfig, fit_random_skip)
