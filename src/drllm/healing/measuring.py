"""How far a route is from the base on some texts: KL, and how often the most likely next token is the same.

Shapes: B texts of a step, W its width, D hidden size, V vocabulary, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.healing.teacher import Text, divergence, joined
from drllm.model.routed import RoutedModel
from drllm.scoring.prefixes import PrefixRunner, padded_width
from drllm.scoring.route_prediction import prompt_inputs, prompt_steps

HEAD_TOKENS = 128  # that go through the output head together
STATE_BYTES = 2**30  # of prefixes that routes share


class Distance(NamedTuple):
    """Of what a model says from what the base says: nats a token, and the share of tokens whose most likely successor is the base's."""

    kl: float
    same: float


def own_rows(logits_BWV: Tensor, texts: Sequence[Text]) -> Tensor:
    """The logits (N, V) of left-padded texts, token after token, without those of pads."""
    return torch.cat([row[-len(text.ids) :] for row, text in zip(logits_BWV, texts, strict=True)])


@torch.no_grad()
def distance(routed: RoutedModel, texts: Sequence[Text], max_step_tokens: int, forward: Callable[..., Any]) -> Distance:
    """Of a forward that takes what the model's takes, on these texts; a mean over all of their tokens."""
    total, same, n = 0.0, 0, 0
    for members, inputs in prompt_steps(routed, [text.ids for text in texts], max_step_tokens, by_length=True):
        step = [texts[member] for member in members]
        logits_NV = own_rows(forward(**inputs).logits, step).float()
        top, logs, rest = joined(step, logits_NV.device)
        total += float(divergence(logits_NV, top, logs, rest).double().sum())
        same += int((logits_NV.argmax(1) == top[:, 0]).sum())
        n += len(top)
    return Distance(total / n, same / n)


class RouteMeter:
    """The KL of routes on some texts; what their paths share is computed once."""

    def __init__(self, routed: RoutedModel, texts: Sequence[Text], max_step_tokens: int):
        self.routed, self.texts = routed, texts
        self.runner = PrefixRunner(routed, max_step_tokens, STATE_BYTES)
        with torch.no_grad():
            self._roots = self.runner.open_all([text.ids for text in texts], partial(prompt_inputs, routed), (0,), padded_width)

    def kls(self, routes: Sequence[Route]) -> dict[Route, float]:
        """In nats a token, of each route; several together fill steps. `InputError` where one is NaN or infinite."""
        n_tokens = sum(len(text.ids) for text in self.texts)
        return {route: sum(float(kls.sum()) for kls in of) / n_tokens for route, of in self.by_token(routes).items()}

    @torch.no_grad()
    def by_token(self, routes: Sequence[Route]) -> dict[Route, list[Tensor]]:
        """Of each route, text by text: the KL (N,) behind each token, float64. `InputError` where one is NaN or infinite."""
        for route in routes:
            for index, root in enumerate(self._roots):
                self.runner.submit(root, route, (route, index))
        found: dict[Any, Tensor] = {}
        for tag, node in self.runner.ends(len(routes) * len(self.texts)):
            assert isinstance(tag, tuple)
            assert node.state is not None
            found[tag] = self._of(node.state, self.texts[tag[1]])
            self.runner.release(node)
        for (route, _), kls_N in found.items():
            if not math.isfinite(kl := float(kls_N.sum())):
                raise InputError(f"the KL of route {route} is {kl}: load the base in bfloat16 or float32")
        return {route: [found[route, index] for index in range(len(self.texts))] for route in routes}

    def _of(self, state_WD: Tensor, text: Text) -> Tensor:
        """Behind each of a text's tokens (N,), from the states behind its last block."""
        states_ND, found = state_WD[-len(text.ids) :], []
        for start in range(0, len(states_ND), HEAD_TOKENS):
            part = slice(start, start + HEAD_TOKENS)
            logits_NV = self.runner.finish(states_ND[part]).float()
            kept = (one[part].to(logits_NV.device) for one in (text.top, text.logs, text.rest))
            found.append(divergence(logits_NV, *kept).double().cpu())
        return torch.cat(found)
