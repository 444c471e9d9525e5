"""A healed route on vLLM: the merged folder in the stock engine, and as `drllm serve` starts it. Token for token the routed model's."""

from __future__ import annotations

import pytest

from drllm import Route, RoutedModel
from drllm.deploy.export import export
from engines import check, checkpoint, needs_vllm, run_engine
from healed import random_policy

pytestmark = [pytest.mark.slow, needs_vllm]
PROMPTS = [[5, 9, 33, 7], [8, 41, 3, 12, 90, 77, 250], list(range(3, 60))]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_merged_folder_says_what_the_healed_route_says(family, tmp_path):
    routed = RoutedModel.wrap(str(checkpoint(tmp_path / "base", family)), dtype="float32")
    routed.policy = random_policy(routed, Route.parse("110211"))
    export(routed, routed.policy.route, tmp_path / "merged")
    asked = [{"ids": ids, "new": 12} for ids in PROMPTS]
    for spec in (None, {"mode": "static", "n_layers": 6, "route": "111111"}):
        done = run_engine(tmp_path / "merged", spec, asked)
        for request, answer in zip(asked, done["answers"], strict=True):
            check(routed, request, answer, str(routed.policy.route))
