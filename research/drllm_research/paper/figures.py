"""Figures 1, 4, 5 and 7 to 11 of the paper."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drllm.core.route import Action
from drllm.core.text import percent
from drllm.reporting.drawing import number
from drllm.reporting.figures import accuracy_chart, mean_usage, usage_map
from drllm.reporting.parts import Bullets, Chart, Part, Table
from drllm.reporting.summary_table import by_task, verdict
from drllm.runs.names import BASE
from drllm.runs.summary import SummaryRow
from drllm_research.paper import charts
from drllm_research.paper.charts import Point
from drllm_research.paper.claims import Difference, against, answers, mean_of, pooled, routes_of, weighed
from drllm_research.paper.exhibits import Exhibit, ablation, after_routers, in_domain, last_scores, searches, train_routers
from drllm_research.paper.setup import Setup
from drllm_research.paper.stages import ROUTERS, Bench, Evaluate, Stage

CONTROL = (-1.0, -0.75, -0.6, -0.5, -0.4, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
THIRDS = ("early blocks", "middle blocks", "late blocks")
DIFFERENCE = "points over the base, 95 %"
PROBABILITIES = "How sure the routers are of each action, on the fit questions with a kept path, along it; the control blends these."
LAYERS = "A query's layers are counted as the paper counts them: over its prompt and every generated token."
POOLED = "Accuracy and passes of all questions together, whatever their task; claims are of the mean over tasks."


@dataclass(frozen=True)
class Turn(Stage):
    """Trained routers at one setting of the paper's control (appendix C)."""

    control: float

    @property
    def policy(self) -> str:
        return f"{ROUTERS}@{self.control:+.2f}"

    @property
    def name(self) -> str:
        return f"control at {self.control:+.2f}"

    def command(self, setup: Setup) -> str:
        owner, mine = (str(setup.out / name) for name in (ROUTERS, self.policy))
        turned = f"m.policy = m.policy.with_control({self.control}); m.save_pretrained({mine!r})"
        return shlex.join(["python", "-c", f"from drllm import RoutedModel; m = RoutedModel.from_pretrained({owner!r}); {turned}"])

    def run(self, bench: Bench) -> Any:
        from drllm.evaluation.fit import under_policy

        with under_policy(bench.routed, bench.policy(ROUTERS).with_control(self.control)):
            bench.routed.save_pretrained(bench.setup.run.policy(self.policy))
        return self.policy


@dataclass(frozen=True)
class Sweep:
    """Routers trained in several ways, compared on tune."""

    x: str  # what differs, in words
    policies: dict[str, dict[str, Any]]  # the options of each policy's training
    names: tuple[str, ...]  # of the policies in tables; the paper's choice is marked in charts

    @classmethod
    def of(cls, option: str, x: str, choice: int, values: Sequence[int]) -> Sweep:
        """Over the values of one option. `choice`: the paper's, whose policy is the routers."""
        own = f"routers_{option.removeprefix('n_')}"
        policies = {ROUTERS if value == choice else f"{own}_{value}": {} if value == choice else {option: value} for value in values}
        return cls(x, policies, tuple(map(str, values)))

    @property
    def labels(self) -> dict[str, str]:
        """What stands on the x axis for each policy."""
        named = zip(self.policies, self.names, strict=True)
        return {policy: f"{name} (paper)" if policy == ROUTERS and "(paper)" not in name else name for policy, name in named}

    def compared(self, setup: Setup) -> Evaluate:
        return ablation(setup, list(self.policies))

    def over_base(self, bench: Bench) -> dict[str, list[Point]]:
        """Each policy less the base, each task weighing the same, as in claims."""
        found = {label: against(bench, self.compared(bench.setup), policy, BASE) for policy, label in self.labels.items()}
        return {"mean over tasks": [Point(label, 100 * each.mean, 100 * each.low, 100 * each.high) for label, each in found.items()]}

    def by_task(self, bench: Bench) -> dict[str, list[Point]]:
        """Each policy less the base on each task."""
        summary = bench.run(self.compared(bench.setup))
        rows = {(row.task, row.method): row for row in summary.rows}
        return {task: [_difference(label, rows[task, policy]) for policy, label in self.labels.items()] for task in summary.tasks}

    def chart(self, bench: Bench, name: str, series: dict[str, list[Point]]) -> Chart:
        title = f"Routers by {self.x}, tune split, n = {self.n(bench)} questions"
        caption = f"Accuracy against the base, which is the dotted line, by {self.x}; intervals that overlap tell nothing apart."
        return charts.curves(name, title, caption, (self.x, DIFFERENCE), series, base=0)

    def n(self, bench: Bench) -> int:
        return pooled(bench.run(self.compared(bench.setup)), BASE).n

    def table(self, bench: Bench, scores: Mapping[str, str], caption: str = "") -> Table:
        """Accuracy and passes of each policy, and these scores of its training, by their names in the metrics."""
        summary = bench.run(self.compared(bench.setup))
        rows = []
        for policy, name in zip(self.policies, self.names, strict=True):
            row, (found, _) = pooled(summary, policy), last_scores(bench, policy)
            rows.append((name, percent(row.accuracy), f"{row.mean_passes:.2f}", *(found[score] for score in scores)))
        return Table((self.x, "accuracy, %", "mean passes", *scores.values()), tuple(rows), f"{POOLED}{caption}")

    def against_others(self, bench: Bench) -> list[Difference]:
        """The paper's choice less each of the others."""
        return [against(bench, self.compared(bench.setup), ROUTERS, policy) for policy in self.policies if policy != ROUTERS]


