"""How far what a policy makes of a prompt depends on how numbers round: float32 beside bfloat16.

A route can take states where small differences grow, on some prompts and not on others. Then a server, an export or `generate` in another
float type writes other texts, and a promise tested in one type says nothing of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.model.copies import twin_in
from drllm.model.routed import RoutedModel


@torch.no_grad()
def rounding(routed: RoutedModel, policy: Any, prompts: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Divergence, in nats, of the next token's distribution in bfloat16 from that in float32, of the base and of a policy.

    Args:
        routed: the model in either type; a twin runs in the other one. Its policy is not used.
        policy: a policy or route; one that decides a prompt decides in each type anew.
        prompts: token ids; each runs alone.

    Returns:
        `base` and `policy`: KL(float32 || bfloat16) of each prompt.
    """
    runs_in = routed.model.dtype
    other = torch.bfloat16 if runs_in == torch.float32 else torch.float32
    asked = {"base": Route.full(routed.n_layers), "policy": policy}
    said: dict[torch.dtype, dict[str, list[Tensor]]] = {}
    with Progress("rounding", 4 * len(prompts)) as progress:
        for dtype in (runs_in, other):
            model = routed if dtype == runs_in else twin_in(routed, dtype)
            said[dtype] = {name: [_log_probs(model, routes, prompt, progress) for prompt in prompts] for name, routes in asked.items()}
    exact, rough = said.pop(torch.float32), said.popitem()[1]
    return {name: [_divergence(one, two) for one, two in zip(exact[name], rough[name], strict=True)] for name in asked}


def _log_probs(routed: RoutedModel, routes: Any, prompt: Sequence[int], progress: Progress) -> Tensor:
    """(V,) of the token behind a prompt."""
    ids_1T = torch.tensor([list(prompt)], device=routed.device)
    logits_V = routed(ids_1T, routes=routes, logits_to_keep=1).logits[0, -1]
    progress.advance(1)
    return logits_V.double().log_softmax(-1).cpu()


def _divergence(exact_V: Tensor, rough_V: Tensor) -> float:
    """KL in nats."""
    return float((exact_V.exp() * (exact_V - rough_V)).sum())
