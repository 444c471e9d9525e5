"""A codebook of routes and the selector that takes one of them for each prompt, or the base where it is not sure of a gain.

A route's score is a linear function of what the selector reads: the predicted gain over the base less the predicted harm (PuDDing, arXiv
2502.04348, chooses among pruned models likewise; here with abstention). Read is the prompt's text (`TextSelector`: which of the tokens and
pairs of neighbours that fit prompts held are in it), before anything runs, or the states before an early block (`StateSelector`), up to
which all routes run the same blocks, so that nothing is computed twice.

Shapes: B sequences, T tokens, D hidden size, F = 2 D features, G grams, K routes but the base, L blocks.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Route, Visit
from drllm.policies.adapter import Adapter
from drllm.policies.files import PolicyFiles
from drllm.policies.healed import HealedPolicy
from drllm.policies.policy import NOT_FINITE, Decider, Policy

TENSORS = ("mean", "scale", "weight", "bias")
ADAPTERS = "adapters"  # a folder, which holds one of each adapter, as a healed route is saved
_FILES = PolicyFiles("codebook", "train the codebook again", "codebook.json", "selector.safetensors")

Gram = tuple[int, ...]  # one token id, or two of neighbours
LEAST_PROMPTS = 3  # fit prompts that hold a gram, for it to be read
MOST_GRAMS = 2048  # the most frequent ones: more tell kinds of prompts apart no better


@dataclass(frozen=True)
class Point:
    threshold: float  # a route is taken where its score is above this
    price: float = 0.0  # a saved share of all passes, in accuracy: added to a shorter route's score, taken off a longer one's


def pool_prompt(x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
    """(B, 2 D) float32: the mean of the prompt's states, and the state of its last token."""
    mask = prompt_mask_BT.to(x_BTD.device).bool()
    x = x_BTD.float().masked_fill(~mask[..., None], 0)
    last = (mask.cumsum(1) * mask).argmax(1)
    return torch.cat([x.sum(1) / mask.sum(1, keepdim=True), x[torch.arange(len(x), device=x.device), last]], dim=1)


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
    """A linear score of each route from the grams of a prompt, which is given as token ids: a policy belongs to one base's tokenizer.

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
        """Of the known grams; sorted, for a sum over them to be the same whatever order a set has."""
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


@dataclass(eq=False)
class StateSelector:
    """A linear score of each route from the states that enter a block."""

    block: int  # before which they are read
    mean: Tensor  # mean and scale, (F,), standardise the pooled states
    scale: Tensor
    weight: Tensor  # (F, K)
    bias: Tensor  # (K,)
    reach: float = math.inf  # the largest root mean square of standardised features with which a prompt may leave the base

    def __post_init__(self) -> None:
        if self.weight.shape != (len(self.mean), len(self.bias)) or len(self.mean) % 2:
            of = f"{len(self.mean)} features and {len(self.bias)} routes"
            raise InputError(f"weights of shape {tuple(self.weight.shape)} do not fit {of}")

    def scores(self, features_BF: Tensor) -> Tensor:
        """(B, K): each route's predicted gain over the base less its harm; -inf for prompts out of reach."""
        features = ((features_BF.cpu() - self.mean) / self.scale).float()
        with torch.autocast("cpu", enabled=False):  # near ties are decided in float32, whoever asks
            scores = features @ self.weight + self.bias
            return scores.masked_fill((features.square().mean(1).sqrt() > self.reach)[:, None], -math.inf)


