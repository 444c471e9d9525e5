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
from drllm.reporting.chart import USAGE, Chart, colour, marker
from drllm.reporting.parts import Part, flat

DPI = 120
NEEDED = ("matplotlib", "jinja2")


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
    """The colour map of `USAGE`."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("usage", list(USAGE))
