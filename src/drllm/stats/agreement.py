"""The promise that needs no answer key: greedy answers differ from the base's on at most a share of prompts; an exact binomial test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from drllm.stats.promise import Promise


@dataclass(frozen=True)
class Agreement(Promise):
    """With probability 1 - delta over calibration sets, answers differ on at most a share epsilon of prompts.

    Whatever is judged by these answers alone is then at most epsilon below the base, so it is a promise, too. epsilon 0 asks for the
    smallest share that the prompts bear, of the first point. Each prompt stands among them once, however often it was asked.
    """

    tokens: int = 0  # of the answers that are compared, at most
    longest: int = 0  # of the prompts, in tokens: longer ones keep every block

    @property
    def sentence(self) -> str:
        sure, share = f"with {100 * (1 - self.delta):g} % confidence", f"{100 * self.epsilon:g} %"
        where = f"{self.n} {self.split} prompts, which chose nothing"
        if self.point is None:
            seen = f"the surest operating point differs on {self.tested[0]['differ']} of {where}" if self.tested else f"there are {where}"
            if self.n < (least := fewest_prompts(self.epsilon, self.delta)):
                return f"{seen}; a promise of at most {share} needs {least} at least. The base is kept."
            return f"{seen}, too many for a promise of at most {share} {sure}. The base is kept."
        differ = next(row["differ"] for row in self.tested if row["point"] == self.point)
        return (
            f"{sure} the greedy answer ({self.tokens} tokens) differs from the base's on at most {share} of prompts like these, "
            f"each counted once; it did on {differ} of {where}. Prompts of more than {self.longest:,} tokens were not tested: they keep "
            "every block. Another choice of budgets on the same prompts would be another try."
        )


def find_agreement(wanted: Agreement, differs: Sequence[ArrayLike], passes: Sequence[float]) -> Agreement:
    """Test operating points, the surest first as they are given, up to the first that fails, and take the cheapest that passed.

    `wanted` is settled before any verdict is looked at; `differs`: of each point (N,) whether its answer is another than the base's;
    `passes`: its mean passes.
    """
    if not differs or len(differs) != len(passes):
        raise ValueError(f"expected one mean number of passes a point, got {len(passes)} for {len(differs)}")
    counts = [int(np.asarray(of, dtype=bool).sum()) for of in differs]
    n, delta = wanted.n, wanted.delta
    # Of one point, named beforehand, the smallest share may be taken after looking: its tests are nested. Of the best of many it may not.
    asked = counts if wanted.epsilon else counts[:1]
    epsilon = wanted.epsilon or math.ceil(1000 * most_that_differ(n, counts[0], delta)) / 1000
    tested = []
    for point, differ in enumerate(asked):
        p = float(stats.binom.cdf(differ, n, epsilon))
        tested.append({"point": point, "p": p, "differ": differ, "mean_passes": float(passes[point]), "passed": p <= delta})
        if p > delta:
            break
    passed = [row for row in tested if row["passed"]]
    chosen = min(passed, key=lambda row: (row["mean_passes"], -row["point"]), default=None)
    return replace(wanted, epsilon=epsilon, tested=tuple(tested), point=None if chosen is None else chosen["point"])


def most_that_differ(n: int, differ: int, delta: float) -> float:
    """Clopper and Pearson's upper limit, one-sided, of the share of prompts that differ."""
    return 1.0 if differ == n else float(stats.beta.ppf(1 - delta, differ + 1, n - differ))


def fewest_prompts(epsilon: float, delta: float) -> int:
    """How many prompts bear this promise where none of their answers differs."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon)) if epsilon < 1 else 1
