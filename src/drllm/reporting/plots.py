"""The pictures as Plotly figures: plain mappings that the page's script draws, so nothing is needed here to build them.

Colours and markers are those of the PNG files. Text, grid, background and legend come from the page, which has a light and a dark face
and breaks titles and labels where they are wider than their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the methods apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# One more than there are colours: the two together repeat after 56, not after 7.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
HATCHES = ("", "/", "x", ".")  # of bars, which have no markers: another after each round of colours
# Of mean passes 0 (skipped), 1 (the base) and 2 (repeated): blue, white, orange differ in lightness and for colour-blind readers.
USAGE = ((0.0, "#0072B2"), (0.5, "#F7F7F7"), (1.0, "#D55E00"))
LOG = {"type": "log", "dtick": 1, "tickformat": "~g"}  # whole powers of ten, as decimals: never as "100u"
MANY_BARS = 12  # more than fit a phone with their numbers side by side


def points(xs: Sequence[float], ys: Sequence[float], low: Sequence[float], high: Sequence[float], name: str, index: int, hover: str) -> Any:
    """One method's point with its interval."""
    colour = COLOURS[index % len(COLOURS)]
    bars = {"type": "data", "symmetric": False, "array": list(high), "arrayminus": list(low), "color": colour}
    return {
        "type": "scatter", "mode": "markers", "x": list(xs), "y": list(ys), "error_y": bars, "name": name,
        "marker": {"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 10}, "hovertemplate": hover + "<extra></extra>",
    }  # fmt: skip


def hatch(index: int) -> str:
    """What tells two bars of one colour apart, here and in the PNG files."""
    return HATCHES[index // len(COLOURS) % len(HATCHES)]


def line(xs: Sequence[float], ys: Sequence[float], name: str, index: int, dash: str = "solid", panel: str = "") -> Any:
    """A curve with a marker at each value; `panel`: "2" is the lower one."""
    return {
        "type": "scatter", "mode": "lines+markers", "x": list(xs), "y": list(ys), "name": name, "yaxis": f"y{panel}",
        "line": {"color": COLOURS[index % len(COLOURS)], "dash": dash}, "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 5},
        "hovertemplate": "%{fullData.name}: %{y:.4g} at %{x}<extra></extra>",
    }  # fmt: skip


def front(xs: Sequence[float], ys: Sequence[float]) -> Any:
    """The Pareto front, as a step line: what the best method at most this dear has."""
    return {
        "type": "scatter", "mode": "lines", "x": list(xs), "y": list(ys), "name": "Pareto front", "hoverinfo": "skip",
        "line": {"color": "#7F7F7F", "dash": "dot", "shape": "hv", "width": 1.5},
    }  # fmt: skip


def bars(names: Sequence[Any], heights: Sequence[float], name: str, index: int, hover: str) -> Any:
    """One task's bars."""
    marker: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)]}
    if shape := hatch(index):
        marker["pattern"] = {"shape": shape, "fillmode": "overlay"}
    return {"type": "bar", "x": list(names), "y": list(heights), "name": name, "marker": marker, "hovertemplate": hover + "<extra></extra>"}


def numbered(bar: dict[str, Any], labels: Sequence[str], n_bars: int) -> dict[str, Any]:
    """Bars with their numbers above them, all of one size; upright where there are many bars."""
    text = {"text": list(labels), "textposition": "outside", "textfont": {"size": 10}, "constraintext": "none", "cliponaxis": False}
    return bar | text | {"textangle": -90 if n_bars > MANY_BARS else 0}


def heat(values: Sequence[Sequence[float]], rows: Sequence[str], hover: Sequence[str]) -> Any:
    """Mean passes by row and block; `hover` says more of a row than its name. The page draws the scale below."""
    return {
        "type": "heatmap", "z": [list(row) for row in values], "y": list(rows), "zmin": 0, "zmax": 2,
        "colorscale": [[place, colour] for place, colour in USAGE], "showscale": False, "xgap": 1, "ygap": 1,
        "customdata": [[name] * len(row) for name, row in zip(hover, values, strict=True)],
        "hovertemplate": "%{customdata}<br>block %{x}: %{z:.2f} passes<extra></extra>",
    }  # fmt: skip


def figure(data: Sequence[Any], x: str, y: str, **layout: Any) -> dict[str, Any]:
    """A figure of one pair of axes; `layout` adds to it or replaces."""
    base = {"xaxis": axis(x), "yaxis": axis(y), "margin": {"l": 20, "r": 20, "t": 20, "b": 20}}
    return {"data": list(data), "layout": base | layout}


def axis(title: str, **changes: Any) -> dict[str, Any]:
    """An axis that makes room for its own title and ticks."""
    return {"title": {"text": title}, "automargin": True} | changes


def across(y: float) -> dict[str, Any]:
    """A dotted line from side to side, one of a layout's `shapes`."""
    line = {"color": "grey", "width": 1, "dash": "dot"}
    return {"type": "line", "layer": "below", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def stacked(data: Sequence[Any], x: str, upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    """Two panels, one above the other, over the same x axis; traces of the lower one have the y axis "y2"."""
    panels = {"yaxis": upper | {"domain": [0.54, 1]}, "yaxis2": lower | {"domain": [0, 0.46]}}
    return figure(data, x, "", **panels, xaxis=axis(x, anchor="y2"), height=560)
