"""Gates of policies that run parts of blocks, trained through the frozen model on the fit questions with their right answers.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.progress import Progress
from drllm.methods.rivals.gated_blocks import GatedPolicy, Step
from drllm.model.routed import RoutedModel


def train_gates(
    routed: RoutedModel,
    policy: GatedPolicy,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    spent: Callable[[Sequence[Tensor], Tensor], Tensor],
    config: Any,
) -> list[dict[str, float]]:
    """Next-token loss of prompt and answer plus `penalty` times what the gates spend, by AdamW; the policy's tensors change in place.

    Args:
        texts: token ids of each prompt and of its right answer.
        spent: from all gates of a step, (B,) or (B, T) each, and the mask of real tokens (B, T), to one number.
        config: a `GatesConfig`.

    Returns:
        The loss of each step and the mean of its gates on real tokens.
    """
    generator = torch.Generator().manual_seed(config.seed)
    parameters = [tensor.requires_grad_() for tensor in policy.tensors.values()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.01)
    frozen = [parameter for parameter in routed.model.parameters() if parameter.requires_grad]
    losses: list[dict[str, float]] = []
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad(), Progress(f"train {policy.name}", config.steps) as progress:
            for _ in range(config.steps):
                picked = torch.randint(len(texts), (config.batch_size,), generator=generator).tolist()
                loss, gates = _loss(routed, policy, [texts[place] for place in picked], spent, config.penalty)
                if not bool(loss.isfinite()):
                    raise InputError(f"training diverged at step {len(losses)} (loss {float(loss)}): lower lr (now {config.lr})")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append({"loss": float(loss.detach()), "mean_gate": gates})
                progress.advance(1)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for tensor in parameters:
            tensor.requires_grad_(False)
    return losses


def _loss(routed: RoutedModel, policy: GatedPolicy, texts: Sequence[Any], spent: Any, penalty: float) -> tuple[Tensor, float]:
    lengths = [len(prompt) + len(answer) for prompt, answer in texts]
    ids = torch.full((len(texts), max(lengths)), routed.pad_id, dtype=torch.long)
    real, prompts = torch.zeros_like(ids), torch.zeros_like(ids)
    for at, (prompt, answer) in enumerate(texts):  # padded on the right: positions count from the first token
        ids[at, : lengths[at]] = torch.tensor([*prompt, *answer])
        real[at, : lengths[at]] = 1
        prompts[at, : len(prompt)] = 1
    ids, real, prompts = (tensor.to(routed.device) for tensor in (ids, real, prompts))
    step = Step.of(prompts, real, hard=False)
    with policy.installed(routed, step):
        logits = routed.model(input_ids=ids, attention_mask=real, use_cache=False).logits
    wanted = real[:, 1:].bool()
    language = torch.nn.functional.cross_entropy(logits[:, :-1][wanted].float(), ids[:, 1:][wanted])
    values = torch.cat([(gate if gate.ndim == 1 else gate[real.bool()]).flatten() for gate in step.gates])
    return language + penalty * spent(step.gates, real), float(values.detach().mean())
