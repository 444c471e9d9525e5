"""Figures as people read them, and tables for a terminal."""

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDTH = 118


def cost_lines(stages: Sequence[tuple[str, float, str]], plain_ms: float) -> list[str]:
    """What would run, as a table: (name, plain forwards, command or nothing) of each stage, with hours or minutes, and their sum."""
    total = sum(forwards for _, forwards, _ in stages)
    unit, each = ("hours", plain_ms / 3.6e6) if total * plain_ms >= 3.6e6 else ("minutes", plain_ms / 6e4)
    lines = [f"{'plain forwards':>16} {unit:>9}  stage"]
    for name, forwards, command in stages:
        lines.append(f"{forwards:16,.0f} {forwards * each:9.2f}  {name}")
        if command:
            lines.append(f"{'':28}{command}")
    return [*lines, f"{total:16,.0f} {total * each:9.2f}  in all, at {plain_ms:.4g} ms a plain forward of one question"]


def type_name(dtype: object) -> str:
    """A float type of torch as people write it, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> str:
    """A table for a terminal, without colours, so that it can be piped and compared; wide enough that no number is truncated."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in header:
        table.add_column(name, justify="left" if name in ("method", "task", "check", "span") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # a plain string would be read as markup
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None, legacy_windows=False)
    console.width = max(WIDTH, Measurement.get(console, console.options.update(width=10_000), table).maximum)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def with_interval(mean: float, low: float, high: float) -> str:
    return f"{points(mean)} ({points(low)} to {points(high)})"


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points, signed; never "-0.0"."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def of_the_seconds(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2f} of the base's seconds ({low:.2f} to {high:.2f})"


def points_lost(epsilon: float) -> str:
    """An accuracy that may be lost, a fraction, in words: "1 point", "2 points"."""
    return f"{100 * epsilon:g} point{'s' * (epsilon != 0.01)}"


def p_value(p: float) -> str:
    """A p-value to three decimals; never 0."""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
