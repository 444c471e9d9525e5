"""The kinds of picture that the paper's figures are made of, each as PNG, CSV and Plotly figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drllm.reporting import plots
from drllm.reporting.drawing import colour, entitle, marker, new_figure, number, whole_ticks, write_chart
from drllm.reporting.parts import Chart


@dataclass(frozen=True)
class Point:
    """A value with its interval, over a number or a name; without an interval, `low` and `high` are None. `label` stands beside it."""

    x: float | str
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


def curves(
    folder: Path,
    name: str,
    title: str,
    caption: str,
    x: str,
    y: str,
    series: Mapping[str, Sequence[Point]],
    whole: bool = False,
    base: float | None = None,
) -> Chart:
    """Curves of points with their intervals; names on the x axis stand in the order given. `whole`: x counts something. `base`: what the
    base has, a dotted line across."""
    figure, axes = new_figure()
    data = []
    names = list(dict.fromkeys(point.x for points in series.values() for point in points))
    is_named = any(isinstance(x, str) for x in names)
    for index, (label, points) in enumerate(series.items()):
        aside = 0.06 * (index - (len(series) - 1) / 2) if is_named else 0.0
        places = [names.index(point.x) + aside if is_named else point.x for point in points]
        ys = [point.y for point in points]
        style = "" if is_named else "-"
        error = _error(points)
        axes.errorbar(
            places, ys, yerr=error, fmt=f"{marker(index)}{style}", color=colour(index), label=label, markersize=4, capsize=3 if error else 0
        )
        xs: list[Any] = [point.x for point in points]
        drawn = plots.line(xs, ys, label, index)
        if is_named:
            drawn["mode"] = "markers"
            drawn["marker"]["size"] = 9
        drawn |= _error_bars(error, index)
        if any(point.label for point in points):
            beside: dict[tuple[Any, float], list[str]] = {}
            for place, point in zip(places, points, strict=True):
                beside.setdefault((place, point.y), []).append(point.label)
            for at, labels in beside.items():
                axes.annotate(", ".join(labels), at, (4, 4), textcoords="offset points", fontsize=7)
            axes.margins(x=0.1)
            drawn["text"] = [point.label for point in points]
            drawn["hovertemplate"] = "%{fullData.name}, %{text}: %{y:.4g} at %{x}<extra></extra>"
        data.append(drawn)
    if is_named:
        axes.set_xticks(range(len(names)), [str(name) for name in names])
        axes.margins(x=0.15)
    elif whole:
        whole_ticks(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    entitle(axes, title)
    if base is not None:
        axes.axhline(base, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=4)
    labelled = any(point.label for points in series.values() for point in points)
    table = [
        (label, point.x if isinstance(point.x, str) else number(point.x), number(point.y), _shown(point.low), _shown(point.high),
         *([point.label] if labelled else []))
        for label, points in series.items()
        for point in points
    ]  # fmt: skip
    header = ("series", "x", "y", "low", "high", *(["label"] if labelled else []))
    layout: dict[str, Any] = {"xaxis": plots.axis(x, type="category" if is_named else "linear")}
    if is_named and len(series) > 1:
        layout |= {"scattermode": "group", "scattergap": 0.7}  # side by side, as in the PNG
    if base is not None:
        layout["shapes"] = [plots.across(base)]
    return write_chart(figure, folder, name, title, caption, header, table, plots.figure(data, x, y, **layout))


def stacked(
    folder: Path,
    name: str,
    title: str,
    caption: str,
    x: str,
    panels: Mapping[str, Mapping[str, Sequence[Point]]],
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> Chart:
    """Two panels by the name of their y axis, one above the other over the same x; a series has one colour in both. `rows`: of the CSV."""
    figure, both = new_figure(rows=2, height=7)
    names = list(dict.fromkeys(label for series in panels.values() for label in series))
    data = []
    for axes, panel, (y, series) in zip(both, ("", "2"), panels.items(), strict=True):
        for label, points in series.items():
            index = names.index(label)
            xs, ys, error = [point.x for point in points], [point.y for point in points], _error(points)
            drawn = plots.line(xs, ys, label, index, panel=panel)  # type: ignore[arg-type]  # numbers
            axes.errorbar(xs, ys, yerr=error, fmt=f"{marker(index)}-", color=colour(index), label=label, markersize=4, capsize=3)
            data.append(drawn | _error_bars(error, index))
        axes.set_ylabel(y)
    both[1].set_xlabel(x)
    entitle(both[0], title)
    both[0].legend()
    plot = plots.stacked(data, x, *(plots.axis(y) for y in panels))
    return write_chart(figure, folder, name, title, caption, header, rows, plot)


def _error(points: Sequence[Point]) -> tuple[list[float], list[float]] | None:
    """How far the intervals reach below and above; None where there are none."""
    if all(point.low is None for point in points):
        return None
    low, high = ([abs((end if end is not None else p.y) - p.y) for p, end in zip(points, ends, strict=True)]
                 for ends in ([p.low for p in points], [p.high for p in points]))  # fmt: skip
    return low, high


def _error_bars(error: tuple[list[float], list[float]] | None, index: int) -> dict[str, Any]:
    """The same for the page, in the series' colour."""
    if error is None:
        return {}
    return {"error_y": {"type": "data", "symmetric": False, "array": error[1], "arrayminus": error[0], "color": colour(index)}}


