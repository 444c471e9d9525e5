"""The table of an evaluation, on a terminal and in Markdown, one honest sentence about each policy, and the one that opens a report."""

import math

from drllm.core.text import p_value, percent, points, table_text, with_interval
from drllm.reporting.parts import Bullets, Part, Table
from drllm.runs.load import Run
from drllm.runs.names import owner_of
from drllm.runs.summary import Summary, SummaryRow, mean_over_tasks

HEADER = ("method", "accuracy, %", "n", "vs base, points", "better / worse", "McNemar p", "mean passes")


def cells(row: SummaryRow, reference: str) -> tuple[str, ...]:
    """The cells of one row, in the order of `HEADER`; the reference method has no difference to itself."""
    name = row.method
    accuracy = f"{percent(row.accuracy)} ({percent(row.wilson_low)} to {percent(row.wilson_high)})"
    passes = f"{row.mean_passes:.2f} of {row.n_layers}"
    if row.method == reference or not _known(row.difference):
        return name, accuracy, str(row.n), "", "", "", passes
    return name, accuracy, str(row.n), row.change, f"{row.better} / {row.worse}", p_value(row.mcnemar_p), passes


def by_task(summary: Summary, caption: str = "") -> Table:
    """The table of every row of a split, for a page."""
    return Table(("task", *HEADER), tuple((row.task, *cells(row, summary.reference)) for row in summary.rows), caption)


def render(summary: Summary) -> str:
    title = f"{summary.model} on {', '.join(summary.tasks)}, {summary.split} split; in brackets: 95 % intervals"
    text = table_text(HEADER, [cells(row, summary.reference) for row in summary.pooled], title)
    return "\n".join([text, *few_changed(summary)])


def few_changed(summary: Summary) -> list[str]:
    """A warning where an interval leaves 0 out and McNemar's test does not: too few verdicts changed to say anything."""
    found = [
        row for row in summary.pooled if _known(row.difference) and row.difference_low * row.difference_high > 0 and row.is_gain is None
    ]
    names = ", ".join(row.method for row in found)
    return [f"no sure difference though the interval leaves 0 out (few verdicts changed, McNemar p 0.05 or more): {names}"] if found else []


def verdict(summary: Summary, method: str) -> str:
    """Whether a method helps, in one sentence: the paired difference to the base, on how many questions, and what it runs.

    A gain or a loss is claimed only where the interval and McNemar's test agree: with few changed verdicts the bootstrap alone is too
    narrow.
    """
    row = next((row for row in summary.pooled if row.method == method), None)
    if row is None:
        return f"{method}: not evaluated"
    depth = f"it runs {row.mean_passes:.1f} block passes a prompt, the base {row.n_layers}"
    if row.identity_share is not None and _known(row.identity_share):  # gates have none: they decide no route
        depth += f", and takes another route than the base on {percent(1 - row.identity_share)} % of the prompts"
    if not row.better and not row.worse:
        return f"{method}: no gain: it changes no verdict on {row.n} questions; {depth}"
    word = {True: "a gain", False: "a loss", None: "no detectable gain"}[row.is_gain]
    interval = f"95 % interval {points(row.difference_low)} to {points(row.difference_high)}, McNemar p {p_value(row.mcnemar_p)}"
    return f"{method}: {word}: {points(row.difference)} points, {interval}, {row.n} questions; {depth}"


def _known(value: float) -> bool:
    return not math.isnan(value)


def by_size(run: Run) -> dict[str, Summary]:
    """The summaries, those of most questions first: they tell most."""
    return dict(sorted(run.summaries.items(), key=lambda item: -max((row.n for row in item[1].rows), default=0)))


def headline(run: Run) -> list[Part]:
    """The verdict on the policy that was compared on most questions in domain; none of the reference, nor of blind baselines."""
    found = [(split, summary, row) for split, summary in by_size(run).items() for row in summary.pooled]
    judged = [one for one in found if one[2].method != one[1].reference and not owner_of(one[2].method)]
    if not judged:
        return []
    split, summary, row = max(judged, key=lambda one: _tells(run, *one[1:]))
    tasks = summary.tasks[0] if len(summary.tasks) == 1 else f"{len(summary.tasks)} tasks"
    return [Bullets((f"{verdict(summary, row.method)} ({tasks}, {split} split{_evenly(run, split, summary, row)})",))]


def _evenly(run: Run, split: str, summary: Summary, row: SummaryRow) -> str:
    """The mean over tasks, where they are of different sizes: of pooled questions the task with the most of them decides."""
    files = [[run.questions.get((split, method, task)) for task in summary.tasks] for method in (row.method, summary.reference)]
    if not all(map(all, files)):
        return ""
    ours, base = ([[answer["correct"] for answer in part or ()] for part in parts] for parts in files)
    if len({len(part) for part in base}) == 1:
        return ""  # the same as of the questions pooled
    mean, low, high, p = mean_over_tasks(ours, base)
    return f"; with each task weighing the same {with_interval(mean, low, high)}, p {p_value(p)}"


def _tells(run: Run, summary: Summary, row: SummaryRow) -> tuple[bool, int, bool, bool]:
    """First those in domain, on many questions, of routers, and of what looks at prompts."""
    in_domain = not run.manifests or set(summary.tasks) <= set(run.manifests)
    return in_domain, row.n, row.method == "routers", row.distinct_routes != 1
