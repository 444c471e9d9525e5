"""Figures 1, 4, 5 and 7 to 11 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drllm.core.route import Action, Route
from drllm.core.text import percent, with_interval
from drllm.paper import charts
from drllm.paper.charts import Point
from drllm.paper.exhibits import (
    ROUTERS,
    Claim,
    Exhibit,
    ablation,
    after_routers,
    against,
    answers,
    comparison,
    in_domain,
    last_scores,
    pooled,
    searches,
    train_routers,
    weighed,
)
from drllm.paper.setup import Setup
from drllm.paper.stages import Bench, Evaluate, Stage, Turn
from drllm.reporting.chart import Axis, Chart, number
from drllm.reporting.figures import accuracy_charts, label_distribution, mean_usage, usage_map
from drllm.reporting.parts import Bullets, Paragraph, Part, Table
from drllm.reporting.summary_table import verdict
from drllm.runs.names import BASE
from drllm.runs.records import read_records
from drllm.runs.summary import SummaryRow

WIDTHS, DEPTHS, WINDOWS = (64, 128, 256, 512, 1024), (1, 2, 3, 4), (1, 2, 4, 8, 16)  # section 6; 128, 2 and 8 are the paper's choice
SWEEPS = (("width", WIDTHS, "hidden width"), ("depth", DEPTHS, "linear layers"), ("n_windows", WINDOWS, "windows"))
CHOSEN = {"width": 128, "depth": 2, "n_windows": 8}
CONTROL = (-1.0, -0.75, -0.6, -0.5, -0.4, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "focal (paper)": (ROUTERS, {}),
    "weighted cross-entropy": ("routers_weighted", {"gamma": 0.0}),
    "plain cross-entropy": ("routers_plain", {"gamma": 0.0, "beta": 0.0}),
}
THIRDS = ("early blocks", "middle blocks", "late blocks")
DIFFERENCE = "points over the base, 95 %"
PROBABILITIES = "How sure the routers are of each action, on the fit questions with a kept path, along it; the knob blends these."
POOLED = "Accuracy and passes of all questions together, whatever their task; claims are of the mean over tasks."


def _variant(option: str, value: int) -> str:
    """The policy of one ablation; the paper's own choice is the routers."""
    return ROUTERS if CHOSEN[option] == value else f"routers_{option.removeprefix('n_')}_{value}"


def _sweep(setup: Setup, option: str, values: Sequence[int]) -> list[Stage]:
    return [train_routers(setup, _variant(option, value), **({} if CHOSEN[option] == value else {option: value})) for value in values]


def _swept(setup: Setup, option: str, values: Sequence[int]) -> Evaluate:
    return ablation(setup, [_variant(option, value) for value in values])


def _difference(row: SummaryRow, x: float | str) -> Point:
    return Point(x, 100 * row.difference, 100 * row.difference_low, 100 * row.difference_high)


def _over_base(bench: Bench, stage: Evaluate, policy: str, x: float | str) -> Point:
    """Each task weighing the same, as in claims."""
    found = against(bench, stage, policy, BASE)
    return Point(x, 100 * found.mean, 100 * found.low, 100 * found.high)


def _accuracy(row: SummaryRow, x: float) -> Point:
    return Point(x, 100 * row.accuracy, 100 * row.wilson_low, 100 * row.wilson_high)


def _sweep_chart(bench: Bench, option: str, values: Sequence[int], name: str, x: str, by_task: bool = False) -> Chart:
    stage = _swept(bench.setup, option, values)
    summary = bench.run(stage)
    rows = {(row.task, row.method): row for row in summary.rows}
    names = {value: f"{value}{' (paper)' if CHOSEN[option] == value else ''}" for value in values}
    if by_task:
        series = {task: [_difference(rows[task, _variant(option, value)], names[value]) for value in values] for task in summary.tasks}
    else:
        series = {"mean over tasks": [_over_base(bench, stage, _variant(option, value), names[value]) for value in values]}
    n = sum(rows[task, BASE].n for task in summary.tasks)
    title = f"Routers by {x}, tune split, n = {n} questions"
    caption = f"Accuracy against the base, which is the dotted line, by {x}; intervals that overlap tell nothing apart."
    return charts.curves(name, title, caption, (Axis(x), DIFFERENCE), series, base=0)


def _sweep_table(bench: Bench, option: str, values: Sequence[int], x: str) -> Table:
    summary = bench.run(_swept(bench.setup, option, values))
    rows = []
    for value in values:
        policy = _variant(option, value)
        row, (scores, _) = pooled(summary, policy), last_scores(bench, policy)
        rows.append((str(value), percent(row.accuracy), f"{row.mean_passes:.2f}", scores["macro_f1"]))
    return Table((x, "accuracy, %", "mean passes", "macro-F1, %"), tuple(rows), POOLED)


