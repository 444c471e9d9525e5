"""Rows of a comparison: verdicts of one method beside the base's on the same questions. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drllm.evaluation.stats import even_weights, mcnemar, paired_bootstrap, sign_flips, wilson


@dataclass(frozen=True)
class Verdicts:
    """One method's verdicts on one task, in the order of the questions.

    Attributes:
        correct: whether each answer is right.
        routes: one digit a block each; empty where the method decides no route of its own.
        passes: block passes of each prompt.
        seconds: that answering took.
    """

    correct: Sequence[bool]
    routes: Sequence[str]
    passes: Sequence[float]
    seconds: float


def row_of(
    method: str, task: str, n_layers: int, ours: Sequence[Verdicts], base: Sequence[Verdicts] | None, n_resamples: int, seed: int
) -> dict[str, Any]:
    """A row of a summary: a method on one task, or on several pooled.

    Args:
        ours: the method's verdicts, a part a task.
        base: the base's on the same questions in the same order; None for the base's own row.
        n_resamples, seed: of the paired bootstrap, in which questions are drawn within their task.
    """
    correct = np.concatenate([np.array(part.correct, dtype=float) for part in ours])
    routes = [route for part in ours for route in part.routes]
    passes = [value for part in ours for value in part.passes]
    low, high = wilson(int(correct.sum()), len(correct))
    row: dict[str, Any] = {
        "method": method, "task": task, "n": len(correct), "accuracy": float(correct.mean()), "wilson_low": low, "wilson_high": high,
        "mean_passes": float(np.mean(passes)), "n_layers": n_layers, "distinct_routes": len(set(zip(routes, passes, strict=True))),
        "identity_share": None if "" in routes else float(np.mean([set(route) == {"1"} for route in routes])),
        "seconds": sum(part.seconds for part in ours),
    }  # fmt: skip
    if base is not None:
        theirs = np.concatenate([np.array(part.correct, dtype=float) for part in base])
        strata = np.concatenate([np.full(len(part.correct), index) for index, part in enumerate(ours)])
        difference, d_low, d_high = paired_bootstrap(correct, theirs, n_resamples, seed, strata)
        row |= {
            "difference": difference, "difference_low": d_low, "difference_high": d_high, "mcnemar_p": mcnemar(correct, theirs),
            "better": int((correct > theirs).sum()), "worse": int((correct < theirs).sum()),
        }  # fmt: skip
    return row


def mean_over_tasks(ours: Sequence[Sequence[bool]], base: Sequence[Sequence[bool]]) -> tuple[float, float, float, float]:
    """What a method's verdicts, a sequence a task, have over the base's on the same questions, each task weighing the same.

    Returns (mean, low, high, p): fractions, the paired 95 % bootstrap interval, questions drawn within their task, and p of sign flips.
    """
    differences = np.concatenate([np.array(a, dtype=float) - np.array(b, dtype=float) for a, b in zip(ours, base, strict=True)])
    strata = np.concatenate([np.full(len(part), index) for index, part in enumerate(ours)])
    weighted = even_weights(strata) * differences
    mean, low, high = paired_bootstrap(weighted, np.zeros(len(weighted)), strata=strata)
    return mean, low, high, sign_flips(weighted)
