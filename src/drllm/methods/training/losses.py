"""The focal loss with effective-number class weights (arXiv 2510.12773, section 3.2)."""

import math

from torch import Tensor

MIN_MISS = 1e-8


def class_weights(counts_C: Tensor, beta: float) -> Tensor:
    """alpha_c = ((1 - b) / (1 - b^n_c)) over the mean of the same across classes (Cui et al. 2019).

    A class without examples counts as one with a single example: its weight is then finite, and no label ever uses it. It does enter the
    mean, so it scales the other weights down together; AdamW's steps do not depend on that scale.
    """
    counts = counts_C.double().clamp(min=1)
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.mean()).float()


def focal_loss(logits: Tensor, labels: Tensor, alpha_C: Tensor, gamma: float) -> Tensor:
    """Mean over every label of -alpha_y (1 - p_y)^gamma log p_y; gamma = 0 is weighted cross-entropy.

    Args:
        logits: (..., C).
        labels: (...) long.
    """
    log_p = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    # 1 - p, kept off 0: there the power has an infinite slope for gamma < 1, and the gradient would be nan.
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
    """Mean F1 over the classes that occur."""
    present = [score for score in scores if not math.isnan(score)]
    return sum(present) / len(present) if present else float("nan")
