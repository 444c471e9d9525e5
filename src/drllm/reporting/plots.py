"""Charts as Plotly figures: plain mappings that the page's script draws, so nothing is needed here to build them.

Text, grid, background and legend come from the page, which has a light and a dark face and breaks titles and labels where they are wider
than their place. Reference: https://plotly.com/javascript/reference.
"""

from collections.abc import Sequence
from typing import Any

from drllm.reporting.chart import FRAME, USAGE, Axis, Bars, Boxes, Chart, Curve, Front, Heat, Level, Mark, Spot, Squares

LOG = {"type": "log", "dtick": 1, "tickformat": "~g"}  # whole powers of ten, as decimals: never as "100u"


def as_plotly(chart: Chart) -> dict[str, Any]:
    """`data` and `layout` of a Plotly figure."""
    data = [TRACES[type(mark)](mark, chart) for mark in chart.marks if type(mark) in TRACES]
    upper = chart.ys[0]
    layout = {"xaxis": _axis(chart.x), "yaxis": _axis(upper), "margin": {"l": 20, "r": 20, "t": 20, "b": 20}}
    if len(chart.ys) > 1:  # one above the other over the same x axis; traces of the lower one have the y axis "y2"
        layout |= {"yaxis": layout["yaxis"] | {"domain": [0.54, 1]}, "yaxis2": _axis(chart.ys[1]) | {"domain": [0, 0.46]}}
        layout |= {"xaxis": layout["xaxis"] | {"anchor": "y2"}, "height": 560}
    if chart.of(Heat):
        layout["yaxis"] = {"autorange": "reversed", "automargin": True}
    if chart.of(Squares):
        for name, axis in (("xaxis", chart.x), ("yaxis", upper)):
            layout[name] |= {"range": axis.limits and list(axis.limits)}
        layout["height"] = 600
    if chart.of(Bars):
        layout["barmode"] = "group"
    if chart.of(Boxes):
        layout["boxmode"] = "group"
    if chart.x.names and len(chart.of(Curve)) > 1:
        layout |= {"scattermode": "group", "scattergap": 0.7}  # side by side, as in the PNG
    frames = [_frame(*loop) for heat in chart.of(Heat) for loop in heat.loops]
    if shapes := [*(_across(level) for level in chart.of(Level) if level.on_page), *frames]:
        layout["shapes"] = shapes
    return {"data": data, "layout": layout}


def _axis(axis: Axis) -> dict[str, Any]:
    """An axis that makes room for its own title and ticks."""
    found: dict[str, Any] = {"title": {"text": axis.short or axis.label}, "automargin": True}
    if axis.kind:
        found["type"] = axis.kind
    if axis.is_log:
        found |= LOG
    if axis.decades:
        found["range"] = list(axis.decades)
    return found


def _across(level: Level) -> dict[str, Any]:
    line = {"color": "grey", "width": 1, "dash": "dot"}
    return {"type": "line", "layer": "below", "xref": "paper", "x0": 0, "x1": 1, "y0": level.y, "y1": level.y, "line": line}


