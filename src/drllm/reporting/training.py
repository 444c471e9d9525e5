"""What became of the trainings: a table of last epochs and curves of all, of many policies as of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drllm.reporting import plots
from drllm.reporting.drawing import colour, marker, new_figure, number, whole_ticks, write_chart
from drllm.reporting.parts import Chart, Paragraph, Part, Table
from drllm.runs.load import Run

DRAWN = 3  # policies, each with a curve of what it was trained on and one of what was held back: more cannot be told apart
LOG_SPAN = 50  # of losses: beyond it, all but the first epochs would lie on the axis
LOSS, SCORE = "training loss (nats)", "macro-F1 of the three actions"  # focal or a cross-entropy, as each was trained
CURVES = (("", "solid", "-", "train"), ("val_", "dash", "--", "held back"))

Epochs = Sequence[Mapping[str, Any]]


def training_parts(run: Run, folder: Path) -> list[Part]:
    """The trainings of a run; a policy whose metrics are missing is named."""
    curves = {method: run.epochs[method] for method in sorted(run.epochs, key=lambda name: name != "routers") if run.epochs[method]}
    parts: list[Part] = []
    if empty := [method for method in run.epochs if method not in curves]:
        parts.append(Paragraph(f"Their metrics file is empty: {', '.join(empty)}."))
    if not curves:
        return [*parts, Paragraph("No training curves: no method with epochs was trained.")]
    return [last_epochs(curves), training_curves(curves, n_kept(run), folder), *parts]


def n_kept(run: Run) -> int:
    """How many questions of the search have a route to learn from."""
    return sum(record.chosen is not None for records in run.records.values() for record in records)


def last_epochs(curves: Mapping[str, Epochs]) -> Table:
    """The metrics of each policy's last epoch, a row each."""
    lasts = {method: epochs[-1] for method, epochs in curves.items()}
    names = dict.fromkeys(name for last in lasts.values() for name in last if name != "epoch" and not name.startswith("val_"))
    rows = tuple(
        (method, f"{last.get('epoch', len(curves[method]))} of {len(curves[method])}", *(_both(last, name) for name in names))
        for method, last in lasts.items()
    )
    caption = "After the last epoch: on the questions trained on / on those held back, where it was measured there."
    return Table(("policy", "epoch", *names), rows, caption)


def _both(last: Mapping[str, Any], name: str) -> str:
    found = [
        f"{value:.3g}" if isinstance(value, float) else str(value) for key in (name, f"val_{name}") if (value := last.get(key)) is not None
    ]
    return " / ".join(found)


def training_curves(curves: Mapping[str, Epochs], n_routes: int, folder: Path) -> Chart:
    """Loss and macro-F1 by epoch. The first few policies are drawn; the page draws another at a click, and the numbers are of all."""
    figure, panels = new_figure(rows=2, height=7)
    data, table, losses = [], [], []
    for index, (method, epochs) in enumerate(curves.items()):
        for axes, name, panel in zip(panels, ("loss", "macro_f1"), ("", "2"), strict=True):
            for prefix, dash, style, part in CURVES:
                key, label = f"{prefix}{name}", f"{method}, {part}"
                found = [(row["epoch"], row[key]) for row in epochs if row.get(key) is not None and math.isfinite(row[key])]
                if not found:
                    continue
                xs, ys = zip(*found, strict=True)
                table += [(method, key, epoch, number(value)) for epoch, value in found]
                losses += ys if name == "loss" else ()
                trace = plots.line(xs, ys, label, index, dash, panel) | {"legendgroup": method}
                if index < DRAWN:
                    axes.plot(xs, ys, style, marker=marker(index), markersize=3, color=colour(index), label=label)
                else:
                    trace["visible"] = "legendonly"
                data.append(trace)
    is_log = bool(losses) and min(losses) > 0 and max(losses) / min(losses) > LOG_SPAN
    title = f"Training, n = {n_routes} kept routes, of which a part is held back"
    _label(figure, panels, title, is_log)
    caption = "Loss and macro-F1 by epoch: full lines on the questions trained on, dashed ones on those held back." + _left_out(
        list(curves)
    )
    plot = plots.stacked(data, "epoch", plots.axis(LOSS, **(plots.LOG if is_log else {})), plots.axis(SCORE))
    return write_chart(figure, folder, "training", title, caption, ("method", "metric", "epoch", "value"), table, plot)


def _label(figure: Any, panels: Any, title: str, is_log: bool) -> None:
    for axes, label in zip(panels, (LOSS, SCORE), strict=True):
        axes.set_ylabel(label)
    if is_log:
        panels[0].set_yscale("log")
    whole_ticks(panels[1])
    panels[1].set_xlabel("epoch")
    figure.suptitle(title)
    named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=2)


def _left_out(methods: Sequence[str]) -> str:
    if len(methods) <= DRAWN:
        return ""
    shown, n = ", ".join(methods[:DRAWN]), len(methods) - DRAWN
    return f" Drawn: {shown}; the other {n} are among the numbers, and on the page a click on a name draws it."
