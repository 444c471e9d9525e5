"""A codebook of routes and the selector that takes one of them for each prompt, or the base where it is not sure of a gain.

All routes run the same blocks up to the one where the selector reads the prompt, so nothing is computed twice. A route's score is a
linear function of the pooled states: the predicted gain over the base less the predicted harm (PuDDing, arXiv 2502.04348, chooses among
pruned models likewise; here with abstention).

Shapes: B sequences, T tokens, D hidden size, F = 2 D features, K routes, L blocks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Route, Visit
from drllm.policies.files import PolicyFiles
from drllm.policies.policy import Decider, Policy, register_policy

TENSORS = ("mean", "scale", "weight", "bias")
_FILES = PolicyFiles("codebook", "train the codebook again", "codebook.json", "selector.safetensors")


@dataclass(frozen=True)
class Point:
    """How readily a codebook leaves the base."""

    threshold: float  # a route is taken where its score is above this
    price: float = 0.0  # a saved share of all passes, in accuracy: added to a shorter route's score, taken off a longer one's


def pool_prompt(x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
    """(B, 2 D) float32: the mean of the prompt's states, and the state of its last token."""
    mask = prompt_mask_BT.to(x_BTD.device).bool()
    x = x_BTD.float().masked_fill(~mask[..., None], 0)
    last = (mask.cumsum(1) * mask).argmax(1)
    return torch.cat([x.sum(1) / mask.sum(1, keepdim=True), x[torch.arange(len(x), device=x.device), last]], dim=1)


def distance(z_BF: Tensor) -> Tensor:
    """(B,): how far standardised features lie from those learned from, their root mean square."""
    return z_BF.square().mean(1).sqrt()


