"""Gemma 3 270M (GGUF in four data packages), a real model of another family: `make test-slow`."""

from __future__ import annotations

import pytest
import torch

from drllm import Route, RoutedModel
from drllm.model.packages import PACKAGED
from reference import path_model, plain_greedy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGED["gemma3-270m-q4"].installed is None, reason="needs the data packages of gemma3-270m-q4 (drllm models)"),
]
FULL = Route.full(18)
ROUTE = FULL.edit(7, 2).edit(12, 0)


@pytest.fixture(scope="module")
def models():
    """(the wrapped model, plain models by route), float32."""
    base = RoutedModel.wrap("gemma3-270m-q4", dtype=torch.float32)
    tokenizer = base.tokenizer
    model = base.unwrap()
    twins = {route: path_model(model, route.path) for route in (FULL, ROUTE)}
    return RoutedModel.wrap(model, tokenizer), twins


def test_routes_across_the_sliding_window(models):
    """Prompts shorter and longer than the window, different routes in one left-padded batch."""
    routed, twins = models
    window = routed.config.sliding_window
    prompts = ["The capital of France is", "One, two, three, four. " * (window // 8 + 20), "Water boils at"]
    lengths = [len(routed.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert lengths[0] < window < lengths[1]
    routes = [ROUTE, ROUTE, FULL]
    outs = routed.generate(prompts, policy=routes, max_new_tokens=8, do_sample=False)
    for prompt, route, out in zip(prompts, routes, outs, strict=True):
        ids = routed.tokenizer(prompt)["input_ids"]
        assert out.token_ids == plain_greedy(twins[route], ids, 8, routed.tokenizer.eos_token_id), route
