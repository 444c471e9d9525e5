"""What becomes of a claim: paired differences, each task weighing the same, and a sentence of what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from drllm.core.route import Route
from drllm.core.text import p_value, points
from drllm.runs.answers import read_answers
from drllm.runs.summary import Summary, SummaryRow, mean_over_tasks
from drllm.stats.paired import decided, holm
from drllm_research.paper.published import PAPER
from drllm_research.paper.stages import ROUTERS, Bench, Evaluate

FEW = 50  # questions of a task
WORDS = {True: "holds", False: "does not hold", None: "neither confirmed nor refuted"}
OURS = "drllm asks"
CORRECT, STRICT, LENIENT = "correct", "strict", "lenient"  # columns of verdicts: what the reward says, and each reader


def answers(bench: Bench, stage: Evaluate, method: str, task: str) -> list[dict[str, Any]]:
    summary = bench.run(stage)
    return read_answers(bench.setup.run.answers(summary.split))[method, task].rows


def pooled(summary: Summary, method: str) -> SummaryRow:
    """A method's row over all tasks."""
    return next(row for row in summary.pooled if row.method == method)


def routes_of(bench: Bench, stage: Evaluate, task: str) -> list[Route]:
    """The routers' route on every question of a task."""
    return [Route.parse(row["route"]) for row in answers(bench, stage, ROUTERS, task)]


@dataclass(frozen=True)
class Difference:
    """A method less another on the same questions, each task weighing the same: mean and paired 95 % interval as fractions, and p."""

    method: str
    other: str
    mean: float
    low: float
    high: float
    p: float
    # Without the tasks of fewer than `FEW` questions, which weigh as much and say less; None: no such task, or fewer than two others.
    rest: Difference | None = None
    few: str = ""  # those tasks with their numbers of questions, in words

    def __str__(self) -> str:
        beside = "" if self.rest is None else f"; without {self.few} {self.rest.figures}"
        return f"{self.method} less {self.other}: {self.figures}{beside}"

    @property
    def figures(self) -> str:
        """Mean, interval and p; the unit stands before the interval."""
        return f"{points(self.mean)} points ({points(self.low)} to {points(self.high)}), p {p_value(self.p)}"

    @property
    def is_gain(self) -> bool | None:
        """Above 0, below, or None: neither for sure."""
        return decided(self.low, self.high, self.p)


def mean_of(bench: Bench, stage: Evaluate, method: str, tasks: Sequence[str], column: str) -> float:
    """The mean of a column of an evaluation's verdicts, each task weighing the same."""
    found = [[row[column] for row in answers(bench, stage, method, task)] for task in tasks]
    return sum(sum(values) / len(values) for values in found) / len(found)


def verdicts_of(bench: Bench, stage: Evaluate, method: str, tasks: Sequence[str], verdict: str = CORRECT) -> dict[str, list[float]]:
    """task -> what a column of verdicts says of each question, in the order of their ids."""
    return {task: [row[verdict] for row in sorted(answers(bench, stage, method, task), key=lambda row: row["id"])] for task in tasks}


def against(bench: Bench, stage: Evaluate, method: str, other: str, tasks: Sequence[str] = (), verdict: str = CORRECT) -> Difference:
    """A method less another over tasks of an evaluation (none: all of them), whose questions are drawn anew task by task.

    The paper averages over benchmarks, and pooled questions would let the task with the most of them decide. `verdict`: whose is compared.
    """
    ours, theirs = (verdicts_of(bench, stage, name, tasks or stage.tasks, verdict) for name in (method, other))
    return compared(method, other, ours, theirs)


def compared(method: str, other: str, ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> Difference:
    """A method less another, from what each question of each task scored under either."""
    found = Difference(method, other, *mean_over_tasks(list(ours.values()), list(theirs.values())))
    many, few = without_few({task: len(verdicts) for task, verdicts in ours.items()})
    if not many:
        return found
    rest = Difference(method, other, *mean_over_tasks([ours[task] for task in many], [theirs[task] for task in many]))
    return replace(found, rest=rest, few=few)


def without_few(sizes: Mapping[str, int]) -> tuple[list[str], str]:
    """The tasks of at least `FEW` questions, and the others in words; nothing where there are no others, or fewer than two are left."""
    many = [task for task, n in sizes.items() if n >= FEW]
    if len(many) == len(sizes) or len(many) < 2:
        return [], ""
    return many, " and ".join(f"{task} ({n})" for task, n in sizes.items() if n < FEW)


def above_all(found: Sequence[Difference]) -> bool | None:
    """Whether something is above every other it was compared with: False where one is above it, by Holm's adjusted p-values."""
    adjusted = holm([difference.p for difference in found])
    judged = [decided(difference.low, difference.high, p) for difference, p in zip(found, adjusted, strict=True)]
    return jointly(judged)


def weighed(text: str, found: Sequence[Difference], figures: str = "", by: str = PAPER) -> Claim:
    """The claim that the first of each pair is above the second; of several pairs, above all.

    Where tasks of few questions decide it, so that without them the verdict is another, that is said.

    Args:
        figures: what says so; default: the differences.
    """
    holds, figures = above_all(found), figures or "; ".join(map(str, found))
    rest = [difference.rest for difference in found if difference.rest is not None]
    if len(rest) == len(found) and (without := above_all(rest)) is not holds:
        figures += otherwise(found[0].few, without)
        figures += "" if len(rest) == 1 else f" ({'; '.join(f'less {one.other} {one.figures}' for one in rest)})"
    return Claim(text, holds, figures, by)


def otherwise(few: str, holds: bool | None) -> str:
    """The verdict without some tasks, as the end of a claim's figures."""
    return f". Without {few} this {'is ' if holds is None else ''}{WORDS[holds]}"


def jointly(judged: Sequence[bool | None]) -> bool | None:
    """Of several verdicts: False where one is, True where all are."""
    return False if False in judged else None if None in judged else True


class Claim(str):
    """A sentence that says what became of a claim; the page gathers them.

    Args:
        text: the claim.
        holds: None where the interval leaves it open.
        figures: what says so, as a sentence without its stop.
        by: whose claim: the paper's, or a question of ours to it.
    """

    def __new__(cls, text: str, holds: bool | None, figures: str = "", by: str = PAPER) -> Claim:
        said = f"{by}: {text}. This {'is ' if holds is None else ''}{WORDS[holds]} here."
        return super().__new__(cls, f"{said} {figures}." if figures else said)

    def __init__(self, text: str, holds: bool | None, figures: str = "", by: str = PAPER):
        self.text, self.holds, self.figures, self.by = text, holds, figures, by
