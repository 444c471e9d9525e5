"""The report's pictures, each described with its numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drllm.core.route import Route, Span
from drllm.reporting.drawing import COLOURS, level, number, spot, usage_colours, whole
from drllm.reporting.parts import Chart, Paragraph
from drllm.runs.names import BASE, owner_of
from drllm.runs.summary import POOLED, Summary

TITLED = 3  # tasks that fit a title
SHIFTED = 24  # points: how far apart methods of one cost are drawn in all
NARROW = 8  # methods whose names fit four columns of a legend
MAPPED = 42  # rows of a heat map by method and task; of more, tasks are pooled
KNOWN = (BASE, "static", "looped", "codebook", "routers", "healed", "promised")  # one for each colour
FRAME = "#1b1f24"  # around the blocks of a loop
SCALE = "1 is the base, below 1 prompts skip the block, above 1 they repeat it."
INTERVALS = "The intervals are of single methods, not of differences; methods of equal cost stand side by side."
FRONT = "Blind baselines and upper bounds are not on the Pareto front, and a point on it need not be better than its neighbours for sure."


Questions = Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]  # rows of the per-question files by (split, method, task)


def accuracy_chart(summary: Summary) -> Chart | Paragraph:
    """Accuracy of each method with its Wilson interval against what it costs, passes a prompt; and the Pareto front."""
    split, rows, tasks = summary.split, summary.pooled, summary.tasks
    if not rows:
        return Paragraph(f"No accuracy against passes on the {split} split: no method was evaluated.")
    costs, looks = [row.mean_passes for row in rows], _looks([row.method for row in rows])
    front = pareto_front((row.mean_passes, 100 * row.accuracy) for row in rows if not owner_of(row.method))

    def draw(panels: Sequence[Any]) -> None:
        (axes,) = panels
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color="grey", linewidth=1, linestyle="--", label="Pareto front", zorder=0)
        for row, aside in zip(rows, _side_by_side(costs), strict=True):
            y, low, high = (100 * value for value in (row.accuracy, row.wilson_low, row.wilson_high))
            spot(axes, row.method, looks[row.method], row.mean_passes, y, max(y - low, 0), max(high - y, 0), aside)
            if row.method == summary.reference:
                level(axes, y)
        axes.set_ylim(100 * min(row.wilson_low for row in rows) - 2, 100 * max(row.wilson_high for row in rows) + 2)
        axes.set_ylabel("accuracy (%), 95 % Wilson interval")
        # The marks that stand aside do not count for matplotlib's own limits.
        room = max(0.15 * (max(costs) - min(costs)), max(costs) / 60)
        axes.set_xlim(min(costs) - room, max(costs) + room)
        axes.set_xlabel(f"mean passes a prompt (the base makes {rows[0].n_layers})")

    sizes = sorted({row.n for row in rows})
    n = " to ".join(map(str, sizes[:: max(len(sizes) - 1, 1)]))
    columns = 4 if len(rows) <= NARROW else 3
    listed = ", ".join(tasks) if len(tasks) <= TITLED else f"{len(tasks)} tasks"
    title = f"Accuracy against passes: {listed}, {split} split, n = {n} questions"
    header = ("method", "task", "n", "accuracy", "wilson_low", "wilson_high", "passes")
    numbers = [
        (row.method, row.task, row.n, *map(number, (row.accuracy, row.wilson_low, row.wilson_high, row.mean_passes))) for row in rows
    ]
    height = 4.5 + 0.2 * max(0, len(rows) // columns - 2)
    return Chart(f"accuracy_{split}", title, f"{INTERVALS} {FRONT}", header, tuple(numbers), draw, height=height, legend=columns)


def _looks(methods: Sequence[str]) -> dict[str, int]:
    """What chooses each method's colour and marker: the same in every picture, a baseline's colour its owner's."""
    found: dict[str, int] = {}
    for name in sorted(methods, key=lambda name: bool(owner_of(name))):
        place = KNOWN.index(name) if name in KNOWN else 3 * len(COLOURS)
        if owner := owner_of(name):
            place = found.get(owner, KNOWN.index(owner) if owner in KNOWN else 0) + len(COLOURS) * (1 + name.startswith("random"))
        while place in found.values():
            place += len(COLOURS) if owner else 1
        found[name] = place
    return found


