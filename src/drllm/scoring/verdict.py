"""What scoring one (question, route) pair yields."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drllm.core.route import Route


@dataclass(frozen=True)
class Verdict:
    """Verdict and margin of the reward. Log-likelihoods alone have margins, in nats (a character for acc_norm), acc and acc_norm."""

    correct: bool  # the verdict that counts as the reward
    margin: float = float("nan")  # the gold choice's score under the metric minus the best other's
    acc: bool | None = None  # of raw log-likelihood
    acc_norm: bool | None = None  # of character-normalised log-likelihood
    text: str | None = None  # of generated answers: the text, up to where its verdict was settled
    margin_acc: float = float("nan")  # the margin under either metric
    margin_acc_norm: float = float("nan")
    f1: float = float("nan")  # of answers out of a passage: SQuAD's F1, 0 to 1
    strict: bool | None = None  # of letters and boxed answers: what either reader says (`drllm.tasks.readers`)
    lenient: bool | None = None
    form: str = ""  # and in which form the answer came
    n_new: int = 0  # tokens of a generated answer, its end among them; 0 where it was not followed to its end
    broken: bool = False  # the logits were NaN or infinite; every verdict is then wrong and every margin nan


class Known(dict[tuple[str, str], Verdict]):
    """What need not be computed again of a task: verdicts by question and route, (id, `str(route)`).

    Attributes:
        decided: the routes that policies decided, by `policies.saved.content_digest` and question id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decided: dict[tuple[str, str], Route] = {}


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
    metric = "acc" if question.task.only_acc else metric
    return Verdict(verdicts[metric], margins[metric], verdicts["acc"], verdicts["acc_norm"], None, margins["acc"], margins["acc_norm"])
