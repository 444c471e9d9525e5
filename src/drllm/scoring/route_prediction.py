"""Prompts through the model without answering them: one forward of each, no output head; the routes that a policy decides for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Route, Visit
from drllm.core.span import in_place
from drllm.model.prompts import left_pad
from drllm.model.routed import RoutedModel
from drllm.policies.codebook import pool_prompt
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import Decider, Policy, RouteSource
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

    A policy decides from what it may read of each prompt under its own route, as in `RoutedModel.generate`. Policies share a forward of
    the base as long as they follow it, and it ends where the last of them has its routes.
    """
    found: list[list[Route] | None] = []
    for policy in policies:
        found.append([Route.full(routed.n_layers)] * len(prompts) if policy is None else policy.routes_for(prompts))
    reading = [place for place, routes in enumerate(found) if routes is None]
    told: dict[int, dict[int, Route]] = {place: {} for place in reading}  # by policy and prompt
    for members, inputs in prompt_steps(routed, prompts, max_step_tokens, by_length=True) if reading else ():
        asked = {place: policy for place in reading if (policy := policies[place]) is not None}
        together = _Together(routed.n_layers, asked)
        cache = routed.new_cache(together, inputs["attention_mask"], input_ids=inputs["input_ids"])
        routed.decoder_forward(cache, **inputs)
        for place, policy in asked.items():
            routes = together.routes_of[place]
            if routes is None:  # it left the base: under its own route
                cache = routed.new_cache(policy, inputs["attention_mask"], input_ids=inputs["input_ids"])
                routed.decoder_forward(cache, **inputs)
                routes = cache.routes
            told[place] |= dict(zip(members, routes, strict=True))
    return [routes if routes is not None else [told[place][one] for one in range(len(prompts))] for place, routes in enumerate(found)]


class _Together(RouteSource):
    """Follows the base, and asks several policies on the way, until each has its routes or has left the base.

    Attributes:
        routes_of: of each policy, after the forward; None of one that has left the base before its routes were known.
    """

    name = "together"

    def __init__(self, n_layers: int, policies: Mapping[int, RouteSource]):
        self.n_layers, self.policies = n_layers, policies
        self.routes_of: dict[int, list[Route] | None] = dict.fromkeys(policies)

    def start(self, prompt_mask_BT: Tensor) -> Decider:
        return _TogetherDecider(self, {place: policy.start(prompt_mask_BT) for place, policy in self.policies.items()})


class _TogetherDecider(Decider):
    def __init__(self, source: _Together, asked: dict[int, Decider]):
        self._source, self._asked = source, asked

    def decide(self, block: int, x_BTD: Tensor) -> Tensor:
        for place, decider in list(self._asked.items()):
            follows = _follows_base(block, decider.decide(block, x_BTD))
            if decider.routes is None and follows and block == self._source.n_layers - 1:
                self._source.routes_of[place] = [Route.full(self._source.n_layers)] * len(x_BTD)
            elif decider.routes is not None:
                self._source.routes_of[place] = decider.routes
            if decider.routes is not None or not follows:
                del self._asked[place]
        return torch.full((len(x_BTD),), int(bool(self._asked)))  # once all are settled, no further block runs


def _follows_base(block: int, decided: Tensor | Sequence[Visit]) -> bool:
    """Whether every sequence runs the block once."""
    return bool((decided == 1).all()) if isinstance(decided, Tensor) else all(visit == in_place(block, 1) for visit in decided)


def decision_key(policy: RouteSource | None) -> str:
    """Under which a policy's decisions are known; "" where it needs no forward to decide."""
    if not isinstance(policy, Policy) or policy.routes_for([]) is not None:
        return ""
    return content_digest(policy)
