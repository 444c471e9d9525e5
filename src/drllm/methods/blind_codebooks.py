"""Blind baselines: codebooks trained as ever, with one thing taken away from each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.options import option
from drllm.methods.base import Method
from drllm.methods.codebook import CodebookConfig, choose_routes, fit_codebook

if TYPE_CHECKING:
    from drllm.methods.matrix import Matrix
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import Policy


N_DRAWN = 32  # routes of the blind draw that are looked for in the matrix: of many, some would be there because they gain
BLIND_SEED = 0  # of that draw, the one `benchmarks/candidates.py --mixed` puts into a list


@dataclass(frozen=True)
class RandomCodebookConfig(CodebookConfig):
    """As a codebook's, of routes drawn blindly."""

    draw: int = option(0, "which of the blind routes come first")


@dataclass(frozen=True)
class InputBlindConfig(CodebookConfig):
    """As a codebook's, its selector trained on other questions' prompts."""


def fit_random(routed: RoutedModel, training_data: TrainingData, config: RandomCodebookConfig, folder: Path) -> Policy:
    """The codebook's routes are some of those that were put into the list blindly; the selector is trained as ever."""
    from drllm.searching.prior import random_routes

    def blind(matrix: Matrix, allowed: np.ndarray, n: int, config: RandomCodebookConfig, price: float) -> list[int]:
        n_possible = 4 ** min(routed.n_layers - 1, 4)
        drawn = random_routes(routed.n_layers, min(N_DRAWN, n_possible), SearchConfig(), BLIND_SEED)
        places = [matrix.routes.index(route) for route in drawn if route in matrix.routes]
        places = [place for place in places if allowed[place]]
        places = [places[at] for at in np.random.default_rng(config.draw).permutation(len(places))]
        if not places:
            raise InputError(
                f"none of the {len(matrix.routes)} routes of the matrix was drawn blindly: add some to the list of "
                "`search --paths` (benchmarks/candidates.py --mixed does)"
            )
        return places[:n]

    return fit_codebook(routed, training_data, config, folder, blind)


def fit_blind(routed: RoutedModel, training_data: TrainingData, config: InputBlindConfig, folder: Path) -> Policy:
    """Fit prompts are dealt to other fit questions before the selector sees them, so that it can learn nothing about prompts."""
    return fit_codebook(routed, training_data, config, folder, choose_routes, shuffle=True)


ABOUT_RANDOM, ABOUT_BLIND = "a codebook of random routes; a baseline", "a codebook trained on other questions' prompts; a baseline"
RANDOM_CODEBOOK = Method("random_codebook", ABOUT_RANDOM, "what choosing routes is worth", RandomCodebookConfig, fit_random)
INPUT_BLIND = Method("input_blind", ABOUT_BLIND, "what prompts are worth", InputBlindConfig, fit_blind)
