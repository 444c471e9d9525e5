"""Prompts through the model without answering them: one forward of each, no output head; the routes that a policy decides for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.model.policy import EvaluateOnlyPolicy, Policy, RowRoutes
from drllm.model.prompts import left_pad
from drllm.model.routed import RoutedModel
from drllm.routes import Route
from drllm.scoring.rows import split_steps


def prompt_steps(
    routed: RoutedModel, prompts: Sequence[Sequence[int]], max_step_tokens: int, by_length: bool = False
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Prompts (token ids) in left-padded steps: which of them, and what the model's forward takes.

    In the order given, or with `by_length` the shortest first, so that little is padded.
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index)) if by_length else list(range(len(prompts)))
    for step in split_steps([len(prompts[index]) for index in order], max_step_tokens):
        rows = [order[at] for at in step]
        ids, mask = left_pad([prompts[index] for index in rows], routed.pad_id, routed.device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if routed.takes_position_ids:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        yield rows, inputs


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
    for _, inputs in prompt_steps(routed, prompts, max_step_tokens):
        cache = routed.new_cache(policy, inputs["attention_mask"])
        routed.decoder_forward(cache, **inputs)
        routes += cache.routes
    return routes


def score_policies(scorer: Any, questions: Sequence[Any], policies: Sequence[Policy | None]) -> list[tuple[list[Any], list[Any]]]:
    """(verdicts, routes or depths) of each policy on a scorer's questions; None is the base model.

    Policies that decide alike, or whose routes share their first blocks, are answered together.
    """
    if any(isinstance(policy, EvaluateOnlyPolicy) for policy in policies):
        if len(policies) > 1:
            return [score_policies(scorer, questions, [policy])[0] for policy in policies]
        (policy,) = policies
        assert isinstance(policy, EvaluateOnlyPolicy)
        return [policy.answer(scorer, questions)]
    prompts = [question.context_ids for question in questions]
    routes = [decide_routes(scorer.routed, policy, prompts, scorer.max_step_tokens) for policy in policies]
    handles = scorer.open(questions)
    pairs = [(handle, mine[place]) for place, handle in enumerate(handles) for mine in routes]
    verdicts = dict(zip(pairs, scorer.score(pairs), strict=True))
    scorer.close(handles)
    return [([verdicts[pair] for pair in zip(handles, mine, strict=True)], mine) for mine in routes]
