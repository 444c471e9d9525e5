"""The pictures as Plotly figures: plain mappings that the page's script draws, so nothing is needed here to build them.

Colours and markers are those of the PNG files. Text, grid and background come from the page, which has a light and a dark face.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the methods apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
# Of mean passes 0 (skipped), 1 (the base) and 2 (repeated): blue, white, orange differ in lightness and for colour-blind readers.
USAGE = ((0.0, "#0072B2"), (0.5, "#F7F7F7"), (1.0, "#D55E00"))


def points(xs: Sequence[float], ys: Sequence[float], low: Sequence[float], high: Sequence[float], name: str, index: int, hover: str) -> Any:
    """One method's point with its interval."""
    colour = COLOURS[index % len(COLOURS)]
    bars = {"type": "data", "symmetric": False, "array": list(high), "arrayminus": list(low), "color": colour}
    return {
        "type": "scatter", "mode": "markers", "x": list(xs), "y": list(ys), "error_y": bars, "name": name,
        "marker": {"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 10}, "hovertemplate": hover + "<extra></extra>",
    }  # fmt: skip


def line(xs: Sequence[float], ys: Sequence[float], name: str, index: int, dash: str = "solid", axis: str = "") -> Any:
    """A curve with a marker at each value."""
    return {
        "type": "scatter", "mode": "lines+markers", "x": list(xs), "y": list(ys), "name": name, "xaxis": f"x{axis}", "yaxis": f"y{axis}",
        "line": {"color": COLOURS[index % len(COLOURS)], "dash": dash}, "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 5},
        "hovertemplate": "%{fullData.name}: %{y:.4g} at %{x}<extra></extra>",
    }  # fmt: skip


def front(xs: Sequence[float], ys: Sequence[float]) -> Any:
    """The Pareto front, as a step line: what the best method at most this dear has."""
    return {
        "type": "scatter", "mode": "lines", "x": list(xs), "y": list(ys), "name": "Pareto front", "hoverinfo": "skip",
        "line": {"color": "#7F7F7F", "dash": "dot", "shape": "hv", "width": 1.5},
    }  # fmt: skip


def bars(names: Sequence[str], heights: Sequence[float], labels: Sequence[str], name: str, index: int) -> Any:
    """One task's bars."""
    return {
        "type": "bar", "x": list(names), "y": list(heights), "text": list(labels), "textposition": "outside", "name": name,
        "marker": {"color": COLOURS[index % len(COLOURS)]}, "hovertemplate": "%{fullData.name}, %{x}: %{text} labels<extra></extra>",
    }  # fmt: skip


def heat(values: Sequence[Sequence[float]], rows: Sequence[str], unit: str) -> Any:
    """Mean passes by row and block."""
    scale = [[place, colour] for place, colour in USAGE]
    return {
        "type": "heatmap", "z": [list(row) for row in values], "y": list(rows), "zmin": 0, "zmax": 2, "colorscale": scale,
        "xgap": 1, "ygap": 1,
        "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 12, "tickvals": [0, 1, 2]},
        "hovertemplate": "%{y}<br>block %{x}: %{z:.2f} passes<extra></extra>",
    }  # fmt: skip


def figure(data: Sequence[Any], x: str, y: str, **layout: Any) -> dict[str, Any]:
    """A figure of one pair of axes; `layout` adds to it or replaces."""
    base = {
        "xaxis": {"title": {"text": x}, "automargin": True}, "yaxis": {"title": {"text": y}, "automargin": True},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.25}, "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
    }  # fmt: skip
    return {"data": list(data), "layout": base | layout}
