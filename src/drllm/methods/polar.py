"""After PoLar (arXiv 2606.06574): a predictor of the path, trained on every valid path of a question and followed without abstention.

PoLar's predictor writes a path over segments of blocks; here it chooses among the routes of a dense matrix. It learns from all right routes
of a question (all valid paths, not the shortest one), and the route likeliest to be right is taken, a saved pass deciding between equals.
Its own predictor and data are not public, so this stands for the idea, not for its figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drllm.core.options import option
from drllm.methods.base import Method
from drllm.methods.codebook import CodebookConfig, choose_routes, fit_codebook

if TYPE_CHECKING:
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


@dataclass(frozen=True)
class PolarConfig(CodebookConfig):
    """As a codebook's; verdicts alone are learned, and the base has no precedence."""

    n_routes: int = option(16, "routes besides the base; 0 tries 2, 4, 8, 16 and 32 on tune")
    margin_weight: float = option(0.0, "share of a gain that is the margin's; 0: valid or not, as published")
    abstain: bool = option(False, "keep the base where no gain is sure; as published, the likeliest path is followed")


def fit(routed: RoutedModel, training_data: TrainingData, config: PolarConfig, folder: Path) -> Policy:
    """As `drllm.methods.codebook.fit`; see the options for what differs."""
    return fit_codebook(routed, training_data, config, folder, choose_routes)


METHOD = Method("polar", "a predictor trained on all right paths, always followed", "after PoLar, arXiv 2606.06574", PolarConfig, fit)
