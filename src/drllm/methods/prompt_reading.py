"""What the selector of a codebook reads of each fit and tune prompt: its text, or the base's states before an early block.

Shapes: N questions, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from drllm.core.digest import json_digest
from drllm.core.progress import Progress
from drllm.core.text import type_name
from drllm.methods.selector import moments

if TYPE_CHECKING:
    from torch import Tensor

    from drllm.methods.base import RoutedModel
    from drllm.methods.matrix import Matrix
    from drllm.policies.codebook import TextSelector

TEXT = 0  # the block of what is read before anything runs


class Read(NamedTuple):
    features: np.ndarray  # (N, F)
    away: np.ndarray  # (N,): how far each lies from the fit prompts


Readings: TypeAlias = dict[str, dict[int, Read]]  # by split and block


def reading_blocks(n_layers: int) -> list[int]:
    return sorted({max(1, round(n_layers * share)) for share in (0.1, 0.2, 0.33)})


def read_text(fit: Sequence[Sequence[int]], tune: Sequence[Sequence[int]]) -> Readings:
    """Which common grams of the fit prompts each prompt holds, and its strangeness, of a fit prompt by the other ones."""
    from drllm.policies.codebook import LEAST_PROMPTS, common_grams, grams_in, presence, strangeness

    counts = common_grams(fit)
    by_others = {gram for gram, n in counts.items() if n > LEAST_PROMPTS}
    found: Readings = {}
    for split, part, known in (("fit", fit, by_others), ("tune", tune, counts.keys())):
        away = [strangeness(len(grams), len(grams & known)) for grams in map(grams_in, part)]
        found[split] = {TEXT: Read(presence(part, counts), np.array(away))}
    return found


def text_selector(
    mean: np.ndarray, scale: np.ndarray, weight: np.ndarray, bias: np.ndarray, prompts: Sequence[Sequence[int]], reach: float
) -> TextSelector:
    """A ridge (`drllm.methods.selector.Ridge`) on what `read_text` reads of the fit prompts, as a policy decides by it."""
    import torch

    from drllm.policies.codebook import TextSelector, common_grams

    plain = weight / scale[:, None]  # what is read of a text is neither centred nor scaled
    weight_GK, bias_K = (torch.tensor(array, dtype=torch.float32) for array in (plain, bias - mean @ plain))
    return TextSelector(list(common_grams(prompts)), weight_GK, bias_K, reach)


def read_states(routed: RoutedModel, folder: Path, fit: Matrix, tune: Matrix, blocks: Sequence[int]) -> Readings:
    """The pooled states before each block, and how far they lie from the fit prompts': the root mean square of standardised features."""
    found: Readings = {"fit": {}, "tune": {}}
    pooled = {split: pooled_states(routed, folder, part, blocks, split) for split, part in (("fit", fit), ("tune", tune))}
    for block in blocks:
        mean, scale = moments(pooled["fit"][block])
        for split in found:
            features = pooled[split][block]
            found[split][block] = Read(features, np.sqrt((((features - mean) / scale) ** 2).mean(1)))
    return found


def pooled_states(routed: RoutedModel, folder: Path, matrix: Matrix, blocks: Sequence[int], split: str) -> dict[int, np.ndarray]:
    """(N, F) by block, kept in `folder` for all methods and lists of a run."""
    from drllm.methods.features import kept_tensors
    from drllm.scoring.route_prediction import read_prompts

    def read() -> dict[str, Tensor]:
        with Progress("read prompts", len(matrix.prompts)) as progress:
            found = read_prompts(routed, matrix.prompts, blocks, 512, progress.advance)
        return {str(block): values for block, values in found.items()}

    dtype = type_name(routed.model.dtype)
    key = json_digest([routed.fingerprint, dtype, list(blocks), matrix.prompts])
    kept = kept_tensors(folder / f"prompts-{split}-{key}.safetensors", "", [str(block) for block in blocks], read)
    return {block: values.numpy() for block, values in zip(blocks, kept, strict=True)}


def reach_of(fit: Read, block: int, unfamiliar: float) -> float:
    """How far away all but a share of the fit prompts lie; for a share of 0 the farthest where text is read, infinite where states are."""
    if block != TEXT and not unfamiliar:
        return math.inf
    finite = fit.away[np.isfinite(fit.away)]  # a prompt that has nothing in common with the others is far from them anyway
    return float(np.quantile(finite, 1 - unfamiliar)) if len(finite) else -math.inf
