"""How every picture is drawn: a matplotlib figure that becomes a PNG, its numbers in a CSV file, and a Plotly figure beside them."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.core.files import write_bytes, write_text
from drllm.reporting.parts import Chart
from drllm.reporting.plots import COLOURS

MARKERS = "osD^vPX*"  # as plots.SYMBOLS
DPI = 120


def need_matplotlib() -> None:
    """Refuse early, before anything is written, when pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("the report's pictures need matplotlib, which is not installed: `pip install '.[demo]'` in a clone") from None


def whole_ticks(axes: Any) -> None:
    """Blocks and epochs are counted: no ticks between them."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def colour(index: int) -> str:
    """Of the `index`-th method, task or curve."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """As `colour`, for readers without colours; one more than there are colours, so that pairs repeat after 56."""
    return MARKERS[index % len(MARKERS)]


def entitle(axes: Any, title: str) -> None:
    """A title over a pair of axes, in lines that fit the picture."""
    axes.set_title(textwrap.fill(title, 72), fontsize="medium")


def number(value: float) -> str:
    """A value as it stands in a CSV file."""
    return f"{value:.6g}"


def new_figure(rows: int = 1, height: float = 4.5) -> tuple[Any, Any]:
    """A figure and its axes, several one above the other; without pyplot: no global state, no window, no backend to choose."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), layout="constrained")
    return figure, figure.subplots(rows, 1, sharex=True)


def write_chart(
    figure: Any,
    folder: Path,
    name: str,
    title: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    plot: dict[str, Any],
) -> Chart:
    """Write the PNG and the CSV of a drawn figure."""
    _write_csv(folder / f"{name}.csv", header, rows)
    _save(figure, folder / f"{name}.png")
    return Chart(name, title, caption, tuple(header), tuple(map(tuple, rows)), plot)


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    # The default metadata names the version of matplotlib; without it, equal numbers give equal bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
