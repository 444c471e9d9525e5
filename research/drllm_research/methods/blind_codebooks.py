"""Blind baselines: codebooks trained as ever, with one thing taken away from each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.options import option
from drllm.methods.base import Method
from drllm.methods.codebook import CodebookConfig, fit_codebook

if TYPE_CHECKING:
    from drllm.methods.matrix import Matrix

N_DRAWN = 32  # routes of the blind draw that are looked for in the matrix: of many, some would be there because they gain
BLIND_SEED = 0  # of that draw, the one `research/drllm_research/comparison/candidates.py --mixed` puts into a list


@dataclass(frozen=True)
class RandomCodebookConfig(CodebookConfig):
    """As a codebook's, of routes drawn blindly."""

    draw: int = option(0, "which of the blind routes come first")


@dataclass(frozen=True)
class InputBlindConfig(CodebookConfig):
    """As a codebook's, its selector trained on other questions' prompts."""


def blind_routes(matrix: Matrix, allowed: np.ndarray, n: int, config: RandomCodebookConfig, price: float) -> list[int]:
    """Some of the routes that were put into the matrix's list blindly; the selector is trained as ever."""
    from drllm.searching.edits import random_routes

    n_layers = len(matrix.routes[0])
    drawn = random_routes(n_layers, min(N_DRAWN, 4 ** min(n_layers - 1, 4)), SearchConfig(), BLIND_SEED)
    places = [at for at in (matrix.routes.index(route) for route in drawn if route in matrix.routes) if allowed[at]]
    if not places:
        advice = "add some to the list of `search --paths` (research/drllm_research/comparison/candidates.py --mixed does)"
        raise InputError(f"none of the {len(matrix.routes)} routes of the matrix was drawn blindly: {advice}")
    return [places[at] for at in np.random.default_rng(config.draw).permutation(len(places))][:n]


fit_random = partial(fit_codebook, order_routes=blind_routes)
# Fit prompts are dealt to other fit questions before the selector sees them, so that it can learn nothing about prompts.
fit_blind = partial(fit_codebook, shuffle=True)
ABOUT_RANDOM, ABOUT_BLIND = "a codebook of random routes; a baseline", "a codebook trained on other questions' prompts; a baseline"
RANDOM_CODEBOOK = Method("random_codebook", ABOUT_RANDOM, "what choosing routes is worth", RandomCodebookConfig, fit_random)
INPUT_BLIND = Method("input_blind", ABOUT_BLIND, "what prompts are worth", InputBlindConfig, fit_blind)
