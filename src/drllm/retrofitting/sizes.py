"""How much of each stage fits into the minutes that a user gives, in plain forwards: one forward of one question by the base. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from drllm.core.config import SCAN_KINDS
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.scanning.race import schedule, shares
from drllm.scanning.spans import block_runs, candidates

# Of the time: the rest is for loading, training, clocks and the report.
SCAN, LIST, SEARCH, TUNE, CALIBRATE = 0.3, 0.15, 0.15, 0.12, 0.08
PATH_COST = 0.31  # plain forwards a searched path, docs/benchmarks.md
SIMULATIONS = 25
N_LISTED = 16  # routes that every question answers
N_METHODS = 6  # that tune questions compare
FIRST, N_KEPT = 8, 5  # questions of a scan's first round, candidates of each kind in its last
FEWEST = 12  # questions a task below which a stage teaches nothing


@dataclass(frozen=True)
class Sizes:
    """Questions of each stage, a task, but for the scan's, which are all tasks' together.

    Attributes:
        plain_ms: milliseconds of a plain forward here.
        scanned, max_span: questions of the scan's last round, and the longest span of its candidates (0: any).
        listed: fit and tune questions that answer the scan's best routes.
        searched: fit questions of the paper's search; 0: it does not fit into the time.
        tuned, calibrated: questions that compare the policies, and that the promise is tested on.
    """

    plain_ms: float
    scanned: int
    max_span: int
    listed: int
    searched: int
    tuned: int
    calibrated: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def race_cost(n_layers: int, max_span: int, n_questions: int, kinds: Sequence[str] = SCAN_KINDS) -> float:
    """Plain forwards of a scan's race: every candidate's blocks count as the same share of all."""
    pool = candidates(n_layers, kinds, 0.5, max_span)
    runs = block_runs([Route.full(n_layers), *(one.route for one in pool)]) / n_layers
    each = (runs - 1) / len(pool)
    sizes = schedule(n_questions, FIRST)
    by_kind = [shares(sum(one.kind == kind for one in pool), len(sizes), N_KEPT) for kind in kinds]
    new = [stop - start for start, stop in zip([0, *sizes], sizes, strict=False)]
    return sum(n * (1 + each * sum(counts)) for n, counts in zip(new, zip(*by_kind, strict=True), strict=True))


def sizes_of(
    n_layers: int, plain_ms: float, minutes: float, available: Mapping[str, Mapping[str, int]], kinds: Sequence[str] = SCAN_KINDS
) -> Sizes:
    """What fits into so many minutes.

    Args:
        available: by task, the questions of each split.
        kinds: of the scan's candidates.

    Raises:
        InputError: not even the smallest scan fits; the line says what would.
    """
    forwards, n_tasks = 60_000 * minutes / plain_ms, len(available)
    fit, tune, calibrate = (min(of[split] for of in available.values()) for split in ("fit", "tune", "calibrate"))
    n_fit = sum(of["fit"] for of in available.values())
    choices = [(span, n) for span, fewest in ((0, 32), (8, 32), (4, 16), (2, FIRST), (1, FIRST)) for n in _halves(128) if n >= fewest]
    fitting = [(span, n) for span, n in choices if n <= n_fit and race_cost(n_layers, span, n, kinds) <= SCAN * forwards]
    if not fitting:
        needed = race_cost(n_layers, 1, FIRST, kinds) * plain_ms / 60_000 / SCAN
        raise InputError(
            f"--minutes {minutes:g} is too short here, where the base takes {plain_ms / 1000:.2g} s a question: give at least "
            f"{needed:.0f}, or a smaller model"
            if n_fit >= FIRST
            else f"the tasks have {n_fit} fit questions, a scan needs at least {FIRST}: give more questions"
        )
    span, scanned = fitting[0]

    def share(part: float, cost: float, most: int) -> int:
        return max(0, min(most, int(part * forwards / (n_tasks * cost))))

    listed = share(LIST, 2 * N_LISTED * 0.6, max(fit, tune))
    searched = share(SEARCH, PATH_COST * (1 + 2 * SIMULATIONS) + 4, fit)
    tuned, calibrated = share(TUNE, N_METHODS, tune), share(CALIBRATE, 4, calibrate)
    return Sizes(
        plain_ms, scanned, span, max(FEWEST, listed), searched if searched >= FEWEST else 0, max(FEWEST, tuned), max(FEWEST, calibrated)
    )


def _halves(most: int) -> Sequence[int]:
    """128, 64, ..., 8."""
    found = [most]
    while found[-1] > FIRST:
        found.append(found[-1] // 2)
    return found
