"""What choices that are compared by their log-likelihoods say: right or wrong, and by how much."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from drllm.runs.store import Verdict


def loglik_verdict(logliks: Sequence[float], question: Any, metric: str) -> Verdict:
    """The verdicts of lm-evaluation-harness: argmax of the log-likelihoods (`acc`) and of those a character (`acc_norm`).

    Of equal choices the first one wins there. Here they lie at different places of a sequence and may round apart, so they share one value.
    """
    if not all(math.isfinite(total) for total in logliks):
        return Verdict(False, acc=False, acc_norm=False, broken=True)
    gold, choices = question.example.answer, question.example.choices
    logliks = [logliks[choices.index(choice)] for choice in choices]
    per_char = [total / max(n_chars, 1) for total, n_chars in zip(logliks, question.n_chars, strict=True)]
    margins, verdicts = {}, {}
    for name, scores in (("acc", logliks), ("acc_norm", per_char)):
        verdicts[name] = scores.index(max(scores)) == gold
        margins[name] = scores[gold] - max(score for choice, score in enumerate(scores) if choice != gold)
    margins = {name: float(np.float32(margin)) for name, margin in margins.items()}  # what is looked up later is what was computed
    metric = "acc" if question.task.only_acc else metric
    return Verdict(verdicts[metric], margins[metric], verdicts["acc"], verdicts["acc_norm"], None, margins["acc"], margins["acc_norm"])
