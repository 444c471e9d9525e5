"""The report's pictures, each with its numbers in a CSV file beside it. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drllm.errors import InputError
from drllm.files import write_bytes, write_text
from drllm.reporting.load import Run
from drllm.reporting.table import display_name, pooled_rows
from drllm.routes import Action, Route

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the methods apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DPI = 120


@dataclass(frozen=True)
class Picture:
    """A PNG in the report folder (its CSV has the same stem) and the sentence under it."""

    file: str
    caption: str


def need_matplotlib() -> None:
    """Refuse early, before anything is written, when pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("the report's pictures need matplotlib, which is not installed: run `pip install 'drllm[demo]'`") from None


def label_distribution(run: Run, folder: Path) -> Picture | str:
    """How often the kept routes skip, execute and repeat a block, by task; counts on a log scale."""
    counts = {task: label_counts(records) for task, records in run.records.items()}
    counts = {task: count for task, count in counts.items() if sum(count.values())}
    if not counts:
        return "No label distribution: the search kept no route."
    figure, axes = _figure()
    width = 0.8 / len(counts)
    for index, (task, count) in enumerate(counts.items()):
        heights = [count[action] for action in Action]
        places = [action + (index - (len(counts) - 1) / 2) * width for action in Action]
        # A bar of no labels has no place on a log scale: it is drawn at the axis and says 0.
        bars = axes.bar(places, [max(height, 0.5) for height in heights], width * 0.9, label=task, color=_colour(index))
        axes.bar_label(bars, labels=[f"{height:,}" for height in heights], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * axes.get_ylim()[1])  # room for the counts above the bars
    axes.set_xticks([int(action) for action in Action], [action.name.lower() for action in Action])
    axes.set_xlabel("action of the kept route at a block")
    axes.set_ylabel("labels (blocks x questions)")
    n_routes = sum(record.chosen is not None for records in run.records.values() for record in records)
    axes.set_title(f"Labels of the search, n = {n_routes} kept routes")
    axes.legend()
    rows = [(task, action.name.lower(), count[action]) for task, count in counts.items() for action in Action]
    _write_csv(folder / "label_distribution.csv", ("task", "action", "labels"), rows)
    _save(figure, folder / "label_distribution.png")
    return Picture("label_distribution.png", "Labels the search produced, by task, on a log scale.")


def label_counts(records: Iterable[Any]) -> Counter[Action]:
    """Actions of all kept routes."""
    return Counter(action for record in records if record.chosen is not None for action in record.chosen)


def passes_by_block(run: Run, folder: Path, split: str) -> Picture | str:
    """Mean passes through each block over the prompts of a task, for the routes the routers chose."""
    routes = {
        task: [Route.parse(row["route"]) for row in rows]
        for (where, method, task), rows in run.questions.items()
        if where == split and method == "routers" and rows
    }
    if not routes:
        return f"No passes by block on the {split} split: the routers have not been evaluated there."
    figure, axes = _figure()
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    table = []
    for index, (task, chosen) in enumerate(routes.items()):
        means = [sum(route[block] for route in chosen) / len(chosen) for block in range(len(chosen[0]))]
        axes.plot(means, marker=_marker(index), markersize=4, color=_colour(index), label=f"{task} (n = {len(chosen)})")
        table += [(task, block, len(chosen), _number(mean)) for block, mean in enumerate(means)]
    axes.set_ylim(-0.05, 2.05)
    _whole_ticks(axes)
    axes.set_xlabel("block (0 is the first)")
    axes.set_ylabel("mean passes a prompt")
    axes.set_title(f"Passes through each block, routers, {split} split, n = {sum(map(len, routes.values()))} questions")
    axes.legend()
    _write_csv(folder / f"passes_by_block_{split}.csv", ("task", "block", "n", "mean_passes"), table)
    _save(figure, folder / f"passes_by_block_{split}.png")
    return Picture(f"passes_by_block_{split}.png", f"Mean passes through each block on the {split} split; 1 is the base model.")


