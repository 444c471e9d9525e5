"""A codebook by KL: from a prompt's text each route's KL to the base is predicted, and blocks are left out where that costs least.

A route's score is minus its predicted KL, the base's 0. A point's price says how far a predicted KL may go, in nats for all of the base's
passes: a route is taken where it goes less far for the passes that it saves. No answer key is read, and no route is chosen by one.

Shapes: N prompts, K routes but the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.methods.prompt_reading import TEXT, reach_of, read_text, text_selector
from drllm.methods.selector import Folds

if TYPE_CHECKING:
    from drllm.policies.adapter import Adapter
    from drllm.policies.codebook import Codebook

SAVED = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of what the shortest route saves, in the mean, at each operating point
FOLDS = 5
HALVINGS = 40  # of the range in which a price is looked for


@dataclass(frozen=True)
class Nearest:
    """A codebook by KL."""

    policy: Codebook  # its points save more from one to the next
    taken: list[np.ndarray]  # by point (N,) the place of each prompt's route among the policy's, predicted without the prompt itself


def fit_nearest(
    prompts: Sequence[Sequence[int]], kls_NK: np.ndarray, routes: Sequence[Route], adapters: Sequence[Adapter], seed: int, longest: int = 0
) -> Nearest:
    """A ridge regression from the text to the KL of each route, and operating points by predictions out of fold.

    Args:
        prompts: token ids, that no adapter was trained on.
        kls_NK: of each route on each prompt.
        routes: without the base.
        longest: tokens of a prompt that may leave the base; 0: any.
    """
    from drllm.policies.codebook import Codebook, Point

    read = read_text(prompts, [])["fit"][TEXT]
    if not np.isfinite(read.away).any():
        raise InputError(f"these {len(prompts)} prompts have no token in common by which a KL could be predicted: give more prompts")
    reach = reach_of(read, TEXT, 0.0)
    ridge, predicted_NK = Folds(read.features, -kls_NK, FOLDS, seed, one_scale=True).pick(range(len(routes)))
    predicted_NK[read.away > reach] = -np.inf
    saved_K = np.array([1 - route.n_passes / len(route) for route in routes])
    prices, taken = [], []
    for share in SAVED:
        price = _price(predicted_NK, saved_K, share * float(saved_K.max()))
        chosen_N = take(predicted_NK, saved_K, price)
        if chosen_N.any() and not (taken and np.array_equal(taken[-1], chosen_N)):
            prices.append(price)
            taken.append(chosen_N)
    selector = text_selector(ridge.mean, ridge.scale, ridge.weight, ridge.bias, prompts, reach)
    selector.longest = longest
    full = Route.full(len(routes[0]))
    points = [Point(0.0, price) for price in prices]
    return Nearest(Codebook([full, *routes], selector, points, len(points) - 1, adapters), taken)


def take(scores_NK: np.ndarray, saved_K: np.ndarray, price: float) -> np.ndarray:
    """(N,): the place of the route that each prompt takes at a price, 0 the base; as `drllm.policies.codebook.pick`."""
    worth = scores_NK + price * saved_K
    return np.where(worth.max(1) > 0, worth.argmax(1) + 1, 0)


def _price(scores_NK: np.ndarray, saved_K: np.ndarray, wanted: float) -> float:
    """The lowest price at which this share of the passes is saved in the mean; the highest tried where none does it."""

    def saves(price: float) -> bool:
        return float(np.append(0.0, saved_K)[take(scores_NK, saved_K, price)].mean()) >= wanted

    low, high = 0.0, 1e-3
    while not saves(high) and high < 1e6:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if saves(middle) else (middle, high)
    return high
