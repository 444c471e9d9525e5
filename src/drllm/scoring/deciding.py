"""The routes a policy decides for prompts, without answering them: one forward of each prompt, no output head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from drllm.model.policy import Policy, RowRoutes
from drllm.model.prompts import left_pad
from drllm.model.routed import RoutedModel
from drllm.routes import Route
from drllm.scoring.rows import split_steps


@torch.no_grad()
def decide_routes(routed: RoutedModel, policy: Policy | None, prompts: Sequence[Sequence[int]], max_step_tokens: int) -> list[Route]:
    """One route a prompt (token ids); None is the base model.

    A policy decides from what it may read of each prompt under its own route, as in `RoutedModel.generate`.
    """
    if policy is None:
        return [Route.full(routed.n_layers)] * len(prompts)
    if isinstance(policy, RowRoutes):
        return [Route(actions) for actions in policy.actions_BL.tolist()]
    if policy.route is not None:
        return [policy.route] * len(prompts)
    routes: list[Route] = []
    for step in split_steps([len(prompt) for prompt in prompts], max_step_tokens):
        ids, mask = left_pad([prompts[index] for index in step], routed.pad_id, routed.device)
        cache = routed.new_cache(policy, mask)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if routed.takes_position_ids:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        routed.decoder_forward(cache, **inputs)
        routes += cache.routes
    return routes
