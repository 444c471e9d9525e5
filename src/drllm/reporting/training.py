"""What became of the trainings: a table of last epochs and curves of all, of many policies as of one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from drllm.reporting.chart import Axis, Chart, Curve, number
from drllm.reporting.parts import Paragraph, Part, Table
from drllm.runs.load import Run

DRAWN = 3  # policies, each with a curve of what it was trained on and one of what was held back: more cannot be told apart
LOG_SPAN = 50  # of losses: beyond it, all but the first epochs would lie on the axis
LOSS, SCORE = "training loss (nats)", "macro-F1 of the three actions"  # focal or a cross-entropy, as each was trained
PARTS = {"": "train", "val_": "held back"}  # by the prefix of a metric

Epochs = Sequence[Mapping[str, Any]]


def training_parts(run: Run) -> list[Part]:
    """The trainings of a run; a policy whose metrics are missing is named."""
    curves = {method: run.epochs[method] for method in sorted(run.epochs, key=lambda name: name != "routers") if run.epochs[method]}
    parts: list[Part] = []
    if empty := [method for method in run.epochs if method not in curves]:
        parts.append(Paragraph(f"Their metrics file is empty: {', '.join(empty)}."))
    if not curves:
        return [*parts, Paragraph("No training curves: no method with epochs was trained.")]
    n_kept = sum(record.kept for found in run.records.values() for record in found)
    return [last_epochs(curves), training_curves(curves, n_kept), *parts]


def last_epochs(curves: Mapping[str, Epochs]) -> Table:
    """The metrics of each policy's last epoch, a row each."""
    lasts = {method: epochs[-1] for method, epochs in curves.items()}
    names = dict.fromkeys(name for last in lasts.values() for name in last if name != "epoch" and not name.startswith("val_"))
    rows = []
    for method, last in lasts.items():
        n_epochs = len(curves[method])
        rows.append((method, f"{last.get('epoch', n_epochs)} of {n_epochs}", *(_both(last, name) for name in names)))
    caption = "After the last epoch: on the questions trained on / on those held back, where it was measured there."
    return Table(("policy", "epoch", *names), tuple(rows), caption)


def _both(last: Mapping[str, Any], name: str) -> str:
    found = [value for key in (name, f"val_{name}") if (value := last.get(key)) is not None]
    return " / ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in found)


def training_curves(curves: Mapping[str, Epochs], n_routes: int) -> Chart:
    """Loss and macro-F1 by epoch. The first few policies are drawn, and the numbers are of all."""
    marks, table = [], []
    for index, (method, epochs) in enumerate(curves.items()):
        for panel, name in enumerate(("loss", "macro_f1")):
            for prefix, part in PARTS.items():
                key = f"{prefix}{name}"
                found = [(row["epoch"], row[key]) for row in epochs if row.get(key) is not None and math.isfinite(row[key])]
                if not found:
                    continue
                xs, ys = zip(*found, strict=True)
                table += [(method, key, epoch, number(value)) for epoch, value in found]
                if index < DRAWN:
                    marks.append(Curve(name=f"{method}, {part}", xs=xs, ys=ys, index=index, panel=panel, dashed=bool(prefix)))
    losses = [y for curve in marks if curve.panel == 0 for y in curve.ys]
    is_log = bool(losses) and min(losses) > 0 and max(losses) / min(losses) > LOG_SPAN
    title = f"Training, n = {n_routes} kept routes, of which a part is held back" if n_routes else "Training"
    caption = "Loss and macro-F1 by epoch: full lines on the questions trained on, dashed ones on those held back."
    if len(curves) > DRAWN:
        shown, n = ", ".join(list(curves)[:DRAWN]), len(curves) - DRAWN
        caption += f" Drawn: {shown}; the other {n} are among the numbers."
    header, x, ys = ("method", "metric", "epoch", "value"), Axis("epoch", is_whole=True), (Axis(LOSS, is_log=is_log), Axis(SCORE))
    return Chart("training", title, caption, header, tuple(table), tuple(marks), x, ys, height=7, legend=2)
