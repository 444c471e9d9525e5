"""Prompts through the model without answering them: one forward of each, no output head; the routes that a policy decides for them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Route, Visit
from drllm.model.prompts import left_pad
from drllm.model.routed import RoutedModel
from drllm.policies.codebook import pool_prompt
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import Decider, Policy, RouteSource
from drllm.policies.saved import content_digest
from drllm.policies.timed import WrappedSource
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
    """What a codebook would read of each prompt before each of `blocks`: (N, 2 D) float32 by block. `advance` is told of prompts done."""
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
    """One route a prompt, by each policy, from what it may read under its own route, as in `RoutedModel.generate`; None is the base."""
    found = []
    for policy in policies:
        routes = [Route.full(routed.n_layers)] * len(prompts) if policy is None else policy.routes_for(prompts)
        found.append(_routes_from_states(routed, policy, prompts, max_step_tokens) if routes is None else routes)
    return found


def _routes_from_states(routed: RoutedModel, policy: Any, prompts: Prompts, max_step_tokens: int) -> list[Route]:
    found: dict[int, Route] = {}
    for members, inputs in prompt_steps(routed, prompts, max_step_tokens, by_length=True):
        source = _UntilDecided(policy)
        cache = routed.new_cache(source, inputs["attention_mask"], input_ids=inputs["input_ids"])
        routed.decoder_forward(cache, **inputs)
        found |= zip(members, source.decider.routes or cache.routes, strict=True)
    return [found[index] for index in range(len(prompts))]


class _UntilDecided(WrappedSource):
    """Decides as the policy inside, until its routes are known: then no further block runs."""

    def start(self, prompt_mask_BT: Tensor) -> Decider:
        self.decider = self.source.start(prompt_mask_BT)
        return _Stopping(self.decider)


class _Stopping(Decider):
    def __init__(self, decider: Decider):
        self._decider = decider

    def decide(self, block: int, x_BTD: Tensor) -> Tensor | list[Visit]:
        decided = self._decider.decide(block, x_BTD)
        return decided if self._decider.routes is None else torch.zeros(len(x_BTD), dtype=torch.long)


def decision_key(policy: RouteSource | None) -> str:
    """Under which a policy's decisions are known; "" where it needs no forward to decide."""
    return content_digest(policy) if isinstance(policy, Policy) and policy.routes_for([]) is None else ""
