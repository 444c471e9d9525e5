"""How much of each stage fits into a user's minutes, in plain forwards: one forward of one question by the base. No torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from drllm.core.config import RetrofitConfig
from drllm.core.errors import InputError
from drllm.core.progress import say
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import path_manifests
from drllm.runs.stages import Stages
from drllm.scanning.race import schedule
from drllm.scanning.spans import candidates, race_cost, rounds_cost

# Of the time: the rest is for loading, training, clocks and the report.
SCAN, LIST, TUNE, CALIBRATE = 0.2, 0.16, 0.08, 0.35
SHORT_SCAN = 0.4  # of the time, where the smallest takes more than its share
SLOWER = 1.3  # than `plain_ms` says: few questions of many lengths fill steps badly
N_LISTED = 16  # routes that every question answers
SHARED = 0.6  # forwards of one more route or operating point, which shares blocks with the others
ON_TUNE = 4 + 7  # forwards a tune question: both kinds of routers, also dealt out; operating points on half of them. The list has the rest
KNOWN, UNKNOWN = 4, 9  # forwards to compare all on a tune question of the list, and on another
ON_CALIBRATE = 2  # base and policy
ENDING_S = 35.0  # seconds for clocks, the answer and the report, behind the promise
FIRST, N_KEPT = 8, 5  # questions of a scan's first round, candidates of each kind in its last
SCANNED = (128, 64, 32, 16, FIRST)  # questions of its last round that are tried
FEWEST = 12  # questions a task below which a stage teaches nothing
SPLITS = ("fit", "tune", "calibrate")
LISTED = "the best routes on every question"  # the name of a stage


@dataclass(frozen=True)
class Sizes:
    """Questions of each stage, a task at most, but for the scan's, which are all tasks' together."""

    plain_ms: float  # milliseconds of a plain forward here
    scanned: int  # questions of the scan's last round
    max_span: int  # blocks of the longest span of its candidates (0: any)
    listed: int  # fit and tune questions that answer the scan's best routes
    tuned: int  # questions that compare the policies, at least
    calibrated: int  # questions that the promise is tested on, at most
    most_tuned: int = 0  # tune questions that there are


def list_cost(n_routes: int) -> float:
    """Plain forwards of a question along the base's route and so many others."""
    return 1 + SHARED * n_routes


def scan_cost(n_layers: int, max_span: int, n_questions: int, kinds: Sequence[str]) -> float:
    """Plain forwards of a scan's race over spans of at most `max_span` blocks (0: any)."""
    return race_cost(schedule(n_questions, FIRST), _rounds_cost(n_layers, max_span, tuple(kinds)))


@functools.cache
def _rounds_cost(n_layers: int, max_span: int, kinds: tuple[str, ...]) -> list[float]:
    """What a question costs in each round of the longest race."""
    return rounds_cost(n_layers, candidates(n_layers, kinds, 0.5, max_span), len(schedule(max(SCANNED), FIRST)), N_KEPT)


def check_questions(available: Mapping[str, Mapping[str, int]]) -> None:
    """`InputError` for a task that lacks a split, or has too few questions to scan with."""
    for task, of in available.items():
        have = ", ".join(f"{split} {of[split]}" for split in SPLITS)
        if empty := [split for split in SPLITS if not of[split]]:
            raise InputError(f"{task} has no {empty[0]} question ({have}): give more questions, or data with train and validation parts")
    fewest = min(of["fit"] for of in available.values())
    if fewest * len(available) < FIRST:
        raise InputError(
            f"{fewest} questions to learn from are too few, a scan needs {-(-FIRST // len(available))}: bring 100 or more in all"
        )


