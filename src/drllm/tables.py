"""The table of an evaluation, on a terminal and in Markdown, and one honest sentence about each policy."""

from __future__ import annotations

import io
import math
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

HEADER = ("method", "accuracy, %", "n", "vs base, points", "better / worse", "McNemar p", "mean passes", "seconds")
WIDTH = 118
SIGNIFICANT = 0.05
LABELS = {"oracle": "oracle (told)"}  # an upper bound, never to be read as a policy
POOLED = "all"  # the name under which a summary pools its tasks


def pooled_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a method: over all tasks, or of the only task."""
    pooled = [row for row in summary["rows"] if row["task"] == POOLED]
    return pooled or summary["rows"]


def cells(row: dict[str, Any], reference: str) -> tuple[str, ...]:
    """The cells of one row, in the order of `HEADER`; the reference method has no difference to itself."""
    name = display_name(row["method"])
    accuracy = f"{percent(row['accuracy'])} ({percent(row['wilson_low'])} to {percent(row['wilson_high'])})"
    passes = f"{row['mean_passes']:.2f} of {row['n_layers']}"
    seconds = f"{row['seconds']:.1f}" if _known(row.get("seconds")) else ""
    if row["method"] == reference or not _known(row.get("difference")):
        return name, accuracy, str(row["n"]), "", "", "", passes, seconds
    return (
        name,
        accuracy,
        str(row["n"]),
        with_interval(row["difference"], row["difference_low"], row["difference_high"]),
        f"{row['better']} / {row['worse']}",
        p_value(row["mcnemar_p"]),
        passes,
        seconds,
    )


def display_name(method: str) -> str:
    """What a table calls a method."""
    return LABELS.get(method, method)


def render(summary: dict[str, Any]) -> str:
    """The table of one split for a terminal."""
    title = f"{summary['model']} on {', '.join(summary['tasks'])}, {summary['split']} split; in brackets: 95 % intervals"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in HEADER:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in pooled_rows(summary):
        table.add_row(*cells(row, summary["reference"]))
    return as_text(table)


def as_text(table: Table) -> str:
    """A table for a terminal, without colours, so that it can be piped and compared; as wide as it must be to cut no figure."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None, legacy_windows=False)
    console.width = max(WIDTH, Measurement.get(console, console.options.update(width=10_000), table).maximum)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def markdown(summary: dict[str, Any]) -> str:
    """The same table in Markdown, with a row for each task."""
    header = ("task", *HEADER)
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join((row["task"], *cells(row, summary["reference"]))) for row in summary["rows"]]
    return "\n".join(f"| {line} |" for line in lines)


def verdict(summary: dict[str, Any], method: str) -> str:
    """Whether a method helps, in one sentence: the paired difference to the base, on how many questions, and what it runs.

    A gain or a loss is claimed only where the interval and McNemar's test agree: with few changed verdicts the bootstrap alone is too
    narrow.
    """
    row = next((row for row in pooled_rows(summary) if row["method"] == method), None)
    if row is None:
        return f"{method}: not evaluated"
    if method == "oracle":
        return f"oracle: an upper bound, told every answer: {points(row['difference'])} points with its routes, for those who know when"
    depth = f"it runs {row['mean_passes']:.1f} block passes a prompt, the base {row['n_layers']}"
    if _known(row.get("identity_share")):  # gates have none: they decide no route
        depth += f", and leaves the base's route on {percent(1 - row['identity_share'])} % of the prompts"
    if not row["better"] and not row["worse"]:
        return f"{method}: no gain: it changes no verdict on {row['n']} questions; {depth}"
    gains = decided(row["difference_low"], row["difference_high"], row["mcnemar_p"])
    word = {True: "a gain", False: "a loss", None: "no detectable gain"}[gains]
    interval = f"95 % interval {points(row['difference_low'])} to {points(row['difference_high'])}, McNemar p {p_value(row['mcnemar_p'])}"
    return f"{method}: {word}: {points(row['difference'])} points, {interval}, {row['n']} questions; {depth}"


def decided(low: float, high: float, p: float = 0.0) -> bool | None:
    """Whether a difference is above 0 (True) or below it (False) by its interval and, where it is given, McNemar's p; None: open."""
    if p >= SIGNIFICANT:
        return None
    return True if low > 0 else False if high < 0 else None


def with_interval(mean: float, low: float, high: float) -> str:
    """A difference of accuracies with its interval, all three in points."""
    return f"{points(mean)} ({points(low)} to {points(high)})"


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points, signed; never "-0.0"."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def p_value(p: float) -> str:
    """A p-value to three decimals; never 0."""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def percent(fraction: float) -> str:
    """A fraction in percent."""
    return f"{100 * fraction:.1f}"


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(value)
