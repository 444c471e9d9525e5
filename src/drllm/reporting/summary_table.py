"""The table of an evaluation, on a terminal and in Markdown, and one honest sentence about each policy."""

import math

from drllm.core.text import p_value, percent, points, table_text
from drllm.reporting import parts
from drllm.runs.summary import Summary, SummaryRow

HEADER = ("method", "accuracy, %", "n", "vs base, points", "better / worse", "McNemar p", "mean passes")


def cells(row: SummaryRow, reference: str) -> tuple[str, ...]:
    """The cells of one row, in the order of `HEADER`; the reference method has no difference to itself."""
    name = row.method
    accuracy = f"{percent(row.accuracy)} ({percent(row.wilson_low)} to {percent(row.wilson_high)})"
    passes = f"{row.mean_passes:.2f} of {row.n_layers}"
    if row.method == reference or not _known(row.difference):
        return name, accuracy, str(row.n), "", "", "", passes
    return name, accuracy, str(row.n), row.change, f"{row.better} / {row.worse}", p_value(row.mcnemar_p), passes


def by_task(summary: Summary, caption: str = "") -> parts.Table:
    """The table of every row of a split, for a page."""
    return parts.Table(("task", *HEADER), tuple((row.task, *cells(row, summary.reference)) for row in summary.rows), caption)


def render(summary: Summary) -> str:
    """The table of one split for a terminal."""
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
