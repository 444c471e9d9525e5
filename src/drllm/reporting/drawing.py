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
from drllm.reporting.chart import FRAME, USAGE, Axis, Bars, Boxes, Chart, Curve, Front, Heat, Level, Mark, Spot, Squares
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
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.5, chart.height), layout="constrained")
    panels = figure.subplots(len(chart.ys), 1, sharex=True, squeeze=False)[:, 0]
    for mark in chart.marks:
        DRAWN[type(mark)](panels[mark.panel], mark, chart)
    for axes, y in zip(panels, chart.ys, strict=True):
        if y.is_log:
            axes.set_yscale("log")
        if y.limits:
            axes.set_ylim(*y.limits)
        if y.is_whole:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(y.label)
    _scale_x(panels[-1], chart.x, has_margin=bool(chart.of(Curve)))
    _entitle(figure, panels, chart)
    return figure


def _scale_x(axes: Any, x: Axis, has_margin: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if x.names:
        axes.set_xticks(range(len(x.names)), x.names)
        if has_margin:
            axes.margins(x=0.15)
    if x.is_whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if x.limits:
        axes.set_xlim(*x.limits)
    axes.set_xlabel(x.label)


def _entitle(figure: Any, panels: Any, chart: Chart) -> None:
    """The title, in lines that fit the picture, and the legend; of several panels with one legend the title is the figure's too."""
    if len(panels) > 1 and chart.legend:
        figure.suptitle(chart.title)
    else:
        panels[0].set_title(textwrap.fill(chart.title, 72), fontsize="medium")
    if chart.legend == 0:
        panels[0].legend()
    elif chart.legend:  # outside: a box among the points would hide intervals
        named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=chart.legend)


def _spot(axes: Any, spot: Spot, chart: Chart) -> None:
    from matplotlib.transforms import ScaledTranslation

    place = axes.transData + ScaledTranslation(spot.aside, 0, axes.figure.dpi_scale_trans)
    look = {"fmt": spot.marker, "color": spot.colour, "capsize": 3, "transform": place}
    axes.errorbar(spot.x, spot.y, yerr=[[spot.low], [spot.high]], label=spot.name, **look)
    axes.update_datalim([(spot.x, spot.y - spot.low), (spot.x, spot.y + spot.high)])  # what is drawn aside does not count by itself
    axes.autoscale_view()


def _curve(axes: Any, curve: Curve, chart: Chart) -> None:
    places, style = curve.xs, "-"
    if chart.x.names:
        aside, style = 0.06 * _rank(curve, chart), ""
        places = [chart.x.names.index(x) + aside for x in curve.xs]
    look = {"fmt": f"{curve.marker}{style}", "color": curve.colour, "markersize": 4}
    axes.errorbar(places, curve.ys, yerr=curve.error, label=curve.name, capsize=3 if curve.error else 0, **look)


def _rank(mark: Mark, chart: Chart) -> float:
    """Its place among the marks of its kind, which stand side by side; 0 is the middle."""
    beside = [other is mark for other in chart.of(type(mark))]
    return beside.index(True) - (len(beside) - 1) / 2


def _front(axes: Any, front: Front, chart: Chart) -> None:
    axes.step(front.xs, front.ys, where="post", color="grey", linewidth=1, linestyle="--", label=front.name, zorder=0)


def _level(axes: Any, level: Level, chart: Chart) -> None:
    axes.axhline(level.y, color="grey", linewidth=0.8, linestyle=":", zorder=0)


def _bars(axes: Any, bars: Bars, chart: Chart) -> None:
    places = [x + _rank(bars, chart) * bars.width for x in bars.xs]
    axes.bar(places, bars.heights, bars.width, label=bars.name, color=bars.colour, hatch=bars.hatch)


def _heat(axes: Any, heat: Heat, chart: Chart) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shown = axes.imshow(heat.values, aspect="auto", vmin=0, vmax=2, cmap=LinearSegmentedColormap.from_list("usage", list(USAGE)))
    for row, first, last in heat.loops:
        axes.add_patch(Rectangle((first - 0.45, row - 0.4), last - first + 0.9, 0.8, fill=False, edgecolor=FRAME, linewidth=2))
    axes.set_yticks(range(len(heat.labels)), heat.labels)
    axes.figure.colorbar(shown, ax=axes, label="mean passes a prompt", ticks=[0, 1, 2])


def _squares(axes: Any, squares: Squares, chart: Chart) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    places = zip(squares.xs, squares.ys, squares.sides, strict=True)
    shapes = [Rectangle((x - side / 2, y - side / 2), side, side) for x, y, side in places]
    drawn = PatchCollection(shapes, cmap=LinearSegmentedColormap.from_list("usage", list(USAGE)), edgecolor="0.75", linewidth=0.4)
    drawn.set_array(squares.values)
    drawn.set_clim(-squares.limit, squares.limit)
    axes.add_collection(drawn)
    axes.set_aspect("equal")
    right = max(squares.xs, default=0)
    for row, (words, side) in enumerate(squares.sizes):
        x, y = 0.65 * right, right / 18 * (len(squares.sizes) - row)
        axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, facecolor="0.6", edgecolor="0.75", linewidth=0.4))
        axes.text(x + 1, y, words, verticalalignment="center", fontsize="small")
    axes.figure.colorbar(drawn, ax=axes, label=squares.label, extend="both", shrink=0.8)


def _boxes(axes: Any, boxes: Boxes, chart: Chart) -> None:
    width = 0.8 / len(chart.of(Boxes))
    keys = ("whislo", "q1", "med", "q3", "whishi")
    stats = [dict(zip(keys, values, strict=True)) for values in boxes.quantiles.values()]
    places = [chart.x.names.index(category) + _rank(boxes, chart) * width for category in boxes.quantiles]
    line = {"color": boxes.colour, "linewidth": 2}  # a box without height is its median alone
    drawn = axes.bxp(stats, positions=places, widths=0.8 * width, showfliers=False, patch_artist=True, manage_ticks=False, medianprops=line)
    for box in drawn["boxes"]:
        box.set(facecolor=boxes.colour, alpha=0.6)
    axes.plot([], [], color=boxes.colour, linewidth=6, alpha=0.6, label=boxes.name)


DRAWN: dict[type[Mark], Any] = {Spot: _spot, Curve: _curve, Front: _front, Level: _level, Bars: _bars, Heat: _heat, Boxes: _boxes}
DRAWN |= {Squares: _squares}
