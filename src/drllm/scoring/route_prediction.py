"""Prompts through the model without answering them: one forward of each, no output head; the routes that a policy decides for them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Route
from drllm.model.prompts import left_pad
from drllm.model.routed import RoutedModel
from drllm.policies.codebook import pool_prompt
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import Policy, RouteSource
from drllm.policies.saved import content_digest
from drllm.scoring.packing import split_steps

Prompts = Sequence[Sequence[int]]  # token ids


def prompt_inputs(routed: RoutedModel, prompts: Prompts, width: int = 0) -> dict[str, Tensor]:
    """What the model's forward takes of prompts, left-padded to `width` or to the longest."""
    ids, mask = left_pad(prompts, routed.pad_id, routed.device, width)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if routed.takes_position_ids else inputs


def prompt_steps(
    routed: RoutedModel, prompts: Prompts, max_step_tokens: int, by_length: bool = False
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Prompts in left-padded steps, in order or the shortest first, which pads little: which of them, what the model's forward takes."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index)) if by_length else list(range(len(prompts)))
    for step in split_steps([len(prompts[index]) for index in order], max_step_tokens):
        members = [order[at] for at in step]
        yield members, prompt_inputs(routed, [prompts[index] for index in members])


@torch.no_grad()
def read_prompts(
    routed: RoutedModel, prompts: Prompts, blocks: Sequence[int], max_step_tokens: int, advance: Callable[[int], None] = lambda n: None
) -> dict[int, Tensor]:
    """What a codebook would read of each prompt before each of `blocks`: (N, 2 D) float32 by block.

    Only the blocks before the last of them run. `advance` is told how many prompts are done.
    """
    n_run = max(blocks)
    source = RoutePolicy(Route([1] * n_run + [0] * (routed.n_layers - n_run)))
    found = {block: torch.zeros((len(prompts), 2 * routed.hidden_size)) for block in blocks}
    for members, inputs in prompt_steps(routed, prompts, max_step_tokens, by_length=True):
        mask = inputs["attention_mask"]

        def observe(block: int, x_BTD: Tensor, _: dict[str, Any], members: list[int] = members, mask: Tensor = mask) -> None:
            if block in found:
                found[block][members] = pool_prompt(x_BTD, mask).cpu()

        routed.decoder_forward(routed.new_cache(source, mask, observe), **inputs)
        advance(len(members))
    return found


@torch.no_grad()
def decide_routes(routed: RoutedModel, policies: Sequence[RouteSource | None], prompts: Prompts, max_step_tokens: int) -> list[list[Route]]:
    """One route a prompt, by each policy; None is the base model.

    A policy decides from what it may read of each prompt under its own route, as in `RoutedModel.generate`. Codebooks read the base's
    states, so one forward of the first blocks serves them all.
    """
    blocks = sorted({policy.reads for policy in policies if policy is not None and policy.reads is not None})
    read = read_prompts(routed, prompts, blocks, max_step_tokens) if blocks and prompts else {}

    def decide(policy: RouteSource | None) -> list[Route]:
        if policy is None:
            return [Route.full(routed.n_layers)] * len(prompts)
        if policy.reads in read:
            return policy.routes_from(read[policy.reads])
        if (known := policy.routes_for(prompts)) is not None:
            return known
        routes: list[Route] = []
        for _, inputs in prompt_steps(routed, prompts, max_step_tokens):
            cache = routed.new_cache(policy, inputs["attention_mask"], input_ids=inputs["input_ids"])
            routed.decoder_forward(cache, **inputs)
            routes += cache.routes
        return routes

    return [decide(policy) for policy in policies]


def decision_key(policy: RouteSource | None) -> str:
    """Under which a policy's decisions are known; "" where it needs no forward to decide."""
    if not isinstance(policy, Policy) or policy.evaluate_only or policy.routes_for([]) is not None:
        return ""
    return content_digest(policy)
