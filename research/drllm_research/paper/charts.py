"""The kinds of picture that the paper's figures are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from drllm.reporting.chart import Axis, Bars, Boxes, Chart, Curve, Level, Mark, number

BINS = 20
SHARE = "share of decisions, log scale"
BLOCK, PASSES = "block (0 is the first)", "mean passes a prompt (the base makes 1)"


class Point(NamedTuple):
    """A value with its interval, over a number or a name; without an interval, `low` and `high` are None."""

    x: float | str
    y: float
    low: float | None = None
    high: float | None = None


Series = Mapping[str, Sequence[Point]]


def curves(name: str, title: str, caption: str, axes: tuple[Axis, str], series: Series, base: float | None = None) -> Chart:
    """Curves of points with their intervals; names on the x axis stand in the order given.

    Args: axes: the x axis, and the label of the y axis; base: what the base has, a dotted line across.
    """
    x, y = axes
    names = list(dict.fromkeys(point.x for points in series.values() for point in points))
    is_named = any(isinstance(found, str) for found in names)
    rows = tuple((label, *map(_shown, point)) for label, points in series.items() for point in points)
    marks: list[Mark] = [_curve(label, points, index) for index, (label, points) in enumerate(series.items())]
    marks += [] if base is None else [Level(y=base)]
    x = replace(x, names=list(map(str, names))) if is_named else x
    legend = 4 if len(series) > 1 else None
    return Chart(name, title, caption, ("series", "x", "y", "low", "high"), rows, tuple(marks), x, (Axis(y),), legend=legend)


def stacked(
    name: str, title: str, caption: str, x: str, panels: Mapping[str, Series], header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> Chart:
    """Two panels by the name of their y axis, one above the other over the same x; a series has one colour in both. `rows`: of the CSV."""
    names = list(dict.fromkeys(label for series in panels.values() for label in series))
    marks = [
        _curve(label, points, names.index(label), panel) for panel, series in enumerate(panels.values()) for label, points in series.items()
    ]
    ys = tuple(map(Axis, panels))
    return Chart(name, title, caption, tuple(header), tuple(map(tuple, rows)), tuple(marks), Axis(x), ys, height=7, legend=0)


def _curve(label: str, points: Sequence[Point], index: int, panel: int = 0) -> Curve:
    error = None
    if any(point.low is not None for point in points):
        low = [abs((point.y if point.low is None else point.low) - point.y) for point in points]
        high = [abs((point.y if point.high is None else point.high) - point.y) for point in points]
        error = low, high
    return Curve(name=label, index=index, panel=panel, xs=[point.x for point in points], ys=[point.y for point in points], error=error)


def histogram(name: str, title: str, caption: str, x: str, series: Mapping[str, Sequence[float]]) -> Chart:
    """Shares of values in [0, 1], bars for each series, on a log scale: most of the paper's probabilities stand at the ends."""
    edges = np.linspace(0, 1, BINS + 1)
    shares = {label: np.histogram(values, edges)[0] / max(len(values), 1) for label, values in series.items()}
    centres, width = ((edges[:-1] + edges[1:]) / 2).tolist(), 0.8 / BINS / len(series)
    rows = tuple((label, *map(number, ends)) for label, found in shares.items() for ends in zip(edges[:-1], edges[1:], found, strict=True))
    marks = tuple(
        Bars(name=label, index=index, xs=centres, heights=found.tolist(), width=width)
        for index, (label, found) in enumerate(shares.items())
    )
    y = Axis(SHARE, limits=(1e-4, 1.2), is_log=True)
    return Chart(name, title, caption, ("series", "from", "to", "share"), rows, marks, Axis(x), (y,), legend=0)


def boxes(name: str, title: str, caption: str, y: str, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> Chart:
    """Median, quartiles and the 5th and 95th percentile of each series in each category."""
    quantiles = {
        label: {category: np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() for category, values in by_category.items()}
        for label, by_category in groups.items()
    }
    rows = tuple((label, category, *map(number, values)) for label, found in quantiles.items() for category, values in found.items())
    marks = tuple(Boxes(name=label, index=index, quantiles=found) for index, (label, found) in enumerate(quantiles.items()))
    categories = list(dict.fromkeys(category for found in quantiles.values() for category in found))
    header = ("series", "category", "p5", "q1", "median", "q3", "p95")
    return Chart(name, title, caption, header, rows, marks, Axis(names=categories), (Axis(y),), legend=4)


def usage(name: str, title: str, caption: str, means: Mapping[str, Sequence[float]]) -> Chart:
    """Mean passes through each block, a curve a task; the base makes one through each."""
    series = {label: [Point(block, value) for block, value in enumerate(row)] for label, row in means.items()}
    return curves(name, title, caption, (Axis(BLOCK, is_whole=True), PASSES), series, base=1)


def _shown(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else number(value)
