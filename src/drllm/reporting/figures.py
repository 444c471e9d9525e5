"""The report's pictures: a PNG each, its numbers in a CSV file, and a Plotly figure. matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drllm.core.route import Action, Route
from drllm.core.text import display_name
from drllm.reporting import plots
from drllm.reporting.drawing import colour, entitle, marker, new_figure, number, whole_ticks, write_chart
from drllm.reporting.parts import Chart
from drllm.runs.names import owner_of
from drllm.runs.records import RouteRecord
from drllm.runs.summary import POOLED, Summary

TITLED = 3  # tasks that fit a title
SHIFTED = 24  # points: how far apart methods of one cost are drawn in all
NARROW = 8  # methods whose names fit four columns of a legend
MAPPED = 42  # rows of a heat map by method and task; of more, tasks are pooled
UPPER_BOUNDS = ("oracle",)
INTERVALS = "The intervals are of single methods, not of differences; methods of equal cost stand side by side."
FRONT = "Controls and upper bounds are not on the Pareto front, and a point on it need not be better than its neighbours for sure."
# A summary says how long each method took, not when: methods may have been timed in different calls.
NO_FRONT = (
    "Each method was timed by itself, maybe in another call and beside other work on the machine, and the seconds have no interval: "
    "small differences of cost mean nothing, and no Pareto front is drawn. To compare costs, count passes."
)


def accuracy_charts(summary: Summary, folder: Path) -> list[Chart | str]:
    """Accuracy of each method with its Wilson interval against what it costs: passes a prompt, and seconds where they were measured."""
    split, rows = summary.split, summary.pooled
    if not rows:
        return [f"No accuracy against passes on the {split} split: no method was evaluated."]
    layers = rows[0].n_layers
    label = f"mean passes a prompt (the base makes {layers})"
    charts: list[Chart | str] = [_accuracy(summary, folder, f"accuracy_{split}", label, "passes")]
    if all(row.seconds > 0 for row in rows):  # an older summary does not say
        label = "seconds a question, decisions included (controls are given their routes)"
        charts.append(_accuracy(summary, folder, f"accuracy_seconds_{split}", label, "seconds a question"))
    return charts


def _accuracy(summary: Summary, folder: Path, name: str, label: str, unit: str) -> Chart:
    """Accuracy against passes, with the Pareto front, or against seconds, without."""
    rows, split, has_front = summary.pooled, summary.split, unit == "passes"
    costs = [row.mean_passes if has_front else row.seconds / row.n for row in rows]
    columns = 4 if len(rows) <= NARROW else 3
    figure, axes = new_figure(height=4.5 + 0.2 * max(0, len(rows) // columns - 2))
    from matplotlib.transforms import ScaledTranslation

    data = []
    # One in a thousand of the dearest: closer costs are one to the eye.
    unit_cost = max(costs) / 1000
    shared = Counter(round(cost / unit_cost) for cost in costs)
    room = max(0.15 * (max(costs) - min(costs)), max(costs) / 60)
    seen: Counter[float] = Counter()
    nudge = 0.5 * room  # of a browser's axis an inch, or so
    for index, (row, cost) in enumerate(zip(rows, costs, strict=True)):
        # The controls make exactly the routers' passes: side by side, each is seen.
        place = round(cost / unit_cost)
        aside = min(9, SHIFTED / shared[place]) * (seen[place] - (shared[place] - 1) / 2) / 72
        seen[place] += 1
        accuracy, shown = 100 * row.accuracy, display_name(row.method)
        low, high = max(accuracy - 100 * row.wilson_low, 0), max(100 * row.wilson_high - accuracy, 0)
        axes.errorbar(
            cost, accuracy, yerr=[[low], [high]], fmt=marker(index), color=colour(index),
            capsize=3, label=shown, transform=axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans),
        )  # fmt: skip
        hover = f"{shown}: {accuracy:.1f} % ({accuracy - low:.1f} to {accuracy + high:.1f}), {cost:.4g} {unit}, n = {row.n}"
        data.append(plots.points([cost + aside * nudge], [accuracy], [low], [high], shown, index, hover))
        if row.method == summary.reference:
            axes.axhline(accuracy, color="grey", linewidth=0.8, linestyle=":")
    if has_front:
        judged = [not owner_of(row.method) and row.method not in UPPER_BOUNDS for row in rows]
        best = pareto_front([(cost, 100 * row.accuracy) for row, cost, is_judged in zip(rows, costs, judged, strict=True) if is_judged])
        axes.step(*zip(*best, strict=True), where="post", color="grey", linewidth=1, linestyle="--", label="Pareto front", zorder=0)
        data = [plots.front(*zip(*best, strict=True)), *data]
    # Shifted points do not count for matplotlib's own limits.
    axes.set_xlim(min(costs) - room, max(costs) + room)
    axes.set_ylim(100 * min(row.wilson_low for row in rows) - 2, 100 * max(row.wilson_high for row in rows) + 2)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy (%), 95 % Wilson interval")
    sizes = sorted({row.n for row in rows})
    n = " to ".join(map(str, sizes[:: max(len(sizes) - 1, 1)]))
    tasks = ", ".join(summary.tasks) if len(summary.tasks) <= TITLED else f"{len(summary.tasks)} tasks"
    title = f"Accuracy against {unit}: {tasks}, {split} split, n = {n} questions"
    entitle(axes, title)
    figure.legend(loc="outside lower center", ncols=columns)  # outside: a box among the points would hide intervals
    header = ("method", "task", "n", "accuracy", "wilson_low", "wilson_high", unit)
    table = [
        (row.method, row.task, row.n, *map(number, (row.accuracy, row.wilson_low, row.wilson_high, cost)))
        for row, cost in zip(rows, costs, strict=True)
    ]
    plot = plots.figure(data, label, "accuracy (%), 95 % interval")
    return write_chart(figure, folder, name, title, f"{INTERVALS} {FRONT if has_front else NO_FRONT}", header, table, plot)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value), those that no point equally cheap or cheaper beats, from the cheapest on."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def usage_map(questions: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]], folder: Path, split: str) -> Chart | str:
    """Mean passes through each block by method and task; 1 is the base. Controls make their owner's passes and are left out.

    `questions`: rows of the per-question files by (split, method, task).
    """
    rows: dict[str, list[float]] = {}
    sizes = []
    table = []
    taken: dict[tuple[str, str], list[Route]] = {}
    for (where, method, task), answers in sorted(questions.items()):
        if where == split and not owner_of(method) and (routes := [Route.parse(row["route"]) for row in answers if row.get("route")]):
            taken[method, task] = routes
    # A method that leaves the base's route somewhere is shown everywhere: that it does not on a task is a finding.
    leaving = {method for (method, _), routes in taken.items() if not all(route.is_full for route in routes)}
    taken = {place: routes for place, routes in taken.items() if place[0] in leaving}
    if len(taken) > MAPPED:
        taken = {(method, POOLED): [route for place, part in taken.items() if place[0] == method for route in part] for method, _ in taken}
    for (method, task), routes in taken.items():
        means = mean_usage(routes)
        rows[display_name(method) if task == POOLED else f"{display_name(method)}, {task}"] = means
        sizes.append(len(routes))
        table += [(method, task, block, len(routes), number(mean)) for block, mean in enumerate(means)]
    if not rows:
        return f"No passes by block on the {split} split: no method that leaves the base's route has been evaluated there."
    figure, axes = new_figure(height=1.6 + 0.36 * len(rows))
    from matplotlib.colors import LinearSegmentedColormap

    values, labels = list(rows.values()), [f"{name} (n = {n})" for name, n in zip(rows, sizes, strict=True)]
    shown = axes.imshow(values, aspect="auto", vmin=0, vmax=2, cmap=LinearSegmentedColormap.from_list("usage", list(plots.USAGE)))
    axes.set_yticks(range(len(rows)), labels)
    whole_ticks(axes)
    axes.set_xlabel("block (0 is the first)")
    title = f"Mean passes through each block, {split} split"
    entitle(axes, title)
    figure.colorbar(shown, ax=axes, label="mean passes a prompt", ticks=[0, 1, 2])
    reversed_rows = {"autorange": "reversed", "automargin": True}
    plot = plots.figure([plots.heat(values, list(rows), labels)], "block (0 is the first)", "", yaxis=reversed_rows)
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
    n_bars = len(counts) * len(Action)
    is_crowded = n_bars > plots.MANY_BARS
    data = []
    for index, (task, count) in enumerate(counts.items()):
        heights = [count[action] for action in Action]
        places = [action + (index - (len(counts) - 1) / 2) * width for action in Action]
        labels = [f"{height:,}" for height in heights]
        # A bar of no labels has no place on a log scale: it is drawn at the axis and says 0.
        drawn = [max(height, 0.5) for height in heights]
        bars = axes.bar(places, drawn, width * 0.9, label=task, color=colour(index), hatch=plots.hatch(index))
        axes.bar_label(bars, labels=labels, fontsize=8, rotation=90 if is_crowded else 0, padding=2)
        names = [action.name.lower() for action in Action]
        bar = plots.bars(names, drawn, task, index, "%{fullData.name}, %{x}: %{text} labels")
        data.append(plots.numbered(bar, labels, n_bars))
    axes.set_yscale("log")
    axes.set_ylim(0.5, (6 if is_crowded else 2) * axes.get_ylim()[1])  # room for the counts above the bars
    axes.set_xticks([int(action) for action in Action], [action.name.lower() for action in Action])
    axes.set_xlabel("action of the kept route at a block")
    axes.set_ylabel("labels (blocks x questions), log scale")
    n_routes = sum(record.chosen is not None for found in records.values() for record in found)
    title = f"Labels of the search, n = {n_routes} kept routes"
    entitle(axes, title)
    figure.legend(loc="outside lower center", ncols=4)
    rows = [(task, action.name.lower(), count[action]) for task, count in counts.items() for action in Action]
    scale = plots.axis(axes.get_ylabel(), **plots.LOG, range=[-0.3, math.log10(axes.get_ylim()[1])])
    plot = plots.figure(data, "action of the kept route at a block", "", yaxis=scale, barmode="group")
    caption = "Labels the search produced, by task, on a log scale."
    return write_chart(figure, folder, "label_distribution", title, caption, ("task", "action", "labels"), rows, plot)


def label_counts(records: Iterable[Any]) -> Counter[Action]:
    """Actions of all kept routes."""
    return Counter(action for record in records if record.chosen is not None for action in record.chosen)