def sizes_of(n_layers: int, plain_ms: float, asked: RetrofitConfig, available: Mapping[str, Mapping[str, int]]) -> Sizes:
    """What fits into the time.

    Args:
        available: by task, the questions of each split.

    Raises:
        InputError: a split without questions, or not even the smallest scan fits; the line says what would.
    """
    check_questions(available)
    forwards, n_tasks = 60_000 * asked.minutes / plain_ms, len(available)
    each = min(of["fit"] for of in available.values())
    needed = 1 if asked.kept > 1 else math.ceil((1 - asked.kept) * n_layers)  # blocks of a span that keep to the budget
    # Rather short spans than a race of one round, which names the luckiest.
    spans = [(0, 32), (8, 32), (4, 16), (2, 16), (1, 16), (1, FIRST)]
    choices = [
        (span, n)
        for span, fewest in (*spans, (max(1, needed), FIRST), (0, FIRST))
        for n in SCANNED
        if n >= fewest and -(-n // n_tasks) <= each and (span == 0 or span >= needed)
    ]
    costs = {(span, n): scan_cost(n_layers, span, n, asked.kinds) for span, n in choices}
    fitting = [choice for choice, cost in costs.items() if cost <= SCAN * forwards]
    fitting = fitting or [choice for choice, cost in costs.items() if cost <= SHORT_SCAN * forwards][-1:]
    if not fitting:
        minutes = math.ceil(10 * min(costs.values()) * plain_ms / 60_000 / SHORT_SCAN) / 10
        found = f"--minutes {asked.minutes:g} is too short here, where the base takes {plain_ms / 1000:.2g} s a question"
        raise InputError(f"{found}: give at least {minutes:g}, shorter questions, or a smaller model")
    (span, scanned), most = fitting[0], {split: max(of[split] for of in available.values()) for split in SPLITS}

    def share(part: float, cost: float, *splits: str) -> int:
        return min(max(most[split] for split in splits), max(FEWEST, int(part * forwards / (n_tasks * SLOWER * cost))))

    listed = share(LIST, 2 * list_cost(N_LISTED), "fit", "tune")
    return Sizes(
        plain_ms=plain_ms,
        scanned=scanned,
        max_span=span,
        listed=listed,
        tuned=min(listed, share(TUNE, ON_TUNE, "tune")),
        calibrated=share(CALIBRATE, ON_CALIBRATE, "calibrate"),
        most_tuned=most["tune"],
    )


@dataclass
class TimeLeft:
    """How much the rest of a user's minutes bears, as fast as the list was answered: tune and calibrate questions."""

    stages: Stages  # those that are done, with what they took
    minutes: float
    sizes: Sizes
    run: RunFolder  # with the list
    n_routes: int  # of the list, beside the base
    n_tasks: int

    @cached_property
    def pace(self) -> float:
        """Seconds of a plain forward, by what it took to answer the list."""
        n_questions = sum(len(manifest.ids) for manifest in path_manifests(self.run.root).values())
        return self.stages.took[LISTED] / (n_questions * list_cost(self.n_routes))

    @property
    def seconds(self) -> float:
        """Until all of it is spent."""
        return 60 * self.minutes - self.stages.seconds

    @property
    def before_the_promise(self) -> float:
        """Without the promise's share."""
        return self.seconds - CALIBRATE * 60 * self.minutes

    def tune_questions(self) -> int:
        """Of a task, to compare the policies on, `sizes.tuned` at least: the list has answered its own for most, others cost a forward."""
        forwards, sizes = self.before_the_promise / (self.pace * self.n_tasks), self.sizes
        more = max(0, int((forwards - KNOWN * sizes.listed) / UNKNOWN))
        return self._said(max(sizes.tuned, min(sizes.most_tuned, min(sizes.listed, int(forwards / KNOWN)) + more)), "tune")

    def calibrate_questions(self, decides: bool) -> int:
        """Of a task, to test the promise on: `sizes.calibrated` at most. Base and policy answer them; one that decides by prompt reads them
        first, and single routes fill steps worse than the list did.
        """
        fitting = (self.seconds - ENDING_S) / (self.pace * SLOWER * self.n_tasks * (ON_CALIBRATE + decides))
        return self._said(min(self.sizes.calibrated, max(FEWEST, int(fitting))), "calibrate")

    def _said(self, found: int, split: str) -> int:
        say(f"{found} {split} questions a task, {max(0, self.seconds):.0f} seconds are left")
        return found
