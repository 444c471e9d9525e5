"""Charts as PNG files, by matplotlib, and their numbers as CSV files. matplotlib is imported when one is drawn."""

import csv
import io
import textwrap
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.core.files import write_bytes, write_text
from drllm.reporting.parts import Chart, Part, flat

DPI = 120
NEEDED = ("matplotlib", "jinja2")
# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the methods apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# One more than there are colours: the two together repeat after 56, not after 7.
MARKERS = "osD^vPX*"
# Of mean passes 0 (skipped), 1 (the base) and 2 (repeated): blue, white, orange differ in lightness and for colour-blind readers.
USAGE = ((0.0, "#0072B2"), (0.5, "#F7F7F7"), (1.0, "#D55E00"))


def number(value: float) -> str:
    """A value as it stands in a CSV file."""
    return f"{value:.6g}"


def colour(index: int) -> str:
    """Of the `index`-th method, task or curve."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def need_extras() -> None:
    """Refuse early, before anything is written, when a report cannot be made: `InputError`."""
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError:
            raise InputError(f"a report needs {name}, which is not installed: `pip install '.[demo]'` in a clone") from None


def write_charts(parts: Iterable[Part], folder: Path) -> None:
    """Write the PNG and the CSV file of every chart among the parts."""
    import matplotlib.style

    folder.mkdir(parents=True, exist_ok=True)
    for chart in (part for part in flat(parts) if isinstance(part, Chart)):
        write_text(folder / f"{chart.name}.csv", to_csv(chart))
        with matplotlib.style.context("default"):  # a user's own matplotlibrc must not change the pictures
            buffer = io.BytesIO()
            # The default metadata names the version of matplotlib; without it, equal numbers give equal bytes.
            draw(chart).savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        write_bytes(folder / f"{chart.name}.png", buffer.getvalue())


def to_csv(chart: Chart) -> str:
    """The numbers of a chart."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows((chart.header, *chart.rows))
    return buffer.getvalue()


def draw(chart: Chart) -> Any:
    """A chart as matplotlib figure, its panels one above the other. Without pyplot: no global state, no window, no backend to choose."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, chart.height), layout="constrained")
    panels = list(figure.subplots(chart.panels, 1, sharex=True, squeeze=False)[:, 0])
    chart.draw(panels)
    # Of several panels with one legend the title is the figure's too.
    if len(panels) > 1 and chart.legend:
        figure.suptitle(chart.title)
    else:
        panels[0].set_title(textwrap.fill(chart.title, 72), fontsize="medium")
    if chart.legend == 0:
        panels[0].legend()
    elif chart.legend:  # outside: a box among the points would hide intervals
        named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=chart.legend)
    return figure


def spot(axes: Any, name: str, index: int, x: float, y: float, low: float, high: float, aside: float = 0) -> None:
    """A value with its interval, which reaches `low` below and `high` above; `aside`: inches to the right, for values of equal x."""
    from matplotlib.transforms import ScaledTranslation

    place = axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
    axes.errorbar(x, y, yerr=[[low], [high]], label=name, fmt=marker(index), color=colour(index), capsize=3, transform=place)
    axes.update_datalim([(x, y - low), (x, y + high)])  # what is drawn aside does not count by itself
    axes.autoscale_view()


def level(axes: Any, y: float) -> None:
    """A dotted line from side to side."""
    axes.axhline(y, color="grey", linewidth=0.8, linestyle=":", zorder=0)


def whole(axis: Any) -> None:
    """An axis that counts something: no ticks between."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def usage_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("usage", list(USAGE))