def _side_by_side(costs: Sequence[float]) -> Iterable[float]:
    """Inches to the right of each method: baselines make exactly the routers' passes, and each must be seen."""
    unit = max(costs) / 1000  # of the dearest: closer costs look the same
    shared = Counter(round(cost / unit) for cost in costs)
    seen: Counter[int] = Counter()
    for place in (round(cost / unit) for cost in costs):
        yield min(9, SHIFTED / shared[place]) * (seen[place] - (shared[place] - 1) / 2) / 72
        seen[place] += 1


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value), those that no point equally cheap or cheaper beats, from the cheapest on."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def usage_map(questions: Questions, split: str) -> Chart | Paragraph:
    """Mean passes through each block by method and task; 1 is the base. Blind baselines make their owner's passes and are left out.

    What a loop runs again counts; the commonest loop of a row is framed.
    """
    taken = _routes_taken(questions, split)
    # A method that leaves the base's route somewhere is shown everywhere: that it does not on a task is a finding.
    asked = {method for method, _ in taken}
    leaving = {method for (method, _), routes in taken.items() if not all(route.is_full for route in routes)}
    taken = {place: routes for place, routes in taken.items() if place[0] in leaving}
    if len(taken) > MAPPED:
        taken = {(method, POOLED): [route for place, part in taken.items() if place[0] == method for route in part] for method, _ in taken}
    if not taken:
        return Paragraph(f"No passes by block on the {split} split: no method that leaves the base's route has been evaluated there.")
    means = {place: mean_usage(routes) for place, routes in taken.items()}
    names = [method if task == POOLED else f"{method}, {task}" for method, task in taken]
    labels = [f"{name} (n = {len(routes)})" for name, routes in zip(names, taken.values(), strict=True)]
    title, caption = f"Mean passes through each block, {split} split", SCALE
    if same := sorted(asked - leaving - {BASE}):
        caption += f" The base's route on every prompt: {', '.join(same)}."
    loops = [(row, loop.first, loop.last) for row, routes in enumerate(taken.values()) for loop in _commonest_loop(routes)]
    caption += " A frame stands around the commonest loop of a row." if loops else ""
    header = ("method", "task", "block", "n", "mean_passes")
    rows = tuple((*place, block, len(taken[place]), number(mean)) for place, found in means.items() for block, mean in enumerate(found))

    def draw(panels: Sequence[Any]) -> None:
        from matplotlib.patches import Rectangle

        (axes,) = panels
        shown = axes.imshow(list(means.values()), aspect="auto", vmin=0, vmax=2, cmap=usage_colours())
        for row, first, last in loops:
            axes.add_patch(Rectangle((first - 0.45, row - 0.4), last - first + 0.9, 0.8, fill=False, edgecolor=FRAME, linewidth=2))
        axes.set_yticks(range(len(labels)), labels)
        axes.figure.colorbar(shown, ax=axes, label="mean passes a prompt", ticks=[0, 1, 2])
        whole(axes.xaxis)
        axes.set_xlabel("block (0 is the first)")

    return Chart(f"usage_{split}", title, caption, header, rows, draw, height=1.6 + 0.36 * len(names))


def _routes_taken(questions: Questions, split: str) -> dict[tuple[str, str], list[Route]]:
    """The routes of each (method, task) of a split, without blind baselines and methods that decide no route."""
    taken = {}
    for (where, method, task), answers in sorted(questions.items()):
        if where == split and not owner_of(method) and (routes := [Route.parse(row["route"]) for row in answers if row.get("route")]):
            taken[method, task] = routes
    return taken


def _commonest_loop(routes: Sequence[Route]) -> list[Span]:
    """The span that most of the routes run again; none where none does."""
    counts = Counter(span for route in routes for span in dict.fromkeys(span for _, span in route.loops))
    return [span for span, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1]]


def mean_usage(routes: Sequence[Route]) -> list[float]:
    return [sum(route[block] for route in routes) / len(routes) for block in range(len(routes[0]))]