WINDOWS = (1, 2, 4, 8, 16)
SWEEPS = {  # section 6
    "width": Sweep.of("width", "hidden width", 128, (64, 128, 256, 512, 1024)),
    "depth": Sweep.of("depth", "linear layers", 2, (1, 2, 3, 4)),
    "n_windows": Sweep.of("n_windows", "windows", 8, WINDOWS),
}
LOSSES = Sweep(
    "loss",
    {ROUTERS: {}, "routers_weighted": {"gamma": 0.0}, "routers_plain": {"gamma": 0.0, "beta": 0.0}},
    ("focal (paper)", "weighted cross-entropy", "plain cross-entropy"),
)
MACRO_F1 = {"macro_f1": "macro-F1, %"}
EACH_F1 = {"f1_skip": "F1 skip", "f1_execute": "F1 execute", "f1_repeat": "F1 repeat"}


def _difference(x: str, row: SummaryRow) -> Point:
    return Point(x, 100 * row.difference, 100 * row.difference_low, 100 * row.difference_high)


def _accuracy(x: float, row: SummaryRow) -> Point:
    return Point(x, 100 * row.accuracy, 100 * row.wilson_low, 100 * row.wilson_high)


def after_training(*sweeps: Sweep) -> Callable[[Setup], list[Stage]]:
    """The search, each policy of the sweeps, and their comparisons."""

    def stages(setup: Setup) -> list[Stage]:
        trained = [train_routers(setup, policy, **options) for sweep in sweeps for policy, options in sweep.policies.items()]
        return [*searches(setup), *trained, *(sweep.compared(setup) for sweep in sweeps)]

    return stages


def _fig1(bench: Bench) -> list[Part]:
    stage = in_domain(bench.setup)
    summary = bench.run(stage)
    rows = []
    for method in bench.there(stage.methods):
        means = (mean_of(bench, stage, method, stage.tasks, column) for column in ("correct", "n_passes", "layers"))
        accuracy, passes, layers = means
        rows.append((method, percent(accuracy), f"{passes:.2f}", f"{layers:.1f}"))
    counted = Table(("mean over tasks", "accuracy, %", "passes a forward", "layers a query"), tuple(rows), LAYERS)
    return [accuracy_chart(summary), counted, Bullets((verdict(summary, ROUTERS),))]


def _fig4(bench: Bench) -> list[Part]:
    stage = in_domain(bench.setup)
    split = bench.run(stage).split
    rows = {(split, ROUTERS, task): answers(bench, stage, ROUTERS, task) for task in stage.tasks}
    groups: dict[str, dict[str, list[float]]] = {}
    for task in stage.tasks:
        routes = routes_of(bench, stage, task)
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
    return [usage_map(rows, split), box]


def _fig5(bench: Bench) -> list[Part]:
    parts: list[Part] = []
    for option, sweep in SWEEPS.items():
        parts += [sweep.chart(bench, f"by_{option}", sweep.over_base(bench)), sweep.table(bench, MACRO_F1)]
    claims = []
    for option, text in (("width", "a hidden width of 128 is best"), ("depth", "two linear layers are best")):
        found = SWEEPS[option].against_others(bench)
        claims.append(weighed(text, found, f"Against the best other: {min(found, key=lambda difference: difference.mean)}"))
    return [*parts, Bullets(tuple(claims))]


def _turned(setup: Setup) -> Evaluate:
    return ablation(setup, [Turn(p).policy for p in CONTROL])


