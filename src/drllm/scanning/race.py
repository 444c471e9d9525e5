"""The race of a scan: all candidates on a few questions, the better of them on twice as many, and so on. No torch, no model.

Successive halving (Karnin, Koren and Somekh 2013) by paired differences to the base, each kind of candidate by itself.
Shapes: Q questions, C candidates, R routes: the base, then candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drllm.core.digest import digest

Ask = Callable[[list[int], int, int], tuple[np.ndarray, np.ndarray]]
"""What candidates answer to questions `start` to `stop`: verdicts and margins, each (stop - start, 1 + candidates), the base first."""


@dataclass(frozen=True)
class Standing:
    """How a race ended."""

    n_C: np.ndarray  # questions that each candidate answered
    score_C: np.ndarray  # its mean score minus the base's, on those
    accuracy_C: np.ndarray  # its mean verdict minus the base's
    last: list[int]  # candidates of the last round
    verdicts_QR: np.ndarray  # what those answered to all questions, the base first
    margins_QR: np.ndarray

    @property
    def ranking(self) -> list[int]:
        """Candidates of the last round, the best score first; of equal ones the first."""
        return sorted(self.last, key=lambda candidate: (-self.score_C[candidate], candidate))


def schedule(n_questions: int, first: int) -> list[int]:
    """Questions that a candidate has answered after each round: `first`, twice as many, and so on, in the last all of them."""
    sizes = [min(first, n_questions)]
    while sizes[-1] < n_questions:
        sizes.append(min(2 * sizes[-1], n_questions))
    return sizes


def shares(n_candidates: int, n_rounds: int, n_kept: int) -> list[int]:
    """How many candidates of one kind run in each round: half of those of the round before, and at least `n_kept`."""
    sizes = [n_candidates]
    for _ in range(n_rounds - 1):
        sizes.append(max(math.ceil(sizes[-1] / 2), min(n_kept, n_candidates)))
    return sizes


def by_round(kinds: Sequence[str], n_rounds: int, n_kept: int) -> list[int]:
    """How many candidates run in each round, of all kinds together; `kinds`: of each candidate."""
    each = [shares(kinds.count(kind), n_rounds, n_kept) for kind in dict.fromkeys(kinds)]
    return [sum(counts) for counts in zip(*each, strict=True)]


def first_and_of_kinds(kinds: Sequence[str], n: int) -> list[int]:
    """Of ranked candidates, by their kinds: the places of the first `n`, then of the first of each kind that is not among them."""
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    return [*range(min(n, len(kinds))), *(place for place in firsts if place >= n)]


def scores(verdicts_QR: np.ndarray, margins_QR: np.ndarray) -> np.ndarray:
    """How well each route answers each question, from 0 to 1 (Q, R): half for the verdict, half for how clearly the answer is right.

    The second half is the logistic function of the margin, in units of how large the base's margins are (their root mean square). Where the
    base has no margin, as for generated answers, the verdict is all; a route without one where the base has one has broken logits: 0.
    """
    verdicts_QR = np.asarray(verdicts_QR, dtype=float)
    margins_QR = np.asarray(margins_QR, dtype=float)
    has_margin_Q = np.isfinite(margins_QR[:, 0])
    if not has_margin_Q.any():
        return verdicts_QR
    scale = float(np.sqrt((margins_QR[has_margin_Q, 0] ** 2).mean())) or 1.0
    units_QR = np.clip(margins_QR / scale, -50, 50)
    clear_QR = np.where(np.isfinite(units_QR), 1 / (1 + np.exp(-np.nan_to_num(units_QR))), 0.0)
    return np.where(has_margin_Q[:, None], (verdicts_QR + clear_QR) / 2, verdicts_QR)


def race(kinds: Sequence[str], sizes: Sequence[int], n_kept: int, ask: Ask) -> Standing:
    """Race candidates, by their `kinds`, through the rounds of a `schedule`; equal candidates go on in an order drawn once.

    `n_kept` candidates of each kind reach the last round at least, where there are so many; `ask` answers the new questions of each round.
    """
    n_C = np.zeros(len(kinds), dtype=int)
    score_C, accuracy_C = np.full(len(kinds), math.nan), np.full(len(kinds), math.nan)
    alive = list(range(len(kinds)))
    columns: dict[str, np.ndarray] = {}  # of the candidates alive: verdicts and margins of all questions so far
    start = 0
    for number, stop in enumerate(sizes, 1):
        new = dict(zip(("verdicts", "margins"), ask(alive, start, stop), strict=True))
        columns = {name: np.concatenate([columns[name], part]) if columns else part for name, part in new.items()}
        found_QR = scores(columns["verdicts"], columns["margins"])
        n_C[alive] = len(found_QR)
        score_C[alive] = (found_QR[:, 1:] - found_QR[:, :1]).mean(0)
        verdicts_QR = columns["verdicts"].astype(float)
        accuracy_C[alive] = (verdicts_QR[:, 1:] - verdicts_QR[:, :1]).mean(0)
        if number < len(sizes):
            kept = _better_half(alive, kinds, score_C, number, n_kept)
            places = [0, *(1 + alive.index(candidate) for candidate in kept)]
            columns = {name: values[:, places] for name, values in columns.items()}
            alive = kept
        start = stop
    return Standing(n_C, score_C, accuracy_C, alive, columns["verdicts"], columns["margins"])


def _better_half(alive: Sequence[int], kinds: Sequence[str], score_C: np.ndarray, number: int, n_kept: int) -> list[int]:
    """The candidates that go on after round `number`, in the order of all. Many are equal where answers have no margins."""
    kept: list[int] = []
    for kind in dict.fromkeys(kinds):
        ranked = sorted((one for one in alive if kinds[one] == kind), key=lambda one: (-score_C[one], digest(str(one))))
        total = sum(other == kind for other in kinds)
        kept += ranked[: shares(total, number + 1, n_kept)[number]]
    return sorted(kept)