@register_policy("codebook")
class Codebook(Policy):
    """K routes, the base first, and a linear selector.

    Args:
        routes: the base route, then the others; all alike before `block`, where each executes every block once.
        block: the block before which the prompt's states are read.
        mean, scale: (F,) standardise the features.
        weight, bias: (F, K - 1) and (K - 1,): the score of each route but the base, whose score is 0.
        points: operating points, most conservative first; none for a codebook of the base alone.
        at: the one in use.

    Attributes:
        reach: how far a prompt may lie from those it learned from; further off it keeps the base. The root mean square of its standardised
            features.
    """

    about = "a few routes, and a selector that takes one of them for a prompt where a gain is sure"
    reach: float = math.inf

    def __init__(
        self, routes: Sequence[Route], block: int, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, points: list[Point], at: int
    ):
        self.routes = tuple(routes)
        self.n_layers, self.hidden_size = len(self.routes[0]), len(mean) // 2
        self.has_digits = all(route.has_digits for route in self.routes)
        self.block, self.at, self.points = block, at, tuple(points)
        # A codebook of the base alone has nothing to choose.
        self.route, self.reads = (self.routes[0], None) if len(self.routes) == 1 else (None, block)
        self.mean, self.scale, self.weight, self.bias = mean, scale, weight, bias
        if not self.routes[0].is_full or any(route.first_edit() < block for route in self.routes[1:]):
            expected = f"must list the base route first; no route may change a block before {block}"
            raise InputError(f"a codebook that reads the prompt before block {block} {expected}")
        fits = weight.shape == (len(mean), len(self.routes) - 1) and not len(mean) % 2
        if not fits or not 0 <= at < max(1, len(self.points)) or (len(self.routes) > 1 and not self.points):
            raise InputError(f"a selector of shape {tuple(weight.shape)} does not fit {len(self.routes)} routes and point {at}")
        self._saved_K = torch.tensor([1 - route.n_passes / self.n_layers for route in self.routes[1:]])

    def choose(self, features_BF: Tensor) -> Tensor:
        """The index (B,) of each prompt's route, from its pooled states."""
        if not self.points:
            return torch.zeros(len(features_BF), dtype=torch.long)
        return pick(self.scores(features_BF), self._saved_K, self.points[self.at])

    def routes_for(self, features_BF: Tensor) -> list[Route]:
        """Each prompt's route; `InputError` where its states are not finite."""
        if not bool(features_BF.isfinite().all()):
            raise InputError(f"the states entering block {self.block} are not finite on a prompt: load the base in bfloat16 or float32")
        return [self.routes[index] for index in self.choose(features_BF).tolist()]

    def standardised(self, features_BF: Tensor) -> Tensor:
        """(B, F), in float32."""
        return ((features_BF.cpu() - self.mean) / self.scale).float()

    def scores(self, features_BF: Tensor) -> Tensor:
        """(B, K - 1): each route's predicted gain over the base less its harm; -inf for prompts out of reach."""
        features = self.standardised(features_BF)
        with torch.autocast("cpu", enabled=False):  # near ties are decided in float32, whoever asks
            scores = features @ self.weight + self.bias
            return scores.masked_fill((distance(features) > self.reach)[:, None], -math.inf)

    def values(self, features_BF: Tensor) -> Tensor:
        """(B, K - 1): what each route is worth at the operating point, to be compared with its threshold."""
        return self.scores(features_BF) + self.points[self.at].price * self._saved_K

    @property
    def threshold(self) -> float:  # type: ignore[override]
        """Of the operating point in use."""
        return self.points[self.at].threshold if self.points else 0.0

    def start(self, prompt_mask_BT: Tensor) -> Decider:
        """The choices of one prefill."""
        return _CodebookDecider(self, prompt_mask_BT)

    def at_point(self, at: int) -> Codebook:
        """The same codebook at another operating point, sharing weights."""
        if not 0 <= at < len(self.points):
            raise InputError(f"operating point {at} does not exist: this codebook has {len(self.points)}, counted from 0")
        view = copy.copy(self)
        view.at = at
        view.guarantee = None  # promised for one point
        return view

    def operating_points(self) -> list[Policy]:
        """The codebook at each point, most conservative first."""
        return [self.at_point(at) for at in range(len(self.points))] if self.points else [self]

    def save(self, folder: Path) -> list[str]:
        """`codebook.json`, which holds a checksum of `selector.safetensors`; each atomically."""
        about: dict[str, Any] = {"routes": [str(route) for route in self.routes], "block": self.block, "at": self.at}
        about["points"] = [asdict(point) for point in self.points]
        about |= {"reach": self.reach} if self.reach < math.inf else {}
        return _FILES.save(folder, about, {name: getattr(self, name) for name in TENSORS})

    @classmethod
    def load(cls, folder: Path) -> Codebook:
        """Read back what `save` wrote; `ArtifactError` for anything missing, corrupt or inconsistent."""
        about, tensors = _FILES.load(folder)
        with _FILES.reading(folder):
            points = [Point(float(point["threshold"]), float(point["price"])) for point in about["points"]]
            if any(math.isnan(value) for point in points for value in (point.threshold, point.price)):
                raise ValueError("an operating point is NaN")
            reach = float(about.get("reach", math.inf))
            if not reach > 0:
                raise ValueError("the reach is not above 0")
            routes = [Route.parse(text) for text in about["routes"]]
            mean, scale, weight, bias = (tensors[name] for name in TENSORS)
            found = cls(routes, int(about["block"]), mean, scale, weight, bias, points, int(about["at"]))
            found.reach = reach
            return found


class _CodebookDecider(Decider):
    """A codebook during one prefill: holds each prompt's choice once it is made."""

    def __init__(self, codebook: Codebook, prompt_mask_BT: Tensor):
        self._codebook, self._prompt_mask_BT = codebook, prompt_mask_BT
        self._routes: list[Route] = []

    @torch.no_grad()
    def decide(self, block: int, x_BTD: Tensor) -> Tensor | list[Visit]:
        if block < self._codebook.block:
            return torch.ones(len(x_BTD), dtype=torch.long)
        if block == self._codebook.block:
            with torch.autocast(x_BTD.device.type, enabled=False):
                self._routes = self._codebook.routes_for(pool_prompt(x_BTD, self._prompt_mask_BT))
        assert self._routes, "a prefill passes the block where the choice is made"
        if self._codebook.has_digits:
            return torch.tensor([route[block] for route in self._routes])
        return [route.visits[block] for route in self._routes]

    def values(self, block: int, x_BTD: Tensor) -> Tensor | None:
        if block != self._codebook.block or not self._codebook.points:
            return None
        return self._codebook.values(pool_prompt(x_BTD, self._prompt_mask_BT))


def pick(scores_BK: Tensor, saved_K: Tensor, point: Point) -> Tensor:
    """The index (B,) of the route with the highest score plus its saved passes' worth, 0 (the base) where none is above the threshold."""
    if not scores_BK.shape[1]:
        return torch.zeros(len(scores_BK), dtype=torch.long)
    value, best = (scores_BK + point.price * saved_K).max(1)
    return torch.where(value > point.threshold, best + 1, 0)
