"""The report's pictures: a PNG each, its numbers in a CSV file, and a Plotly figure. matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drllm.evaluation.names import owner_of
from drllm.records import RouteRecord
from drllm.reporting import plots
from drllm.reporting.drawing import colour, marker, new_figure, number, whole_ticks, write_chart
from drllm.reporting.load import Run
from drllm.reporting.parts import Chart
from drllm.routes import Action, Route
from drllm.tables import display_name, pooled_rows

TITLED = 3  # tasks that fit a title
UPPER_BOUNDS = ("oracle",)


def accuracy_charts(summary: dict[str, Any], folder: Path) -> list[Chart | str]:
    """Accuracy of each method with its Wilson interval against what it costs: passes a prompt, and seconds where they were measured."""
    split, rows = summary["split"], pooled_rows(summary)
    if not rows:
        return [f"No accuracy against passes on the {split} split: no method was evaluated."]
    layers = rows[0]["n_layers"]
    charts: list[Chart | str] = [
        _accuracy(summary, folder, f"accuracy_{split}", "mean_passes", f"mean passes a prompt (the base makes {layers})", "passes")
    ]
    if all(row.get("seconds") for row in rows):
        label = "seconds a question, decisions included (controls are given their routes)"
        timed = [row | {"cost": row["seconds"] / row["n"]} for row in rows]
        charts.append(_accuracy(summary | {"rows": timed}, folder, f"accuracy_seconds_{split}", "cost", label, "seconds a question"))
    return charts


def _accuracy(summary: dict[str, Any], folder: Path, name: str, cost: str, label: str, unit: str) -> Chart:
    figure, axes = new_figure()
    from matplotlib.transforms import ScaledTranslation

    rows, split = pooled_rows(summary), summary["split"]
    data = []
    # One in a thousand of the dearest: closer costs are one to the eye.
    unit_cost = max(row[cost] for row in rows) / 1000
    shared = Counter(round(row[cost] / unit_cost) for row in rows)
    room = max(0.15 * (max(row[cost] for row in rows) - min(row[cost] for row in rows)), max(row[cost] for row in rows) / 60)
    seen: Counter[float] = Counter()
    nudge = 0.5 * room  # of a browser's axis an inch, or so
    for index, row in enumerate(rows):
        # The controls make exactly the routers' passes: side by side, each is seen.
        place = round(row[cost] / unit_cost)
        aside = 9 * (seen[place] - (shared[place] - 1) / 2) / 72
        seen[place] += 1
        accuracy, shown = 100 * row["accuracy"], display_name(row["method"])
        low, high = max(accuracy - 100 * row["wilson_low"], 0), max(100 * row["wilson_high"] - accuracy, 0)
        axes.errorbar(
            row[cost], accuracy, yerr=[[low], [high]], fmt=marker(index), color=colour(index),
            capsize=3, label=shown, transform=axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans),
        )  # fmt: skip
        hover = f"{shown}: {accuracy:.1f} % ({accuracy - low:.1f} to {accuracy + high:.1f}), {row[cost]:.4g} {unit}, n = {row['n']}"
        data.append(plots.points([row[cost] + aside * nudge], [accuracy], [low], [high], shown, index, hover))
        if row["method"] == summary["reference"]:
            axes.axhline(accuracy, color="grey", linewidth=0.8, linestyle=":")
    best = pareto_front([(row[cost], 100 * row["accuracy"]) for row in rows if not owner_of(row["method"]) and not _is_told(row)])
    axes.step(*zip(*best, strict=True), where="post", color="grey", linewidth=1, linestyle="--", label="Pareto front", zorder=0)
    # Shifted points do not count for matplotlib's own limits.
    costs = [row[cost] for row in rows]
    axes.set_xlim(min(costs) - room, max(costs) + room)
    axes.set_ylim(100 * min(row["wilson_low"] for row in rows) - 2, 100 * max(row["wilson_high"] for row in rows) + 2)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy (%), 95 % Wilson interval")
    sizes = sorted({row["n"] for row in rows})
    n = " to ".join(map(str, sizes[:: max(len(sizes) - 1, 1)]))
    tasks = ", ".join(summary["tasks"]) if len(summary["tasks"]) <= TITLED else f"{len(summary['tasks'])} tasks"
    title = f"Accuracy against {unit}: {tasks}, {split} split, n = {n} questions"
    axes.set_title(title)
    figure.legend(loc="outside right upper")  # outside: a box among the points would hide intervals
    header = ("method", "task", "n", "accuracy", "wilson_low", "wilson_high", unit)
    names = (*header[:-1], cost)
    table = [tuple(row[key] if key in ("method", "task", "n") else number(row[key]) for key in names) for row in rows]
    caption = "The intervals are of single methods, not of differences; methods of equal cost stand side by side; "
    caption += "controls and upper bounds are not on the Pareto front, and a point on it need not be better than its neighbours for sure."
    plot = plots.figure([plots.front(*zip(*best, strict=True)), *data], label, "accuracy (%), 95 % interval")
    return write_chart(figure, folder, name, title, caption, header, table, plot)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value), those that no point equally cheap or cheaper beats, from the cheapest on."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def _is_told(row: dict[str, Any]) -> bool:
    return row["method"] in UPPER_BOUNDS


def usage_map(questions: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]], folder: Path, split: str) -> Chart | str:
    """Mean passes through each block by method and task; 1 is the base. Controls make their owner's passes and are left out.

    `questions`: rows of the per-question files by (split, method, task).
    """
    rows: dict[str, list[float]] = {}
    table = []
    for (where, method, task), answers in sorted(questions.items()):
        routes = [Route.parse(row["route"]) for row in answers if row.get("route")]
        if where != split or owner_of(method) or not routes or all(route.is_full for route in routes):
            continue
        means = mean_usage(routes)
        rows[f"{display_name(method)}, {task} (n = {len(routes)})"] = means
        table += [(method, task, block, len(routes), number(mean)) for block, mean in enumerate(means)]
    if not rows:
        return f"No passes by block on the {split} split: no method that leaves the base's route has been evaluated there."
    figure, axes = new_figure(height=1.6 + 0.36 * len(rows))
    from matplotlib.colors import LinearSegmentedColormap

    values = list(rows.values())
    shown = axes.imshow(values, aspect="auto", vmin=0, vmax=2, cmap=LinearSegmentedColormap.from_list("usage", list(plots.USAGE)))
    axes.set_yticks(range(len(rows)), list(rows))
    whole_ticks(axes)
    axes.set_xlabel("block (0 is the first)")
    title = f"Mean passes through each block, {split} split"
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, label="mean passes a prompt", ticks=[0, 1, 2])
    layout = {"height": 190 + 30 * len(rows), "yaxis": {"autorange": "reversed", "automargin": True}}
    plot = plots.figure([plots.heat(values, list(rows), "mean passes")], "block (0 is the first)", "", **layout)
    caption = f"Mean passes through each block on the {split} split: 1 is the base, below 1 prompts skip the block, above 1 they repeat it."
    return write_chart(figure, folder, f"usage_{split}", title, caption, ("method", "task", "block", "n", "mean_passes"), table, plot)


def mean_usage(routes: Sequence[Route]) -> list[float]:
    """Mean passes through each block."""
    return [sum(route[block] for route in routes) / len(routes) for block in range(len(routes[0]))]


def label_distribution(records: Mapping[str, Sequence[RouteRecord]], folder: Path) -> Chart | str:
    """How often the kept routes skip, execute and repeat a block, by task; counts on a log scale."""
    counts = {task: label_counts(found) for task, found in records.items()}
    counts = {task: count for task, count in counts.items() if sum(count.values())}
    if not counts:
        return "No label distribution: the search kept no route."
    figure, axes = new_figure()
    width = 0.8 / len(counts)
    data = []
    for index, (task, count) in enumerate(counts.items()):
        heights = [count[action] for action in Action]
        places = [action + (index - (len(counts) - 1) / 2) * width for action in Action]
        labels = [f"{height:,}" for height in heights]
        # A bar of no labels has no place on a log scale: it is drawn at the axis and says 0.
        drawn = [max(height, 0.5) for height in heights]
        bars = axes.bar(places, drawn, width * 0.9, label=task, color=colour(index))
        axes.bar_label(bars, labels=labels, fontsize=8)
        data.append(plots.bars([action.name.lower() for action in Action], drawn, labels, task, index))
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * axes.get_ylim()[1])  # room for the counts above the bars
    axes.set_xticks([int(action) for action in Action], [action.name.lower() for action in Action])
    axes.set_xlabel("action of the kept route at a block")
    axes.set_ylabel("labels (blocks x questions), log scale")
    n_routes = sum(record.chosen is not None for found in records.values() for record in found)
    title = f"Labels of the search, n = {n_routes} kept routes"
    axes.set_title(title)
    axes.legend()
    rows = [(task, action.name.lower(), count[action]) for task, count in counts.items() for action in Action]
    scale = {"type": "log", "range": [-0.3, math.log10(axes.get_ylim()[1])], "title": {"text": axes.get_ylabel()}, "automargin": True}
    plot = plots.figure(data, "action of the kept route at a block", "", yaxis=scale, barmode="group")
    caption = "Labels the search produced, by task, on a log scale."
    return write_chart(figure, folder, "label_distribution", title, caption, ("task", "action", "labels"), rows, plot)


def label_counts(records: Iterable[Any]) -> Counter[Action]:
    """Actions of all kept routes."""
    return Counter(action for record in records if record.chosen is not None for action in record.chosen)


def training_curves(run: Run, folder: Path) -> Chart | str:
    """Loss and macro-F1 by epoch, on the records trained on and on those held back."""
    curves = {method: epochs for method, epochs in run.epochs.items() if epochs}
    if not curves:
        return "No training curves: no method with epochs was trained."
    figure, (left, right) = new_figure(columns=2)
    table: list[tuple[Any, ...]] = []
    data: list[dict[str, Any]] = []
    named: set[str] = set()
    for index, (method, epochs) in enumerate(curves.items()):
        for axes, name, axis in ((left, "loss", ""), (right, "macro_f1", "2")):
            for key, style, dash, part in ((name, "-", "solid", "train"), (f"val_{name}", "--", "dash", "held back")):
                found = [(row["epoch"], row[key]) for row in epochs if row.get(key) is not None and math.isfinite(row[key])]
                if found:
                    xs, ys = zip(*found, strict=True)
                    axes.plot(xs, ys, style, marker=marker(index), markersize=3, color=colour(index), label=f"{method}, {part}")
                    table += [(method, key, epoch, number(value)) for epoch, value in found]
                    label = f"{method}, {part}"
                    data.append(plots.line(xs, ys, label, index, dash, axis) | {"showlegend": label not in named, "legendgroup": label})
                    named.add(label)
    labels = ("loss (focal, nats)", "macro-F1 of the three actions")
    for axes, label in ((left, labels[0]), (right, labels[1])):
        whole_ticks(axes)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend()
    n_routes = sum(record.chosen is not None for records in run.records.values() for record in records)
    title = f"Training, n = {n_routes} kept routes, of which a part is held back"
    figure.suptitle(title)
    second = {
        "xaxis": {"title": {"text": "epoch"}, "domain": [0, 0.44]}, "xaxis2": {"title": {"text": "epoch"}, "domain": [0.56, 1]},
        "yaxis2": {"title": {"text": labels[1]}, "anchor": "x2", "automargin": True},
    }  # fmt: skip
    plot = plots.figure(data, "epoch", labels[0], **second)
    header = ("method", "metric", "epoch", "value")
    return write_chart(figure, folder, "training", title, "Loss and macro-F1 by epoch.", header, table, plot)
