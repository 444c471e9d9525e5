"""Leave after the first blocks: the rest are skipped, norm and head follow. One route for every prompt; nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drllm.core.options import Options, option
from drllm.methods.base import Method
from drllm.methods.budget import kept_passes, without

if TYPE_CHECKING:
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


@dataclass(frozen=True)
class EarlyExitConfig(Options):
    """A share of the base's passes."""

    budget: float = option(0.9, "passes to keep, as a share of the base's", ge=0.01, le=1)


def fit(routed: RoutedModel, training_data: TrainingData, config: EarlyExitConfig, folder: Path) -> Policy:
    """No record is read, but for the prompts' format."""
    left_out = range(kept_passes(config.budget, routed.n_layers), routed.n_layers)
    return training_data.constant(without(routed.n_layers, left_out))


METHOD = Method("early_exit", "leave after the first blocks; one route", "cf. CALM, arXiv 2207.07061", EarlyExitConfig, fit)
