"""A codebook by KL: it finds what the text tells, chooses nothing by a prompt's own KL, and its points save what they should."""

from __future__ import annotations

import numpy as np
import pytest

import runs
from drllm import InputError, Route
from drllm.methods.nearest import SAVED, fit_nearest
from drllm.policies.codebook import Codebook
from healed import random_adapter

N = 200


@pytest.fixture(scope="module")
def adapters():
    routed = runs.model()
    return [random_adapter(routed, Route.parse(text), seed=seed) for seed, text in enumerate(("1101", "1001"))]


def asked(seed: int = 0) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Prompts of two kinds, by their first token; the second bears no route."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, N)
    prompts = [[7 + int(kind), *rng.integers(20, 40, 6).tolist()] for kind in kinds]
    kls = np.where(kinds[:, None] == 0, [0.02, 0.05], [0.4, 0.9]) + rng.gamma(1, 0.02, (N, 2))
    return prompts, kls, kinds


def test_it_leaves_out_blocks_where_the_text_says_that_they_are_cheap(adapters):
    prompts, kls, kinds = asked()
    found = fit_nearest(prompts, kls, [one.healed for one in adapters], adapters, 0)
    saved = [float(np.array([0, 0.25, 0.5])[taken].mean()) for taken in found.taken]
    assert saved == sorted(saved)
    assert all(abs(one - share * 0.5) < 0.06 for one, share in zip(saved, SAVED, strict=True))
    assert kinds[found.taken[2] > 0].mean() < 0.05, "a quarter of what can be saved: of the cheap kind alone"
    assert len(found.policy.operating_points()) == len(found.taken)
    fresh, _, of = asked(1)
    routes = found.policy.at_point(2).routes_for(fresh)
    assert np.mean([kind for kind, route in zip(of, routes, strict=True) if not route.is_full]) < 0.05
    prices = [point.price for point in found.policy.points]
    assert prices == sorted(prices)


def test_out_of_fold_a_prompt_s_own_kl_chooses_nothing(adapters):
    """Where the text tells nothing, the routes that are taken are no better than dealt ones."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(20, 60, 8).tolist() for _ in range(N)]
    kls = rng.gamma(1, [0.1, 0.3], (N, 2))
    found = fit_nearest(prompts, kls, [one.healed for one in adapters], adapters, 0)
    losses = np.concatenate([np.zeros((N, 1)), kls], 1)
    for taken in found.taken:
        own = losses[np.arange(N), taken].mean()
        dealt = losses.mean(0) @ (np.bincount(taken, minlength=3) / N)
        assert own > 0.7 * dealt


def test_saved_and_loaded_it_takes_the_same_routes(adapters, tmp_path):
    prompts, kls, _ = asked()
    policy = fit_nearest(prompts, kls, [one.healed for one in adapters], adapters, 0).policy
    policy.save(tmp_path)
    again = Codebook.load(tmp_path)
    assert again.routes_for(prompts) == policy.routes_for(prompts)
    assert set(again.adapters) == set(adapters)


def test_prompts_without_a_common_token_are_one_line(adapters):
    prompts = [[3 * n, 3 * n + 1] for n in range(30)]
    with pytest.raises(InputError, match=r"^these 30 prompts have no token in common"):
        fit_nearest(prompts, np.ones((30, 2)), [one.healed for one in adapters], adapters, 0)
