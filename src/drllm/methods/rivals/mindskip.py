"""MindSkip (Router-Tuning, arXiv 2410.13184): a gate a block decides whether a prompt runs its attention. For evaluation only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.methods.base import Method
from drllm.methods.rivals.fit import GatesConfig, fit_gates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


@dataclass(frozen=True)
class MindSkipConfig(GatesConfig):
    """Gates on attention."""


def fit(routed: RoutedModel, training_data: TrainingData, config: MindSkipConfig, folder: Path) -> Policy:
    """Train the gates through the frozen model."""
    from drllm.methods.rivals.gates import MindSkip

    return fit_gates(routed, training_data, config, folder, MindSkip, share_of_attention)


def share_of_attention(gates: Sequence[Tensor], real_BT: Tensor) -> Any:
    """Mean of all gates: the share of attention that is run (the penalty of the paper's equation 5)."""
    return sum(gate.mean() for gate in gates) / len(gates)


METHOD = Method(
    "mindskip",
    "a gate a block on attention, by prompt; for evaluation only",
    "Router-Tuning, arXiv 2410.13184",
    MindSkipConfig,
    fit,
    evaluate_only=True,
)