def histogram(folder: Path, name: str, title: str, caption: str, x: str, series: Mapping[str, Sequence[float]], n_bins: int = 20) -> Chart:
    """Shares of values in [0, 1], a row of bars a series, on a log scale: most of the paper's probabilities stand at the ends."""
    edges = np.linspace(0, 1, n_bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    figure, axes = new_figure()
    data, table = [], []
    width = 0.8 / n_bins / len(series)
    for index, (label, values) in enumerate(series.items()):
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        places = centres + (index - (len(series) - 1) / 2) * width
        axes.bar(places, shares, width, color=colour(index), hatch=plots.hatch(index), label=label)
        table += [(label, number(low), number(high), number(share)) for low, high, share in zip(edges, edges[1:], shares, strict=False)]
        hover = f"%{{fullData.name}}, %{{x:.3f}} +- {1 / (2 * n_bins):.3f}: %{{y:.4f}}"
        data.append(plots.bars([round(float(centre), 4) for centre in centres], shares.tolist(), label, index, hover))
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1.2)
    axes.set_xlabel(x)
    axes.set_ylabel("share of decisions, log scale")
    entitle(axes, title)
    axes.legend()
    scale = plots.axis("share of decisions, log scale", **plots.LOG, range=[-4, 0.1])
    plot = plots.figure(data, x, "", yaxis=scale, barmode="group")
    return write_chart(figure, folder, name, title, caption, ("series", "from", "to", "share"), table, plot)


def boxes(folder: Path, name: str, title: str, caption: str, y: str, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> Chart:
    """Median, quartiles and the 5th and 95th percentile of each series in each category."""
    figure, axes = new_figure()
    data, table = [], []
    categories = list(dict.fromkeys(category for values in groups.values() for category in values))
    width = 0.8 / len(groups)
    for index, (label, by_category) in enumerate(groups.items()):
        quantiles = {category: np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)) for category, values in by_category.items()}
        stats = [dict(zip(("whislo", "q1", "med", "q3", "whishi"), map(float, quantiles[category]), strict=True)) for category in quantiles]
        places = [categories.index(category) + (index - (len(groups) - 1) / 2) * width for category in quantiles]
        line = {"color": colour(index), "linewidth": 2}  # a box without height is its median alone
        drawn = axes.bxp(
            stats, positions=places, widths=0.8 * width, showfliers=False, patch_artist=True, manage_ticks=False, medianprops=line
        )
        for box in drawn["boxes"]:
            box.set(facecolor=colour(index), alpha=0.6)
        axes.plot([], [], color=colour(index), linewidth=6, alpha=0.6, label=label)
        table += [(label, category, *map(number, values)) for category, values in quantiles.items()]
        low, q1, middle, q3, high = (list(map(float, values)) for values in zip(*quantiles.values(), strict=True))
        fences = {"lowerfence": low, "q1": q1, "median": middle, "q3": q3, "upperfence": high}
        data.append({"type": "box", "x": list(quantiles), "name": label, "marker": {"color": colour(index)}} | fences)
    axes.set_xticks(range(len(categories)), categories)
    axes.set_ylabel(y)
    entitle(axes, title)
    figure.legend(loc="outside lower center", ncols=4)
    header = ("series", "category", "p5", "q1", "median", "q3", "p95")
    plot = plots.figure(data, "", y, boxmode="group")
    return write_chart(figure, folder, name, title, caption, header, table, plot)


def usage(folder: Path, name: str, title: str, caption: str, means: Mapping[str, Sequence[float]]) -> Chart:
    """Mean passes through each block, a curve a task; the base makes one through each."""
    series = {label: [Point(block, value) for block, value in enumerate(row)] for label, row in means.items()}
    return curves(
        folder, name, title, caption, "block (0 is the first)", "mean passes a prompt (the base makes 1)", series, whole=True, base=1
    )


def _shown(value: float | None) -> str:
    return "" if value is None else number(value)