def _best(bench: Bench, option: str, values: Sequence[int], text: str) -> Claim:
    """The claim that the paper's choice is best, against each of the others."""
    stage = _swept(bench.setup, option, values)
    found = [against(bench, stage, ROUTERS, _variant(option, value)) for value in values if CHOSEN[option] != value]
    best = min(found, key=lambda difference: difference.mean)
    return weighed(text, found, f"Against the best other: {best}")


def _fig1(bench: Bench) -> list[Part]:
    summary = bench.run(in_domain(bench.setup))
    shown = accuracy_charts(summary)
    return [*(part if isinstance(part, Chart) else Paragraph(part) for part in shown), Bullets((verdict(summary, ROUTERS),), strong=True)]


def _fig4(bench: Bench) -> list[Part]:
    stage = in_domain(bench.setup)
    split = bench.run(stage).split
    rows = {(split, ROUTERS, task): answers(bench, stage, ROUTERS, task) for task in stage.tasks}
    heat = usage_map(rows, split)
    groups: dict[str, dict[str, list[float]]] = {}
    for task in stage.tasks:
        routes = [Route.parse(row["route"]) for row in rows[split, ROUTERS, task]]
        n = len(routes[0])
        cuts = (0, n // 3, 2 * n // 3, n)
        groups[task] = {
            f"{third} ({low} to {high - 1})": [sum(route[block] for block in range(low, high)) / (high - low) for route in routes]
            for third, low, high in zip(THIRDS, cuts, cuts[1:], strict=False)
            if high > low
        }
    caption = "Mean passes a block of each prompt, by thirds of the model: median, quartiles, 5th and 95th percentile; the base makes 1."
    title = f"Passes by thirds of the blocks, {split} split"
    box = charts.boxes("thirds", title, caption, "passes a block", groups)
    return [heat if isinstance(heat, Chart) else Paragraph(heat), box]


def _fig5_stages(setup: Setup) -> list[Stage]:
    trained = [stage for option, values, _ in SWEEPS for stage in _sweep(setup, option, values)]
    return [*searches(setup), *trained, *(_swept(setup, option, values) for option, values, _ in SWEEPS)]


def _fig5(bench: Bench) -> list[Part]:
    parts: list[Part] = []
    for option, values, x in SWEEPS:
        parts += [_sweep_chart(bench, option, values, f"by_{option}", x), _sweep_table(bench, option, values, x)]
    lines = (
        _best(bench, "width", WIDTHS, "a hidden width of 128 is best"),
        _best(bench, "depth", DEPTHS, "two linear layers are best"),
    )
    return [*parts, Bullets(lines, strong=True)]


def _turned(setup: Setup) -> Evaluate:
    return ablation(setup, [Turn(p).policy for p in CONTROL])


def _fig7(bench: Bench) -> list[Part]:
    stage = _turned(bench.setup)
    summary = bench.run(stage)
    rows = [(p, pooled(summary, Turn(p).policy)) for p in CONTROL]
    base = pooled(summary, BASE)
    title = f"Control knob p from -1 (skip) to 1 (repeat), tune split, n = {base.n} questions"
    caption = (
        "Accuracy and mean passes as the knob turns: p = -0.5 is the routers, 0.5 the base's route, -1 skips and 1 repeats every block. "
        "The base has no knob: its line is level."
    )
    turned, level = "routers under the knob", (CONTROL[0], CONTROL[-1])
    panels = {
        "accuracy (%), 95 % Wilson interval": {turned: [_accuracy(row, p) for p, row in rows], BASE: [_accuracy(base, p) for p in level]},
        "mean passes a prompt": {
            turned: [Point(p, row.mean_passes) for p, row in rows], BASE: [Point(p, base.mean_passes) for p in level]
        },
    }  # fmt: skip
    told = [(turned, row, f"p {p:+g}") for p, row in rows] + [(BASE, base, "")]
    keys = ("mean_passes", "accuracy", "wilson_low", "wilson_high")
    numbers = [(series, *(number(getattr(row, key)) for key in keys), p) for series, row, p in told]
    chart = charts.stacked("knob", title, caption, "control knob p", panels, ("series", *keys, "p"), numbers)
    table = Table(
        ("p", "accuracy, %", "mean passes", "points over the base"),
        tuple((f"{p:+.2f}", percent(row.accuracy), f"{row.mean_passes:.2f}",
               with_interval(row.difference, row.difference_low, row.difference_high))
              for p, row in rows),
        POOLED,
    )  # fmt: skip
    return [chart, table, _probabilities(bench)]


def _probabilities(bench: Bench) -> Chart:
    """What the routers make of the states they learned from, along the label path."""
    from drllm.methods.routers import kept_features
    from drllm.policies.routers import Routers

    routers = bench.policy(ROUTERS)
    assert isinstance(routers, Routers)
    features = kept_features(bench.routed, bench.training_data, routers.config.n_windows)
    logits_LNC = routers.to("cpu").all_logits(features.pooled.transpose(0, 1), features.valid)
    found = logits_LNC.softmax(-1).flatten(0, 1)
    series = {action.name.lower(): found[:, action].tolist() for action in Action}
    n, layers = features.labels.shape
    title = f"Probabilities of the routers, {n} fit questions x {layers} blocks"
    return charts.histogram("probabilities", title, PROBABILITIES, "probability", series)


def _fig8_stages(setup: Setup) -> list[Stage]:
    return [*searches(setup), *(train_routers(setup, policy, **options) for policy, options in LOSSES.values()), _lost(setup)]


def _lost(setup: Setup) -> Evaluate:
    return ablation(setup, [policy for policy, _ in LOSSES.values()])


def _fig8(bench: Bench) -> list[Part]:
    stage = _lost(bench.setup)
    summary = bench.run(stage)
    points = [_over_base(bench, stage, policy, name) for name, (policy, _) in LOSSES.items()]
    rows = []
    for name, (policy, _) in LOSSES.items():
        row, (scores, _) = pooled(summary, policy), last_scores(bench, policy)
        shown = (scores[key] for key in ("macro_f1", "f1_skip", "f1_execute", "f1_repeat"))
        rows.append((name, percent(row.accuracy), f"{row.mean_passes:.2f}", *shown))
    header = ("loss", "accuracy, %", "mean passes", "macro-F1, %", "F1 skip", "F1 execute", "F1 repeat")
    n = pooled(summary, BASE).n
    caption = "Accuracy against the base (the dotted line), mean over tasks, by the loss that the routers were trained with."
    title = f"Losses, tune split, n = {n} questions"
    found = [against(bench, stage, ROUTERS, policy) for policy, _ in LOSSES.values() if policy != ROUTERS]
    lines = [weighed("focal loss is best", found)]
    return [
        charts.curves("losses", title, caption, (Axis("loss"), DIFFERENCE), {"routers": points}, base=0),
        Table(header, tuple(rows), f"{POOLED} F1 is on held-back questions along the label path, where any were held back."),
        Bullets(tuple(lines), strong=True),
    ]


def _fig9(bench: Bench) -> list[Part]:
    few, many = (_variant("n_windows", value) for value in (WINDOWS[0], WINDOWS[-1]))
    most = against(bench, _swept(bench.setup, "n_windows", WINDOWS), many, few)
    return [
        _sweep_chart(bench, "n_windows", WINDOWS, "windows_by_task", "windows", by_task=True),
        Bullets((weighed("more windows are better", [most]),), strong=True),
    ]


def _fig10(bench: Bench) -> list[Part]:
    records = {task: list(read_records(bench.setup.run.search(task))) for task in bench.setup.tasks}
    found = label_distribution(records)
    return [found if isinstance(found, Chart) else Paragraph(found)]


def _fig11(bench: Bench) -> list[Part]:
    stage = in_domain(bench.setup)
    split = bench.run(stage).split
    means = {}
    for task in stage.tasks:
        routes = [Route.parse(row["route"]) for row in answers(bench, stage, ROUTERS, task)]
        means[task] = mean_usage(routes)
    caption = "Mean passes through each block, by task: below 1 prompts skip it, above 1 they repeat it."
    return [
        charts.usage("usage_by_block", f"Usage of each block, {split} split", caption, means),
        comparison(bench.run(stage), "The evaluation it is of."),
    ]


FIGURES = (
    Exhibit("fig1", "Figure 1: accuracy against block passes", after_routers(in_domain), _fig1),
    Exhibit("fig4", "Figure 4: where routers skip and repeat", after_routers(in_domain), _fig4),
    Exhibit("fig5", "Figure 5: width, depth and windows of the routers", _fig5_stages, _fig5),
    Exhibit("fig7", "Figure 7: the control knob", after_routers(*(lambda _, p=p: Turn(p) for p in CONTROL), _turned), _fig7),
    Exhibit("fig8", "Figure 8: losses", _fig8_stages, _fig8),
    Exhibit(
        "fig9",
        "Figure 9: windows, by task",
        lambda s: [*searches(s), *_sweep(s, "n_windows", WINDOWS), _swept(s, "n_windows", WINDOWS)],
        _fig9,
    ),
    Exhibit("fig10", "Figure 10: labels by task", searches, _fig10),
    Exhibit("fig11", "Figure 11: usage of each block", after_routers(in_domain), _fig11),
)