def accuracy_against_passes(summary: dict[str, Any], folder: Path) -> Picture | str:
    """Accuracy of each method with its Wilson interval against the passes it makes a prompt."""
    split, rows = summary["split"], pooled_rows(summary)
    if not rows:
        return f"No accuracy against passes on the {split} split: no method was evaluated."
    figure, axes = _figure()
    from matplotlib.transforms import ScaledTranslation

    places = Counter(round(row["mean_passes"], 3) for row in rows)
    seen: Counter[float] = Counter()
    for index, row in enumerate(rows):
        # The controls make exactly the routers' passes: side by side, each is seen.
        place = round(row["mean_passes"], 3)
        aside = 9 * (seen[place] - (places[place] - 1) / 2) / 72
        seen[place] += 1
        low, high = (100 * (row["accuracy"] - row["wilson_low"]), 100 * (row["wilson_high"] - row["accuracy"]))
        axes.errorbar(
            row["mean_passes"], 100 * row["accuracy"], yerr=[[max(low, 0)], [max(high, 0)]], fmt=_marker(index), color=_colour(index),
            capsize=3, label=display_name(row["method"]), transform=axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans),
        )  # fmt: skip
        if row["method"] == summary["reference"]:
            axes.axhline(100 * row["accuracy"], color="grey", linewidth=0.8, linestyle=":")
    # Shifted points do not count for matplotlib's own limits.
    passes = [row["mean_passes"] for row in rows]
    room = max(0.15 * (max(passes) - min(passes)), 0.5)
    axes.set_xlim(min(passes) - room, max(passes) + room)
    axes.set_ylim(100 * min(row["wilson_low"] for row in rows) - 2, 100 * max(row["wilson_high"] for row in rows) + 2)
    axes.set_xlabel(f"mean passes a prompt (the base makes {rows[0]['n_layers']})")
    axes.set_ylabel("accuracy (%), 95 % Wilson interval")
    sizes = sorted({row["n"] for row in rows})
    axes.set_title(f"{', '.join(summary['tasks'])}, {split} split, n = {' to '.join(map(str, sizes[:: max(len(sizes) - 1, 1)]))} questions")
    figure.legend(loc="outside right upper")  # outside: a box among the points would hide intervals
    names = ("method", "task", "n", "accuracy", "wilson_low", "wilson_high", "mean_passes")
    table = [[row[name] if name in ("method", "task", "n") else _number(row[name]) for name in names] for row in rows]
    _write_csv(folder / f"accuracy_{split}.csv", names, table)
    _save(figure, folder / f"accuracy_{split}.png")
    caption = f"Accuracy against passes on the {split} split. The intervals are of single methods, not of differences; "
    caption += "methods that make equally many passes are drawn side by side."
    return Picture(f"accuracy_{split}.png", caption)


def training_curves(run: Run, folder: Path) -> Picture | str:
    """Loss and macro-F1 by epoch, on the records trained on and on those held back."""
    curves = {method: epochs for method, epochs in run.epochs.items() if epochs}
    if not curves:
        return "No training curves: no method with epochs was trained."
    figure, (left, right) = _figure(columns=2)
    table = []
    for index, (method, epochs) in enumerate(curves.items()):
        for axes, name in ((left, "loss"), (right, "macro_f1")):
            for key, style, part in ((name, "-", "train"), (f"val_{name}", "--", "held back")):
                found = [(row["epoch"], row[key]) for row in epochs if row.get(key) is not None]
                if found:
                    xs, ys = zip(*found, strict=True)
                    axes.plot(xs, ys, style, marker=_marker(index), markersize=3, color=_colour(index), label=f"{method}, {part}")
                    table += [(method, key, epoch, _number(value)) for epoch, value in found]
    for axes, label in ((left, "loss (focal, nats)"), (right, "macro-F1 of the three actions")):
        _whole_ticks(axes)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend()
    n_routes = sum(record.chosen is not None for records in run.records.values() for record in records)
    figure.suptitle(f"Training, n = {n_routes} kept routes, of which a part is held back")
    _write_csv(folder / "training.csv", ("method", "metric", "epoch", "value"), table)
    _save(figure, folder / "training.png")
    return Picture("training.png", "Loss and macro-F1 by epoch.")


def _whole_ticks(axes: Any) -> None:
    """Blocks and epochs are counted: no ticks between them."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _figure(columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, without pyplot: no global state, no window, no backend to choose."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 if columns == 1 else 10, 4.5), layout="constrained")
    return figure, figure.subplots(1, columns)


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    # The default metadata names the version of matplotlib; without it, equal numbers give equal bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
