"""The kinds of picture that the paper's figures are made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from drllm.reporting.drawing import COLOURS, colour, level, marker, number, whole
from drllm.reporting.parts import Chart

BINS = 20
HATCHES = ("", "/", "x", ".")  # of bars, which have no markers: another after each round of colours
SHARE = "share of decisions, log scale"
BLOCK, PASSES = "block (0 is the first)", "mean passes a prompt (the base makes 1)"


class Point(NamedTuple):
    """A value with its interval, over a number or a name; without an interval, `low` and `high` are None."""

    x: float | str
    y: float
    low: float | None = None
    high: float | None = None


Series = Mapping[str, Sequence[Point]]


def curves(
    name: str,
    title: str,
    caption: str,
    labels: tuple[str, str],
    series: Series,
    base: float | None = None,
    is_whole: bool = False,
    is_log: bool = False,
) -> Chart:
    """Curves of points with their intervals; names on the x axis stand in the order given.

    Args: labels: of the axes; base: what the base has, a dotted line across; is_whole: x counts something; is_log: of y.
    """
    names = list(dict.fromkeys(point.x for points in series.values() for point in points))
    named = list(map(str, names)) if any(isinstance(found, str) for found in names) else []
    rows = tuple((label, *map(_shown, point)) for label, points in series.items() for point in points)

    def draw(panels: Sequence[Any]) -> None:
        (axes,) = panels
        for index, (label, points) in enumerate(series.items()):
            _curve(axes, label, points, index, named, 0.06 * _beside(index, len(series)))
        if base is not None:
            level(axes, base)
        if is_log:
            axes.set_yscale("log")
        axes.set_ylabel(labels[1])
        if named:
            axes.set_xticks(range(len(named)), named)
            axes.margins(x=0.15)
        if is_whole:
            whole(axes.xaxis)
        axes.set_xlabel(labels[0])

    return Chart(name, title, caption, ("series", "x", "y", "low", "high"), rows, draw, legend=4 if len(series) > 1 else None)


def stacked(
    name: str, title: str, caption: str, x: str, panels: Mapping[str, Series], header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> Chart:
    """Two panels by the name of their y axis, one above the other over the same x; a series has one colour in both. `rows`: of the CSV."""
    names = list(dict.fromkeys(label for series in panels.values() for label in series))

    def draw(drawn: Sequence[Any]) -> None:
        for axes, (y, series) in zip(drawn, panels.items(), strict=True):
            for label, points in series.items():
                _curve(axes, label, points, names.index(label))
            axes.set_ylabel(y)
        drawn[-1].set_xlabel(x)

    return Chart(name, title, caption, tuple(header), tuple(map(tuple, rows)), draw, panels=len(panels), height=7, legend=0)


def _beside(place: int, n: int) -> float:
    """How far from the middle one of several stands that stand side by side."""
    return place - (n - 1) / 2


def _curve(axes: Any, label: str, points: Sequence[Point], index: int, names: Sequence[str] = (), aside: float = 0) -> None:
    """Values over numbers, joined by a line, or over names, side by side."""
    error = None
    if any(point.low is not None for point in points):
        low = [abs((point.y if point.low is None else point.low) - point.y) for point in points]
        high = [abs((point.y if point.high is None else point.high) - point.y) for point in points]
        error = low, high
    xs: list[Any] = [names.index(str(point.x)) + aside if names else point.x for point in points]
    look = {"fmt": marker(index) + ("" if names else "-"), "color": colour(index), "markersize": 4}
    axes.errorbar(xs, [point.y for point in points], yerr=error, label=label, capsize=3 if error else 0, **look)


def histogram(name: str, title: str, caption: str, x: str, series: Mapping[str, Sequence[float]]) -> Chart:
    """Shares of values in [0, 1], bars for each series, on a log scale: most of the paper's probabilities stand at the ends."""
    edges = np.linspace(0, 1, BINS + 1)
    shares = {label: np.histogram(values, edges)[0] / max(len(values), 1) for label, values in series.items()}
    centres, width = ((edges[:-1] + edges[1:]) / 2).tolist(), 0.8 / BINS / len(series)
    rows = tuple((label, *map(number, ends)) for label, found in shares.items() for ends in zip(edges[:-1], edges[1:], found, strict=True))

    def draw(panels: Sequence[Any]) -> None:
        (axes,) = panels
        for index, (label, found) in enumerate(shares.items()):
            places, hatch = [at + _beside(index, len(shares)) * width for at in centres], HATCHES[index // len(COLOURS) % len(HATCHES)]
            axes.bar(places, found.tolist(), width, label=label, color=colour(index), hatch=hatch)
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.2)
        axes.set(ylabel=SHARE, xlabel=x)

    return Chart(name, title, caption, ("series", "from", "to", "share"), rows, draw, legend=0)


def boxes(name: str, title: str, caption: str, y: str, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> Chart:
    """Median, quartiles and the 5th and 95th percentile of each series in each category."""
    quantiles = {
        label: {category: np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() for category, values in by_category.items()}
        for label, by_category in groups.items()
    }
    rows = tuple((label, category, *map(number, values)) for label, found in quantiles.items() for category, values in found.items())
    categories = list(dict.fromkeys(category for found in quantiles.values() for category in found))

    def draw(panels: Sequence[Any]) -> None:
        (axes,) = panels
        width, look = 0.8 / len(quantiles), {"showfliers": False, "patch_artist": True, "manage_ticks": False}
        for index, (label, found) in enumerate(quantiles.items()):
            stats = [dict(zip(("whislo", "q1", "med", "q3", "whishi"), values, strict=True)) for values in found.values()]
            places = [categories.index(category) + _beside(index, len(quantiles)) * width for category in found]
            line = {"color": colour(index), "linewidth": 2}  # a box without height is its median alone
            drawn = axes.bxp(stats, positions=places, widths=0.8 * width, medianprops=line, **look)
            for box in drawn["boxes"]:
                box.set(facecolor=colour(index), alpha=0.6)
            axes.plot([], [], color=colour(index), linewidth=6, alpha=0.6, label=label)
        axes.set_ylabel(y)
        axes.set_xticks(range(len(categories)), categories)

    header = ("series", "category", "p5", "q1", "median", "q3", "p95")
    return Chart(name, title, caption, header, rows, draw, legend=4)


def usage(name: str, title: str, caption: str, means: Mapping[str, Sequence[float]]) -> Chart:
    """Mean passes through each block, a curve a task; the base makes one through each."""
    series = {label: [Point(block, value) for block, value in enumerate(row)] for label, row in means.items()}
    return curves(name, title, caption, (BLOCK, PASSES), series, base=1, is_whole=True)


def _shown(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else number(value)