def _fig7(bench: Bench) -> list[Part]:
    stage = _turned(bench.setup)
    summary = bench.run(stage)
    rows = [(p, pooled(summary, Turn(p).policy)) for p in CONTROL]
    base = pooled(summary, BASE)
    title = f"Control p from -1 (skip) to 1 (repeat), tune split, n = {base.n} questions"
    caption = (
        "Accuracy and mean passes as the control turns: p = -0.5 is the routers, 0.5 the base's route, -1 skips and 1 repeats every block. "
        "The base has no control: its line is level."
    )
    turned, level = "routers under the control", (CONTROL[0], CONTROL[-1])
    accuracy = {turned: [_accuracy(p, row) for p, row in rows], BASE: [_accuracy(p, base) for p in level]}
    passes = {turned: [Point(p, row.mean_passes) for p, row in rows], BASE: [Point(p, base.mean_passes) for p in level]}
    panels = {"accuracy (%), 95 % Wilson interval": accuracy, "mean passes a prompt": passes}
    drawn = [(turned, row, f"p {p:+g}") for p, row in rows] + [(BASE, base, "")]
    keys = ("mean_passes", "accuracy", "wilson_low", "wilson_high")
    numbers = [(series, *(number(getattr(row, key)) for key in keys), p) for series, row, p in drawn]
    chart = charts.stacked("knob", title, caption, "control p", panels, ("series", *keys, "p"), numbers)
    cells = tuple((f"{p:+.2f}", percent(row.accuracy), f"{row.mean_passes:.2f}", row.change) for p, row in rows)
    table = Table(("p", "accuracy, %", "mean passes", "points over the base"), cells, POOLED)
    return [chart, table, _probabilities(bench)]


def _probabilities(bench: Bench) -> Chart:
    """What the routers make of the states they learned from, along the label path."""
    from drllm.methods.routers import kept_features

    routers = bench.policy(ROUTERS)
    features = kept_features(bench.routed, bench.training_data, routers.config.n_windows)
    logits_LNC = routers.to("cpu").all_logits(features.pooled.transpose(0, 1), features.valid)
    found = logits_LNC.softmax(-1).flatten(0, 1)
    series = {action.name.lower(): found[:, action].tolist() for action in Action}
    n, layers = features.labels.shape
    title = f"Probabilities of the routers, {n} fit questions x {layers} blocks"
    return charts.histogram("probabilities", title, PROBABILITIES, "probability", series)


def _fig8(bench: Bench) -> list[Part]:
    title = f"Losses, tune split, n = {LOSSES.n(bench)} questions"
    caption = "Accuracy against the base (the dotted line), mean over tasks, by the loss that the routers were trained with."
    (points,) = LOSSES.over_base(bench).values()
    scored = " F1 is on held-back questions along the label path, where any were held back."
    chart = charts.curves("losses", title, caption, ("loss", DIFFERENCE), {"routers": points}, base=0)
    judged = Bullets((weighed("focal loss is best", LOSSES.against_others(bench)),))
    return [chart, LOSSES.table(bench, MACRO_F1 | EACH_F1, scored), judged]


def _fig9(bench: Bench) -> list[Part]:
    sweep = SWEEPS["n_windows"]
    few, *_, many = sweep.policies
    judged = weighed("more windows are better", [against(bench, sweep.compared(bench.setup), many, few)])
    return [sweep.chart(bench, "windows_by_task", sweep.by_task(bench)), Bullets((judged,))]


def _fig10(bench: Bench) -> list[Part]:
    kept = {task: [record.chosen for record in bench.kept(task).records if record.chosen] for task in bench.setup.tasks}
    counts = {task: Counter(min(n, Action.REPEAT) for route in routes for n in route) for task, routes in kept.items()}
    series = {task: [Point(action.name.lower(), count[action]) for action in Action] for task, count in counts.items()}
    title, caption = f"Labels of the search, n = {sum(map(len, kept.values()))} kept routes", "By task, on a log scale."
    labels = "action of the kept route at a block", "labels (blocks x questions), log scale"
    return [charts.curves("label_distribution", title, caption, labels, series, is_log=True)]


def _fig11(bench: Bench) -> list[Part]:
    stage = in_domain(bench.setup)
    split = bench.run(stage).split
    means = {task: mean_usage(routes_of(bench, stage, task)) for task in stage.tasks}
    caption = "Mean passes through each block, by task: below 1 prompts skip it, above 1 they repeat it."
    usage = charts.usage("usage_by_block", f"Usage of each block, {split} split", caption, means)
    return [usage, by_task(bench.run(stage), "The evaluation it is of.")]


FIGURES = (
    Exhibit("fig1", "Figure 1: accuracy against block passes", after_routers(in_domain), _fig1),
    Exhibit("fig4", "Figure 4: where routers skip and repeat", after_routers(in_domain), _fig4),
    Exhibit("fig5", "Figure 5: width, depth and windows of the routers", after_training(*SWEEPS.values()), _fig5),
    Exhibit("fig7", "Figure 7: the control", after_routers(*(lambda _, p=p: Turn(p) for p in CONTROL), _turned), _fig7),
    Exhibit("fig8", "Figure 8: losses", after_training(LOSSES), _fig8),
    Exhibit("fig9", "Figure 9: windows, by task", after_training(SWEEPS["n_windows"]), _fig9),
    Exhibit("fig10", "Figure 10: labels by task", searches, _fig10),
    Exhibit("fig11", "Figure 11: usage of each block", after_routers(in_domain), _fig11),
)
