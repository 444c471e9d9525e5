"""FlexiDepth (arXiv 2503.23798): a gate a block and token, and an adapter for the tokens that skip. For evaluation only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.options import option
from drllm.methods.base import Method
from drllm.methods.rivals.fit import GatesConfig, fit_gates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


@dataclass(frozen=True)
class FlexiDepthConfig(GatesConfig):
    """Gates on tokens of the later half of the blocks, and adapters."""

    first_block: int = option(0, "gates stand from this block on; 0: from the middle, as published")
    penalty: float = option(1e-3, "weight of the squared number of open gates a token (published: 1e-3)")
    lr: float = option(1e-3, "AdamW learning rate")
    adapter: int = option(96, "hidden units of an adapter (published: a sixteenth of the feed-forward's)", ge=1)


def fit(routed: RoutedModel, training_data: TrainingData, config: FlexiDepthConfig, folder: Path) -> Policy:
    """Train gates and adapters through the frozen model."""
    from dataclasses import replace

    from drllm.methods.rivals.gates import FlexiDepth

    config = replace(config, first_block=config.first_block or routed.n_layers // 2)
    return fit_gates(routed, training_data, config, folder, FlexiDepth, squared_depth, config.adapter)


def squared_depth(gates: Sequence[Tensor], real_BT: Tensor) -> Any:
    """Mean over tokens of the squared sum of a token's gates (the paper's layer-skipping loss)."""
    total = sum(gates)
    return (total**2)[real_BT.bool()].mean()  # type: ignore[operator]


METHOD = Method(
    "flexidepth",
    "a gate a block and token, with adapters; for evaluation only",
    "FlexiDepth, arXiv 2503.23798",
    FlexiDepthConfig,
    fit,
    evaluate_only=True,
)
