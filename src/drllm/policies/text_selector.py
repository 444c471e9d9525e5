"""What a codebook reads of a prompt's text: which tokens and pairs of neighbouring tokens are in it, of those that the fit prompts held.

A policy belongs to the weights of one base and so to its tokenizer, whose tokens stand for words and pieces of words. A prompt is given as
token ids wherever a route is decided (in transformers, in the harness, before an engine), and nothing needs to be decoded.

Shapes: B prompts, G grams, K routes but the base.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from drllm.core.errors import InputError

Gram = tuple[int, ...]  # one token id, or two of neighbours
LEAST_PROMPTS = 3  # fit prompts that hold a gram, for it to be read
MOST_GRAMS = 2048  # the most frequent ones: more tell kinds of prompts apart no better


def grams_in(ids: Sequence[int]) -> set[Gram]:
    """Every token of a prompt and every pair of neighbours, each once."""
    return {*((token,) for token in ids), *pairwise(ids)}


def common_grams(prompts: Sequence[Sequence[int]]) -> dict[Gram, int]:
    """Grams that at least `LEAST_PROMPTS` of some prompts hold, and how many do: the most frequent, `MOST_GRAMS` of them."""
    counts = Counter(gram for ids in prompts for gram in grams_in(ids))
    found = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_GRAMS]
    return {gram: n for gram, n in found if n >= LEAST_PROMPTS}


def presence(prompts: Sequence[Sequence[int]], grams: Iterable[Gram]) -> np.ndarray:
    """(B, G) float32: which of the grams a prompt holds, in a row of length 1; of zeros where it holds none."""
    place_of = {gram: place for place, gram in enumerate(grams)}
    found = np.zeros((len(prompts), len(place_of)), dtype=np.float32)
    for row, ids in zip(found, prompts, strict=True):
        places = [place_of[gram] for gram in grams_in(ids) if gram in place_of]
        row[places] = 1 / math.sqrt(max(1, len(places)))
    return found


def strangeness(n_grams: int, n_known: int) -> float:
    """The share of a prompt's grams that are not known, less what a short prompt may lack by chance; infinite where none is known."""
    return 1 - n_known / n_grams - 1 / math.sqrt(n_grams) if n_known else math.inf


class TextSelector:
    """A linear score of each route from the grams of a prompt.

    Args:
        grams: those that are read.
        weight, bias: (G, K) and (K,): what a gram speaks for each route, and what no gram does.
        reach: the largest `strangeness` with which a prompt may leave the base.
        longest: tokens of the longest prompt that may; 0: any.
    """

    block = 0  # routes may differ from the first block on

    def __init__(self, grams: Sequence[Gram], weight: Tensor, bias: Tensor, reach: float, longest: int = 0):
        self.grams, self.weight, self.bias, self.reach, self.longest = tuple(grams), weight, bias, reach, longest
        self._place_of = {gram: place for place, gram in enumerate(self.grams)}
        if weight.shape != (len(self.grams), len(bias)) or len(self._place_of) != len(self.grams):
            raise InputError(f"weights of shape {tuple(weight.shape)} do not fit {len(self._place_of)} grams and {len(bias)} routes")

    def scores(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(B, K) float32: each route's predicted gain over the base less its harm; -inf for prompts out of reach, or too long."""
        return torch.stack([self._score(ids) for ids in prompts]) if prompts else torch.zeros((0, len(self.bias)))

    def _score(self, ids: Sequence[int]) -> Tensor:
        if not ids:
            raise InputError("a codebook that reads text got a prompt without tokens: give the cache its input_ids")
        grams = grams_in(ids)
        places = self._places(grams)
        if strangeness(len(grams), len(places)) > self.reach or 0 < self.longest < len(ids):
            return torch.full_like(self.bias, -math.inf)
        return self.bias + (self.weight[places].double().sum(0) / math.sqrt(len(places))).float()

    def _places(self, grams: set[Gram]) -> list[int]:
        """Of the known grams; sorted, so that a sum over them is the same whatever order a set has."""
        return sorted(map(self._place_of.__getitem__, grams & self._place_of.keys()))

    def tensors(self) -> dict[str, Tensor]:
        """To be saved; a gram of one token has -1 for the second."""
        grams = torch.tensor([(*gram, -1)[:2] for gram in self.grams], dtype=torch.int32).reshape(-1, 2)
        return {"grams": grams, "weight": self.weight, "bias": self.bias}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], reach: float, longest: int) -> TextSelector:
        """What `tensors` gave; `KeyError`, `ValueError` or `InputError` for anything else."""
        grams = [(first,) if second < 0 else (first, second) for first, second in tensors["grams"].tolist()]
        return cls(grams, tensors["weight"], tensors["bias"], reach, longest)

    def spoken(self, ids: Sequence[int], route: int) -> list[tuple[Gram, float]]:
        """What each known gram of a prompt adds to the score of a route (0: the first after the base), the most first."""
        places = self._places(grams_in(ids))
        shares = (self.weight[places, route] / math.sqrt(max(1, len(places)))).tolist()
        return sorted(((self.grams[place], share) for place, share in zip(places, shares, strict=True)), key=lambda pair: -pair[1])