class Codebook(Policy):
    """K + 1 routes, the base first, and a linear selector.

    Args:
        routes: all alike before the selector's block, where each executes every block once.
        points: operating points, most conservative first; none for a codebook of the base alone; at: the one in use.
        adapters: those that the routes name; only a codebook that reads text has such routes, which differ from the first block on.
    """

    name = "codebook"
    about = "a few routes, and a selector that takes one of them for a prompt where a gain is sure"

    def __init__(
        self,
        routes: Sequence[Route],
        selector: StateSelector | TextSelector,
        points: Sequence[Point],
        at: int = 0,
        adapters: Sequence[Adapter] = (),
    ):
        self.routes, self.selector, self.adapters = tuple(routes), selector, tuple(adapters)
        self.n_layers = len(self.routes[0])
        self.has_digits = all(route.has_digits for route in self.routes)
        self.at, self.points = at, tuple(points)
        # A codebook of the base alone has nothing to choose.
        self.route = self.routes[0] if len(self.routes) == 1 else None
        if isinstance(selector, StateSelector):
            self.hidden_size = len(selector.mean) // 2
        if not self.routes[0].is_full or any(route.first_edit() < selector.block for route in self.routes[1:]):
            expected = f"must list the base route first; no route may change a block before {selector.block}"
            raise InputError(f"a codebook that reads the prompt before block {selector.block} {expected}")
        named, given = {route.adapter for route in self.routes} - {""}, {adapter.name for adapter in self.adapters}
        if named != given or (named and isinstance(selector, StateSelector)):
            what = f"routes under the adapters {', '.join(sorted(named)) or 'none'}, and the adapters {', '.join(sorted(given)) or 'none'}"
            raise InputError(f"got {what}: give those that the routes name, in a codebook that reads text")
        fits = len(selector.bias) == len(self.routes) - 1
        if not fits or not 0 <= at < max(1, len(self.points)) or (len(self.routes) > 1 and not self.points):
            raise InputError(f"a selector of {len(selector.bias)} scores does not fit {len(self.routes)} routes and point {at}")
        self._saved_K = torch.tensor([1 - route.n_passes / self.n_layers for route in self.routes[1:]])

    def routes_for(self, prompts: Sequence[Sequence[int]]) -> list[Route] | None:
        if self.route is not None or isinstance(self.selector, StateSelector):
            return super().routes_for(prompts)
        return self.chosen(prompts)

    def chosen(self, read: Any) -> list[Route]:
        """Each prompt's route, from the texts or pooled states that the selector scores; `InputError` where those are not finite."""
        if isinstance(self.selector, StateSelector) and not bool(read.isfinite().all()):
            block = self.selector.block
            raise InputError(NOT_FINITE.format(block))
        scores_BK = self.selector.scores(read)
        return [self.routes[index] for index in pick(scores_BK, self._saved_K, self.points[self.at]).tolist()]

    def values(self, read: Any) -> Tensor:
        """(B, K): what each route is worth at the operating point, to be compared with its threshold."""
        return self.selector.scores(read) + self.points[self.at].price * self._saved_K

    @property
    def threshold(self) -> float:  # type: ignore[override]
        return self.points[self.at].threshold if self.points else 0.0

    def start(self, prompt_mask_BT: Tensor) -> Decider:
        reads_states = self.route is None and isinstance(self.selector, StateSelector)
        return _StateDecider(self, prompt_mask_BT) if reads_states else super().start(prompt_mask_BT)

    def at_point(self, at: int) -> Codebook:
        if not 0 <= at < len(self.points):
            raise InputError(f"operating point {at} does not exist: this codebook has {len(self.points)}, counted from 0")
        view = copy.copy(self)
        view.at = at
        view.promise = None  # promised for one point
        return view

    def with_adapters(self, adapters: Sequence[Adapter]) -> Codebook:
        """The same choice among routes that run under these adapters; it promises nothing yet."""
        healed, found = {adapter.route: adapter.healed for adapter in adapters}, copy.copy(self)
        found.routes, found.adapters = tuple(healed.get(route, route) for route in self.routes), tuple(adapters)
        found.promise = None
        return found

    def operating_points(self) -> list[Policy]:
        return [self.at_point(at) for at in range(len(self.points))] if self.points else [self]

    def save(self, folder: Path) -> list[str]:
        """`codebook.json`, which holds a checksum of `selector.safetensors`, and each adapter in a folder."""
        written: list[str] = []
        for adapter in self.adapters:
            place = folder / ADAPTERS / adapter.name
            place.mkdir(parents=True, exist_ok=True)
            written += [f"{ADAPTERS}/{adapter.name}/{name}" for name in HealedPolicy(adapter).save(place)]
        about: dict[str, Any] = {"routes": [str(route) for route in self.routes], "at": self.at}
        about["points"] = [asdict(point) for point in self.points]
        about |= {"reach": self.selector.reach} if self.selector.reach < math.inf else {}
        if isinstance(self.selector, StateSelector):
            return _FILES.save(folder, about | {"block": self.selector.block}, {name: getattr(self.selector, name) for name in TENSORS})
        about |= {"longest": self.selector.longest} if self.selector.longest else {}
        return written + _FILES.save(folder, about, self.selector.tensors())

    @classmethod
    def load(cls, folder: Path) -> Codebook:
        about, tensors = _FILES.load(folder)
        with _FILES.reading(folder):
            points = [Point(float(point["threshold"]), float(point["price"])) for point in about["points"]]
            reach = float(about.get("reach", math.inf))
            if any(math.isnan(value) for point in points for value in (point.threshold, point.price, reach)):
                raise ValueError("an operating point or the reach is NaN")
            if "block" in about and reach <= 0:
                raise ValueError(f"the reach is {reach}")
            selector: StateSelector | TextSelector
            if "block" in about:
                selector = StateSelector(int(about["block"]), *(tensors[name] for name in TENSORS), reach=reach)
            else:
                selector = TextSelector.of_tensors(tensors, reach, int(about.get("longest", 0)))
            routes = [Route.parse(text) for text in about["routes"]]
            names = sorted({route.adapter for route in routes} - {""})
            adapters = [HealedPolicy.load(folder / ADAPTERS / name).adapters[0] for name in names]
            return cls(routes, selector, points, int(about["at"]), adapters)


class _StateDecider(Decider):
    def __init__(self, codebook: Codebook, prompt_mask_BT: Tensor):
        self._codebook, self._prompt_mask_BT = codebook, prompt_mask_BT
        self._routes: list[Route] | None = None

    @property
    def routes(self) -> list[Route] | None:
        return self._routes

    @torch.no_grad()
    def decide(self, block: int, x_BTD: Tensor) -> Tensor | list[Visit]:
        if block < self._codebook.selector.block:
            return torch.ones(len(x_BTD), dtype=torch.long)
        if block == self._codebook.selector.block:
            with torch.autocast(x_BTD.device.type, enabled=False):
                self._routes = self._codebook.chosen(pool_prompt(x_BTD, self._prompt_mask_BT))
        assert self._routes is not None, "a prefill passes the block where the choice is made"
        if self._codebook.has_digits:
            return torch.tensor([route[block] for route in self._routes])
        return [route.visits[block] for route in self._routes]

    def values(self, block: int, x_BTD: Tensor) -> Tensor | None:
        if block != self._codebook.selector.block:
            return None
        return self._codebook.values(pool_prompt(x_BTD, self._prompt_mask_BT))


def pick(scores_BK: Tensor, saved_K: Tensor, point: Point) -> Tensor:
    """The index (B,) of the route with the highest score plus its saved passes' worth, 0 (the base) where none is above the threshold."""
    if not scores_BK.shape[1]:
        return torch.zeros(len(scores_BK), dtype=torch.long)
    value, best = (scores_BK + point.price * saved_K).max(1)
    return torch.where(value > point.threshold, best + 1, 0)