def _frame(row: int, first: int, last: int) -> dict[str, Any]:
    """Around the blocks of a row that a loop runs."""
    x, y = (first - 0.45, last + 0.45), (row - 0.4, row + 0.4)
    return {"type": "rect", "x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1], "line": {"color": FRAME, "width": 2}}


def _intervals(mark: Mark, low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "color": mark.colour}


def _hover(text: str) -> str:
    return text + "<extra></extra>"  # without Plotly's box of the trace's name


def _spot(spot: Spot, chart: Chart) -> dict[str, Any]:
    interval, marker = _intervals(spot, [spot.low], [spot.high]), {"color": spot.colour, "symbol": spot.marker[1], "size": 10}
    found = {"type": "scatter", "mode": "markers", "x": [spot.x + spot.aside * chart.x.inch], "y": [spot.y], "error_y": interval}
    return found | {"name": spot.name, "marker": marker, "hovertemplate": _hover(spot.hover)}


def _curve(curve: Curve, chart: Chart) -> dict[str, Any]:
    mode, size = ("markers", 9) if chart.x.names else ("lines+markers", 5)
    found: dict[str, Any] = {"type": "scatter", "mode": mode, "x": list(curve.xs), "y": list(curve.ys), "name": curve.name}
    line, marker = {"color": curve.colour, "dash": "dash" if curve.dashed else "solid"}, {"symbol": curve.marker[1], "size": size}
    found |= {"yaxis": "y2" if curve.panel else "y", "line": line, "marker": marker}
    found["hovertemplate"] = _hover("%{fullData.name}: %{y:.4g} at %{x}")
    if curve.error:
        found["error_y"] = _intervals(curve, *curve.error)
    if curve.group:
        found["legendgroup"] = curve.group
    if not curve.drawn:
        found["visible"] = "legendonly"
    return found


def _front(front: Front, chart: Chart) -> dict[str, Any]:
    line = {"color": "#7F7F7F", "dash": "dot", "shape": "hv", "width": 1.5}
    found = {"type": "scatter", "mode": "lines", "x": list(front.xs), "y": list(front.ys), "name": front.name}
    return found | {"hoverinfo": "skip", "line": line}


def _bars(bars: Bars, chart: Chart) -> dict[str, Any]:
    marker: dict[str, Any] = {"color": bars.colour}
    if bars.hatch:
        marker["pattern"] = {"shape": bars.hatch, "fillmode": "overlay"}
    xs = [x if isinstance(x, str) else round(x, 4) for x in bars.xs]
    found = {"type": "bar", "x": xs, "y": list(bars.heights), "name": bars.name, "marker": marker, "hovertemplate": _hover(bars.hover)}
    if bars.labels:  # above the bars, all of one size; upright where there are many
        found |= {"text": list(bars.labels), "textposition": "outside", "textfont": {"size": 10}, "constraintext": "none"}
        found |= {"cliponaxis": False, "textangle": -90 if chart.is_crowded else 0}
    return found


def _heat(heat: Heat, chart: Chart) -> dict[str, Any]:
    """The page draws the scale below."""
    found = {"type": "heatmap", "z": [list(row) for row in heat.values], "y": list(heat.rows), "zmin": 0, "zmax": 2}
    found |= {"colorscale": [[place, colour] for place, colour in USAGE], "showscale": False, "xgap": 1, "ygap": 1}
    labels = [[label] * len(row) for label, row in zip(heat.labels, heat.values, strict=True)]
    return found | {"customdata": labels, "hovertemplate": _hover("%{customdata}<br>block %{x}: %{z:.2f} passes")}


def _squares(squares: Squares, chart: Chart) -> dict[str, Any]:
    """The page makes the squares as large as its width lets them be: `meta` says what share of a cell each has."""
    low, high = chart.x.limits or (0, 1)
    marker: dict[str, Any] = {
        "symbol": "square",
        "color": list(squares.values),
        "cmin": -squares.limit,
        "cmax": squares.limit,
        "opacity": 1,
    }
    marker |= {"colorscale": [[place, colour] for place, colour in USAGE], "line": {"color": "#BFBFBF", "width": 0.5}}
    marker |= {"showscale": True, "colorbar": {"thickness": 12, "title": {"text": squares.label, "side": "right"}}}
    found = {"type": "scatter", "mode": "markers", "x": list(squares.xs), "y": list(squares.ys), "marker": marker}
    told = {"customdata": list(squares.hovers), "hovertemplate": _hover("%{customdata}")}
    return found | told | {"meta": {"sides": list(squares.sides), "cells": high - low}}


def _boxes(boxes: Boxes, chart: Chart) -> dict[str, Any]:
    low, q1, middle, q3, high = (list(values) for values in zip(*boxes.quantiles.values(), strict=True))
    found = {"type": "box", "x": list(boxes.quantiles), "name": boxes.name, "marker": {"color": boxes.colour}}
    return found | {"lowerfence": low, "q1": q1, "median": middle, "q3": q3, "upperfence": high}


TRACES: dict[type[Mark], Any] = {Spot: _spot, Curve: _curve, Front: _front, Bars: _bars, Heat: _heat, Boxes: _boxes}
TRACES |= {Squares: _squares}
