"""All L routers trained together on cached features, by the focal loss (arXiv 2510.12773, section 3.2): one product a layer.

Shapes: N records, L blocks, W windows, D hidden size, B records of a batch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drllm.core.config import RoutersConfig
from drllm.core.errors import InputError
from drllm.core.route import Action
from drllm.methods.features import Features
from drllm.policies.routers import N_ACTIONS, RouterConfig, Routers

LARGEST_NORM = 1.0  # of a step's gradient in preset paper: the default of the trainer that the authors use
MIN_MISS = 1e-8  # 1 - p is kept off 0: the gradient of a power below 1 would be nan there


def train_routers(
    features: Features,
    val_mask_N: Tensor,
    config: RoutersConfig,
    router_config: RouterConfig,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    targets: Tensor | None = None,
) -> Routers:
    """Fit routers to the labels (section 5: AdamW, cosine with warm-up, 25 epochs); same seed, same weights on the same number of threads.

    Class counts come from the training labels alone. Metrics are taken along the label path (teacher forcing) with the weights of the
    epoch's end, the loss while they change.

    Args:
        features: pooled (N, L, W, D), valid (N, W), labels (N, L).
        val_mask_N: true on records that are measured on and never trained on.
        on_epoch: called with each epoch's metrics: epoch, loss, those of `measure`, and these with val_ too if records are held back.
        targets: (N, L, C), what to learn instead of the labels: a distribution over actions; the labels then serve the metrics alone.

    Raises `InputError` when nothing is left to train on, the features do not fit the routers, or the loss stops being finite.
    """
    val_places, train_places = (mask.nonzero()[:, 0] for mask in (val_mask_N, ~val_mask_N))
    _check(features, router_config, train_places)
    # Blocks first, so that a batch is one gather and one batched product.
    pooled_LNWD = features.pooled.transpose(0, 1).contiguous()
    labels_LN = features.labels.T.contiguous()
    routers = Routers(router_config, config.seed)
    parameters = [parameter.requires_grad_() for parameter in routers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    n_steps = config.epochs * -(-len(train_places) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(n_steps, min(config.warmup_steps, n_steps // 10)))
    loss_of = _loss(labels_LN, targets, train_places, config)
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(1, config.epochs + 1):
        order = train_places[torch.randperm(len(train_places), generator=generator)]
        total = 0.0
        for batch in order.split(config.batch_size):
            loss = loss_of(routers.all_logits(pooled_LNWD[:, batch], features.valid[batch]), batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.preset == "paper":
                torch.nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if not math.isfinite(total):
            raise InputError(f"training diverged in epoch {epoch} (loss {total}): lower lr (now {config.lr}) or set normalize to rms")
        if on_epoch is not None:
            measured = measure(routers, pooled_LNWD, features.valid, labels_LN, train_places)
            held_back = measure(routers, pooled_LNWD, features.valid, labels_LN, val_places) if len(val_places) else {}
            val = {f"val_{name}": value for name, value in held_back.items()}
            on_epoch({"epoch": epoch, "loss": total / len(train_places)} | measured | val)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return routers


def _check(features: Features, router_config: RouterConfig, train_places: Tensor) -> None:
    shape, expected = tuple(features.pooled.shape[1:]), (router_config.n_layers, router_config.n_windows, router_config.hidden_size)
    if shape != expected:
        raise InputError(f"features are (blocks, windows, size) {shape} a record, the routers take {expected}: extract them again")
    if not len(train_places):
        raise InputError("no record is left to train on: search more questions")


def _loss(labels_LN: Tensor, targets_NLC: Tensor | None, train_places: Tensor, config: RoutersConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits (L, B, C) of a batch, given the batch's places among the records: focal, or soft where there are targets."""
    if targets_NLC is None:
        alpha = class_weights(torch.bincount(labels_LN[:, train_places].flatten(), minlength=N_ACTIONS), config.beta)
        return lambda logits_LBC, batch: focal_loss(logits_LBC, labels_LN[:, batch], alpha, config.gamma)
    rarity = rarity_weights(targets_NLC[train_places].mean((0, 1)))
    return lambda logits_LBC, batch: soft_loss(logits_LBC, targets_NLC[batch].transpose(0, 1), rarity, config.gamma)


def warmup_cosine(n_steps: int, n_warmup: int) -> Callable[[int], float]:
    """Linear warm-up to 1, then half a cosine down to 0."""

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        done = (step - n_warmup) / max(1, n_steps - n_warmup)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return factor


@torch.no_grad()
def measure(routers: Routers, pooled_LNWD: Tensor, valid_NW: Tensor, labels_LN: Tensor, places: Tensor) -> dict[str, float]:
    """Along the label path: F1 of each action over all blocks (nan where it does not occur), their mean, share of labels met, passes."""
    # In small parts: they need little memory and, on one thread, less time than large ones.
    predictions = torch.cat([routers.all_logits(pooled_LNWD[:, part], valid_NW[part]).argmax(-1) for part in places.split(16)], dim=1)
    scores = f1_scores(predictions, labels_LN[:, places], N_ACTIONS)
    named = {f"f1_{action.name.lower()}": scores[action] for action in Action}
    accuracy = float((predictions == labels_LN[:, places]).float().mean())
    return {"macro_f1": macro_f1(scores)} | named | {"accuracy": accuracy, "mean_passes": float(predictions.sum(0).float().mean())}


def class_weights(counts_C: Tensor, beta: float) -> Tensor:
    """alpha_c = ((1 - b) / (1 - b^n_c)) over the mean of the same across classes (Cui et al. 2019).

    A class without examples counts as one with a single one: its weight is finite, and only scales the others, which AdamW does not mind.
    """
    counts = counts_C.double().clamp(min=1)
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.mean()).float()


def focal_loss(logits: Tensor, labels: Tensor, alpha_C: Tensor, gamma: float) -> Tensor:
    """Mean over (...) labels, of logits (..., C), of -alpha_y (1 - p_y)^gamma log p_y; gamma = 0 is weighted cross-entropy."""
    log_p = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    weight = alpha_C[labels] if gamma == 0 else alpha_C[labels] * (-log_p.expm1()).clamp(min=MIN_MISS) ** gamma
    return -(weight * log_p).mean()


def soft_loss(logits: Tensor, targets: Tensor, alpha_C: Tensor, gamma: float) -> Tensor:
    """`focal_loss` for targets that are distributions over actions: (..., C), each summing to 1."""
    log_p = logits.log_softmax(-1)
    weight = alpha_C if gamma == 0 else alpha_C * (-log_p.expm1()).clamp(min=MIN_MISS) ** gamma
    return -(targets * weight * log_p).sum(-1).mean()


def rarity_weights(shares_C: Tensor) -> Tensor:
    """One over the square root of each class's share, their mean 1: acts at any number of records, unlike `class_weights` at large ones."""
    weights = shares_C.double().clamp(min=1e-4).rsqrt()
    return (weights / weights.mean()).float()


def f1_scores(predictions: Tensor, labels: Tensor, n_classes: int) -> list[float]:
    """F1 of each class; nan for a class that occurs neither in labels nor in predictions."""
    scores = []
    for label in range(n_classes):
        said, true = predictions == label, labels == label
        total = int(said.sum()) + int(true.sum())
        scores.append(2 * int((said & true).sum()) / total if total else float("nan"))
    return scores


def macro_f1(scores: list[float]) -> float:
    present = [score for score in scores if not math.isnan(score)]
    return sum(present) / len(present) if present else float("nan")
