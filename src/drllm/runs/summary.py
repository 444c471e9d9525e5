"""Rows of a comparison: verdicts of one method beside the base's on the same questions. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from drllm.core.config import EvaluateConfig
from drllm.core.text import with_interval
from drllm.runs.answers import Answers
from drllm.runs.names import BASE
from drllm.runs.stored import Stored
from drllm.stats.paired import decided, discordant, even_weights, mcnemar, paired_bootstrap, sign_flips, wilson

POOLED = "all"  # the name under which a summary pools its tasks


@dataclass(frozen=True)
class SummaryRow(Stored):
    """A method on one task, or on all tasks pooled (task "all")."""

    OPTIONAL: ClassVar = ("difference", "difference_low", "difference_high", "mcnemar_p", "better", "worse")  # the base has none
    method: str
    task: str
    n: int  # questions
    accuracy: float  # share of right answers, with its 95 % Wilson interval
    wilson_low: float
    wilson_high: float
    mean_passes: float  # block passes a prompt
    n_layers: int  # those of the base
    distinct_routes: int | None = None  # routes with their passes that differ
    identity_share: float | None = None  # share of prompts on the base's route; None where the method decides no route
    difference: float = math.nan  # accuracy minus the base's, a fraction, with its paired 95 % bootstrap interval
    difference_low: float = math.nan
    difference_high: float = math.nan
    mcnemar_p: float = math.nan  # McNemar's exact p of the changed verdicts
    better: int = -1  # questions only this method is right on
    worse: int = -1  # questions only the base is right on

    @property
    def change(self) -> str:
        """The difference in points, with its interval."""
        return with_interval(self.difference, self.difference_low, self.difference_high)

    @property
    def is_gain(self) -> bool | None:
        """Whether it is right more often than the base (True) or less (False), as far as interval and McNemar's test agree; None: open."""
        return decided(self.difference_low, self.difference_high, self.mcnemar_p)


@dataclass(frozen=True, kw_only=True)
class Summary(Stored):
    """The comparison of one split: `evaluate/<split>/summary.json`."""

    PARTS: ClassVar = {"rows": SummaryRow}
    split: str  # with "-first-<limit>" behind it if there was a limit
    reference: str  # the method that the others are compared with
    model: str  # id of the base
    fingerprint: str = ""  # digest of its weights
    tasks: list[str]
    rows: list[SummaryRow]  # each method on each task, and on all tasks pooled if there are several
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)  # by task, how many questions were left out, and why
    sources: dict[str, str] = field(default_factory=dict)  # by task, what its questions were read from, in words
    data: dict[str, str | None] = field(default_factory=dict)  # by task, the file given for them
    texts: dict[str, str] = field(default_factory=dict)  # by task, a digest of their texts
    policies: dict[str, str] = field(default_factory=dict)  # digests by name

    @property
    def pooled(self) -> list[SummaryRow]:
        """One row a method: over all tasks, or of the only task."""
        return [row for row in self.rows if row.task == POOLED] or self.rows


def rows_of(
    methods: Sequence[str], tasks: Sequence[str], verdicts: Mapping[tuple[str, str], Answers], n_layers: int, config: EvaluateConfig
) -> list[SummaryRow]:
    """The rows of a summary: each method on each task, and on all tasks pooled when there are several.

    `verdicts` of each method and the base are of the same questions in the same order; `config` says how the paired bootstrap draws.
    """
    rows = []
    for method in methods:
        for name in [*tasks, *([POOLED] if len(tasks) > 1 else [])]:
            parts = tasks if name == POOLED else [name]
            ours, base = ([verdicts[who, task] for task in parts] for who in (method, BASE))
            compared = () if method == BASE else _compared(ours, base, config)
            rows.append(SummaryRow(method, name, *_alone(ours, n_layers), *compared))
    return rows


def _alone(parts: Sequence[Answers], n_layers: int) -> tuple[Any, ...]:
    """What a row says of a method alone, n to identity_share."""
    correct = _correct(parts)
    routes = [route for part in parts for route in part.routes]
    passes = [value for part in parts for value in part.passes]
    identity_share = None if "" in routes else float(np.mean([set(route) == {"1"} for route in routes]))
    ran = float(np.mean(passes)), n_layers, len(set(zip(routes, passes, strict=True))), identity_share
    return len(correct), float(correct.mean()), *wilson(int(correct.sum()), len(correct)), *ran


def _compared(ours: Sequence[Answers], base: Sequence[Answers], config: EvaluateConfig) -> tuple[Any, ...]:
    """What a row says of a method beside the base, difference to worse."""
    pair = _correct(ours), _correct(base)
    strata = np.concatenate([np.full(len(part.correct), index) for index, part in enumerate(ours)])
    return *paired_bootstrap(*pair, config.n_resamples, config.seed, strata), mcnemar(*pair), *discordant(*pair)


def _correct(parts: Sequence[Answers]) -> np.ndarray:
    return np.concatenate([np.array(part.correct, dtype=float) for part in parts])


def evenly(by_task: Sequence[ArrayLike]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Values, a sequence a task, each task weighing the same: the weighted values, and their mean with its 95 % bootstrap interval."""
    parts = [np.asarray(part, dtype=float) for part in by_task]
    strata = np.concatenate([np.full(len(part), index) for index, part in enumerate(parts)])
    weighted = even_weights(strata) * np.concatenate(parts)
    return weighted, paired_bootstrap(weighted, np.zeros(len(weighted)), strata=strata)


def mean_over_tasks(ours: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """What a method's verdicts, a sequence a task, have over the base's on the same questions, each task weighing the same.

    Returns (mean, low, high, p): fractions, the paired 95 % bootstrap interval, questions drawn within their task, and p of sign flips.
    """
    weighted, found = evenly([np.array(a, dtype=float) - np.array(b, dtype=float) for a, b in zip(ours, base, strict=True)])
    return *found, sign_flips(weighted)
