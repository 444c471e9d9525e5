"""The tables of `research/drllm_research/comparison/__main__.py`, from stored verdicts alone: everything that is stored of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from drllm.core.text import with_interval
from drllm.reporting.drawing import level, number, spot
from drllm.reporting.parts import Chart
from drllm.stats.paired import discordant, even_weights, mcnemar, paired_bootstrap, wilson
from drllm_research.comparison.mixture import best_mixture
from drllm_research.comparison.stored import Results


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ORDER = names(
    """
    base static static_tuned static-per-task static_tuned-per-task told codebook shuffled-codebook shuffled-over-tasks-codebook
    codebook_by_task shuffled-codebook_by_task shuffled-over-tasks-codebook_by_task codebook_by_task_guarded
    shuffled-codebook_by_task_guarded shuffled-over-tasks-codebook_by_task_guarded input_blind random_codebook
    input_blind_by_task random_codebook_by_task polar shuffled-polar shuffled-over-tasks-polar routers shuffled-routers
    shuffled-over-tasks-routers paper shuffled-paper shuffled-over-tasks-paper oracle tale static@0.9 static_tuned@0.9 told@0.9
    codebook@0.9 shuffled-codebook@0.9 shuffled-over-tasks-codebook@0.9 random_codebook@0.9 codebook_by_task@0.9
    shuffled-codebook_by_task@0.9 shuffled-over-tasks-codebook_by_task@0.9 random_codebook_by_task@0.9 codebook_guarded@0.9
    shuffled-codebook_guarded@0.9 shuffled-over-tasks-codebook_guarded@0.9 routers@0.9 mindskip@0.9
    flexidepth@0.9 tale@0.9
    shortgpt@0.9 early_exit@0.9 random_skip@0.9
    """
)
NAMES = {
    "static-per-task": "static-per-task (told the task)",
    "static_tuned-per-task": "static_tuned-per-task (told the task)",
    "told": "best route of each task (told the task)",
    "told@0.9": "best route of each task @0.9 (told the task)",
    "codebook_by_task_guarded": "codebook_by_task, base for unfamiliar prompts",
    "codebook_guarded@0.9": "codebook@0.9, base for unfamiliar prompts",
    "shuffled-codebook_by_task_guarded": "shuffled-codebook_by_task, base for unfamiliar prompts",
    "shuffled-codebook_guarded@0.9": "shuffled-codebook@0.9, base for unfamiliar prompts",
    "oracle": "oracle of 16 routes (told every answer: what the best of them for each question would be)",
    "paper": "routers, preset paper",
    "shuffled-paper": "shuffled routers, preset paper",
    "shuffled-over-tasks-paper": "shuffled-over-tasks routers, preset paper",
}
# Chosen among many on the tune questions: on those very questions their figures flatter, and an interval covers no choice. Static routes
# too: two routes of the list had been looked at on the ARC questions that are tune now.
CHOSEN_ON_TUNE = names(
    """
    static static_tuned static-per-task static_tuned-per-task codebook codebook_by_task polar routers random_codebook input_blind
    random_codebook_by_task input_blind_by_task mindskip flexidepth told codebook_guarded codebook_by_task_guarded
    """
)
# What the conclusions rest on: a method, and those that it has to be above.
CONTRASTS = {
    "codebook": names(
        """
        base static static_tuned told static_tuned-per-task shuffled-codebook shuffled-over-tasks-codebook random_codebook input_blind
        polar routers
        """
    ),
    "codebook_by_task": names(
        """
        base static static_tuned told static_tuned-per-task codebook shuffled-codebook_by_task shuffled-over-tasks-codebook_by_task
        random_codebook_by_task input_blind_by_task polar
        """
    ),
    "polar": names("base static static_tuned told shuffled-polar shuffled-over-tasks-polar"),
    "routers": names("base static static_tuned told shuffled-routers shuffled-over-tasks-routers"),
    "paper": names("base static static_tuned told shuffled-paper shuffled-over-tasks-paper"),
    "routers@0.9": names("base static@0.9 static_tuned@0.9 told@0.9 shuffled-routers@0.9 shuffled-over-tasks-routers@0.9"),
    "codebook@0.9": names(
        """
        base static@0.9 static_tuned@0.9 told@0.9 shuffled-codebook@0.9 shuffled-over-tasks-codebook@0.9 random_codebook@0.9
        routers@0.9 mindskip@0.9 flexidepth@0.9 tale@0.9 shortgpt@0.9 early_exit@0.9 random_skip@0.9
        """
    ),
}
CONTRASTS["codebook_by_task@0.9"] = names(
    """
    base static@0.9 static_tuned@0.9 told@0.9 shuffled-codebook_by_task@0.9 shuffled-over-tasks-codebook_by_task@0.9
    random_codebook_by_task@0.9 codebook@0.9 shortgpt@0.9 random_skip@0.9
    """
)
CONTRASTS["told"] = ("base",)
CONTRASTS["codebook_by_task_guarded"] = names("base static_tuned told codebook_by_task shuffled-codebook_by_task_guarded")
CONTRASTS["codebook_guarded@0.9"] = names("base static_tuned@0.9 told@0.9 codebook@0.9 shuffled-codebook_guarded@0.9")
IN_DOMAIN = {"arc_easy", "arc_challenge", "openbookqa"}
SEVERAL = 7  # marks that make a frontier
TOLD_SHARE = 0.7  # of what knowing the task gains over a static route, for a policy that is not told
CHANCE = {"piqa": 50.0, "sciq": 25.0, "commonsenseqa": 20.0, "boolq": 50.0, "mmlu": 25.0}  # %, one of as many choices
ABOUT = {
    "arc": "one task: ARC",
    "openbookqa": "one task: OpenBookQA",
    "commonsenseqa": "one task: CommonsenseQA",
    "piqa": "one task: PIQA",
    "boolq": "one task: BoolQ",
    "in-domain": "in domain: ARC and OpenBookQA together",
    "mixed": "mixed traffic: five kinds of prompts in six tasks, unlabelled",
    "ood": "out of domain: policies of the in-domain setting, not trained again",
    "letters": "in domain: letters of ARC, OpenBookQA and CommonsenseQA together",
    "kinds": "mixed traffic: prompts of seven tasks, letters, log-likelihoods and numbers, unlabelled",
    "letters-ood": "out of domain, by a letter: policies of the letters setting, not trained again",
    "letters-ood-likelihood": "out of domain, graded as lm-eval does: policies of the letters setting, not trained again",
}
GAPS = names("codebook codebook_by_task polar routers paper codebook@0.9 codebook_by_task@0.9")
Verdicts = dict[str, np.ndarray]
Found = dict[str, list[Verdicts]]  # of each method, one for each seed
Settings = Mapping[str, Any]


class Difference(NamedTuple):
    """A paired difference and its 95 % interval, in points."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return with_interval(*(value / 100 for value in self))


@dataclass(frozen=True)
class Contrast:
    """One method less another: verdicts are means over seeds, so several deals and draws stand in a blind baseline.

    Attributes:
        label: of the row.
        pooled: over all questions.
        even: the mean over tasks; None of one task.
        parts: over parts of the tasks, by name.
        seeds_agree: whether the difference has one sign for every seed of the first method.
    """

    label: str
    pooled: Difference
    even: Difference | None
    parts: Mapping[str, Difference]
    seeds_agree: bool


@dataclass(frozen=True)
class Gap:
    """What is closed of the way from the base to the oracle, in percent: by a policy, by a blind codebook, and the difference."""

    own: float
    blind: str
    of_blind: float
    less: str

    def sentence(self, name: str) -> str:
        closed = f"Of the oracle's gap over the base `{name}` closes {self.own:.0f} % and `{self.blind}` {self.of_blind:.0f} %"
        return f"{closed}; the difference is {self.less}. "

    def cell(self) -> str:
        """Of a table: what is closed beyond the blind codebook. If one of them lies below the base, a difference says nothing: both."""
        if self.own < 0 or self.of_blind < 0:
            none = "none: " if self.own <= 0 else ""
            return f"{none}{self.own:.0f}, blind routes {self.of_blind:.0f}"
        return self.less.replace(" %", "")


@dataclass(frozen=True)
class Section:
    """One setting of one model on one split.

    Attributes:
        setting, split, title, command: what was asked, and by which command.
        rows: the table of methods, by `COLUMNS`, and its row's name by `ROW`.
        notes: sentences under it.
        contrasts: what the conclusions rest on.
        by_task: rows of the table by task, its heads first.
        gaps: of the policies beside which a blind codebook stands, what they close of the oracle's gap.
        frontier: accuracy against passes, where policies of several budgets are stored.
        as_base: rows, but for the base, that run the base for every prompt with every seed.
        seeds: of each row, how many.
    """

    setting: str
    split: str
    title: str
    command: str
    rows: Sequence[Mapping[str, str]]
    notes: Sequence[str]
    contrasts: Sequence[Contrast]
    by_task: Sequence[Sequence[str]] = field(default_factory=tuple)
    gaps: Mapping[str, Gap] = field(default_factory=dict)
    frontier: Chart | None = None
    as_base: Sequence[str] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)


ROW = "row"  # as `--methods` has it
COLUMNS = (
    "method",
    "accuracy, %",
    "vs base, points",
    "vs base, mean over tasks",
    "McNemar p",
    "vs static_tuned of the budget, points",
    "better / worse",
    "passes",
    "prompt seconds, ratio (tune)",
    "training, s",
    "fit / tune questions",
    "vs base, other seeds",
)


def read(answered: Mapping[str, Any], tasks: Sequence[str]) -> Verdicts:
    """One method's verdicts and passes on some tasks, task by task."""
    order = np.concatenate([np.flatnonzero(answered["task"] == task) for task in tasks])
    found = {name: answered[name][order] for name in ("task", "id", "route")}
    return found | {"correct": answered["correct"][order].astype(float), "passes": answered["n_passes"][order]}


def compared(ours: Verdicts, other: Verdicts, even: bool = False) -> Difference:
    """Paired, stratified by task; `even`: the mean over tasks, whatever their numbers of questions."""
    check_pair(ours, other)
    weights = even_weights(ours["task"]) if even else np.ones(len(ours["task"]))
    found = paired_bootstrap(weights * ours["correct"], weights * other["correct"], strata=ours["task"])
    return Difference(*(100 * value for value in found))


def check_pair(ours: Verdicts, other: Verdicts) -> None:
    """ValueError unless both are verdicts of the same questions in the same order."""
    if not np.array_equal(ours["id"], other["id"]):
        raise ValueError("verdicts of different questions cannot be paired: run the setting again")


def is_chosen(name: str) -> bool:
    """Whether a row's policy, or that of which it is a baseline, was chosen on tune."""
    return name.partition("@")[0].removeprefix("shuffled-").removeprefix("over-tasks-") in CHOSEN_ON_TUNE


def gain(ours: Verdicts, other: Verdicts) -> float:
    check_pair(ours, other)
    return 100 * float(ours["correct"].mean() - other["correct"].mean())


def told_the_task(results: Results, split: str, tasks: Sequence[str], settings: Settings, told: Sequence[str], row: str) -> Verdicts | None:
    """The static route of each task's own setting."""
    parts = []
    for task in tasks:
        setting = next((name for name in told if task in settings[name].asked), "")
        answered = results.of(setting, split).get((row, 0))
        if answered is None:
            return None
        parts.append(read(answered, [task]))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def load(results: Results, setting: str, split: str, settings: Settings, told: Sequence[str]) -> Found:
    tasks = settings[setting].asked
    found: Found = {}
    for (name, _), answered in results.of(setting, split).items():
        found.setdefault(name, []).append(read(answered, tasks))
    for name in ("static", "static_tuned"):
        if setting == "mixed" and (parts := told_the_task(results, split, tasks, settings, told, name)) is not None:
            found[f"{name}-per-task"] = [parts]
    return {name: found[name] for name in [*(n for n in ORDER if n in found), *sorted(found.keys() - set(ORDER))]}


def section(results: Results, setting: str, split: str, settings: Settings, told: Sequence[str]) -> Section:
    """One setting and split from its verdicts."""
    found = load(results, setting, split, settings, told)
    base, tasks = found["base"][0], settings[setting].asked
    n_of = {task: int((base["task"] == task).sum()) for task in tasks}
    counts = ", ".join(f"{task} {n}" for task, n in n_of.items())
    of_split = f" --split {split}" if split != "tune" else ""
    is_cut = of_split or settings[setting].policies  # otherwise tune is what the matrix holds
    if is_cut and len({*n_of.values()}) == 1 < len(tasks):  # no two tasks have as many
        of_split += f" --limit {n_of[tasks[0]]}"
    asked = results.told("asked", setting, split) or {}
    left_out = "".join(f" --scan results/{name}" for name in asked.get("scans", ()))  # questions that the scan asked
    notes = []
    if without := asked.get("without_test_part"):
        notes.append(f"Without a test part, so development questions by which nothing was chosen: {', '.join(without)}. ")
    if split == "tune" and not settings[setting].policies:
        notes.append("\\* the best of many on these very questions: optimistic, and its interval covers no choice. ")
    gaps = dict(gaps_closed(found))
    notes += [gap.sentence(name) for name, gap in gaps.items()]
    command = f"python -m drllm_research.comparison run --model {results.told('model')} --run RUN --out OUT --data DATA"
    show_tasks = len(tasks) > 1 or setting in CHANCE
    return Section(
        setting=setting,
        split=split,
        title=f"{ABOUT[setting]}, {split} split ({len(base['correct'])} questions: {counts})",
        command=f"{command} --settings {setting} --methods ROWS{of_split}{left_out}",
        rows=list(method_rows(results, setting, split, settings, found)),
        notes=notes,
        contrasts=list(contrasts(found, found if split == "tune" else load(results, setting, "tune", settings, told), tasks)),
        by_task=list(by_task(found, tasks, CHANCE if setting != "in-domain" else {}, asked.get("most_common", {}))) if show_tasks else (),
        gaps=gaps,
        frontier=frontier(found, f"frontier_{setting}_{split}", int(base["passes"][0])),
        as_base=[name for name, runs in found.items() if name != "base" and is_base(runs, base)],
        seeds={name: len(runs) for name, runs in found.items()},
    )


def is_base(runs: Sequence[Verdicts], base: Verdicts) -> bool:
    return all(bool((run["route"] == base["route"]).all()) for run in runs)


def method_rows(results: Results, setting: str, split: str, settings: Settings, found: Found) -> Iterator[dict[str, str]]:
    """A row a method, by `COLUMNS`."""
    base, one_task = found["base"][0], len(settings[setting].asked) == 1
    for name, (first, *others) in found.items():
        check_pair(first, base)
        static = static_of(name)
        low, high = wilson(int(first["correct"].sum()), len(first["correct"]))
        better, worse = discordant(first["correct"], base["correct"])
        trained = results.told("training", settings[setting].policies or setting, f"{name}.0")
        clock = results.told("clock", setting, f"{name}.0")
        cells = (
            NAMES.get(name, name) + (" *" if split == "tune" and not settings[setting].policies and is_chosen(name) else ""),
            f"{100 * first['correct'].mean():.1f} ({100 * low:.1f} to {100 * high:.1f})",
            "" if name == "base" else str(compared(first, base)),
            "" if name == "base" or one_task else str(compared(first, base, even=True)),
            "" if name == "base" or (split == "tune" and is_chosen(name)) else f"{mcnemar(first['correct'], base['correct']):.3f}",
            "" if name in ("base", static) or static not in found else str(compared(first, found[static][0])),
            "" if name == "base" else f"{better} / {worse}",
            f"{first['passes'].mean():.2f}",
            f"{clock['ratio']:.2f} ({clock['low']:.2f} to {clock['high']:.2f})" if clock else "",
            f"{trained['seconds']:.0f}" if trained else "",
            f"{trained['fit']} / {trained['tune']}" if trained else "",
            ", ".join(f"{gain(one, base):+.1f}" for one in others),
        )
        yield {ROW: name} | dict(zip(COLUMNS, cells, strict=True))


def static_of(name: str) -> str:
    """The row of the best single route within a row's budget."""
    _, at, budget = name.partition("@")
    return f"static_tuned{at}{budget}"


def contrasts(found: Found, tuned: Found, tasks: Sequence[str]) -> Iterator[Contrast]:
    """Paired differences that the conclusions rest on; mixtures of single routes are chosen on tune."""
    mean = {name: mean_of(runs) for name, runs in found.items()}
    pairs = [(ours, other) for ours, others in CONTRASTS.items() for other in others if ours in mean and other in mean]
    rows = [(f"{ours} less {other}", ours, mean[other]) for ours, other in pairs]
    for ours in (name for name in CONTRASTS if "@" in name and name in mean):
        if mixture := best_mixture({name: runs[0] for name, runs in tuned.items() if name in mean}, float(mean[ours]["passes"].mean())):
            rows.append((f"{ours} less {mixture}", ours, mixture.verdicts(mean)))
    for static in ("static", "static_tuned"):
        if f"{static}-per-task" in mean:
            told, one = mean[f"{static}-per-task"], mean[static]
            aim = one | {"correct": one["correct"] + TOLD_SHARE * (told["correct"] - one["correct"])}
            rows.append((f"{static}-per-task less {static}", f"{static}-per-task", one))
            for ours in ("codebook", "codebook_by_task"):
                if ours in mean:
                    rows.append((f"{ours} less {static}, less {TOLD_SHARE:.0%} of what {static}-per-task gains over it", ours, aim))
    # Parts of the tasks: without the one of yes and no; and of mixed traffic those whose questions the in-domain setting does not ask.
    parts: dict[str, list[str]] = {}
    if numbers := {task for task in tasks if task.startswith("arith")}:
        parts["pooled without numbers"] = [task for task in tasks if task not in numbers]
    if "boolq" in tasks and len(tasks) > 1:
        parts["pooled without boolq"] = [task for task in tasks if task != "boolq"]
    if set(tasks) > IN_DOMAIN:
        new = [task for task in tasks if task not in IN_DOMAIN]
        parts[f"pooled, {', '.join(new)} alone"] = new
    for label, name, other in rows:
        ours = mean[name]
        signs = {np.sign(gain(run, other)) for run in found[name]}
        yield Contrast(
            label,
            compared(ours, other),
            compared(ours, other, even=True) if len(tasks) > 1 else None,
            {
                part: compared(cut(ours, np.isin(ours["task"], names)), cut(other, np.isin(ours["task"], names)))
                for part, names in parts.items()
            },
            len(signs) == 1,
        )


def gaps_closed(found: Found) -> Iterator[tuple[str, Gap]]:
    """What each policy closes, after taking off what blind routes under the same selector close."""
    if "oracle" not in found:
        return
    for name in GAPS:
        kind, *budget = name.split("@")
        blind = "@".join(("random_codebook_by_task" if kind.endswith("_by_task") else "random_codebook", *budget))
        if name in found and blind in found and gain(mean_of(found["oracle"]), mean_of(found["base"])) > 0:
            ours, drawn, oracle, base = (mean_of(found[one]) for one in (name, blind, "oracle", "base"))
            own, of_blind = (100 * gain(one, base) / gain(oracle, base) + 0.0 for one in (ours, drawn))
            yield name, Gap(own, blind, of_blind, gap_share(ours, drawn, oracle, base))


def gap_share(ours: Verdicts, blind: Verdicts, oracle: Verdicts, base: Verdicts) -> str:
    """(ours - blind) / (oracle - base) in percent, with its 95 % interval by a bootstrap of questions within tasks."""
    rng, rows = np.random.default_rng(0), np.array([one["correct"] for one in (ours, blind, oracle, base)])
    places = [np.flatnonzero(ours["task"] == task) for task in dict.fromkeys(ours["task"].tolist())]
    drawn = (np.concatenate([rng.choice(place, len(place)) for place in places]) for _ in range(2000))
    means = np.array([rows.mean(1), *(rows[:, draw].mean(1) for draw in drawn)])
    means = means[means[:, 2] > means[:, 3]]  # without a gap there is no share
    shares = 100 * (means[:, 0] - means[:, 1]) / (means[:, 2] - means[:, 3])
    share, low, high = (round(float(value)) for value in (shares[0], *np.quantile(shares[1:], [0.025, 0.975])))  # no "-0"
    return f"{share} % ({low} to {high})"


def frontier(found: Found, name: str, n_layers: int) -> Chart | None:
    """Points over the base against passes: the best single routes and policies a prompt of every budget, means over seeds; None of few."""
    base, spots, rows = mean_of(found["base"]), list[dict[str, Any]](), []
    for index, method in enumerate(("static_tuned", "codebook", "codebook_by_task", "polar")):
        for place in [one for one in found if one.partition("@")[0] == method]:
            ours, passes = mean_of(found[place]), float(np.mean([run["passes"].mean() for run in found[place]])) / n_layers
            less = compared(ours, base)
            place_of = {"x": passes, "y": less.points, "low": less.points - less.low, "high": less.high - less.points}
            spots.append({"name": method, "index": index, "aside": 0.05 * (index - 1.5)} | place_of)
            rows.append((place, len(base["correct"]), *map(number, (passes, *less))))
    if len(spots) < SEVERAL:
        return None
    at = sorted(float(row[2]) for row in rows)
    header = ("policy", "questions", "passes", "points", "low", "high")
    caption = (
        "Each mark is a policy of one budget; brackets are paired 95 % intervals. Passes are shares of the base's. At budgets below 1 a "
        "policy spends at most that share on tune; above 1 a single route spends at least that share. Marks are shifted sideways, not to "
        "overlap."
    )
    title = f"Points over the base against passes, {len(base['correct'])} questions"

    def draw(panels: Sequence[Any]) -> None:
        (axes,) = panels
        level(axes, 0)
        for one in spots:
            spot(axes, **one)
        axes.set(xlim=(at[0] - 0.02, at[-1] + 0.02), xlabel="passes, share of the base's", ylabel="points over the base")

    return Chart(name, title, caption, header, tuple(rows), draw, legend=3)


def mean_of(runs: Sequence[Verdicts]) -> Verdicts:
    return runs[0] | {name: np.mean([run[name] for run in runs], axis=0) for name in ("correct", "passes")}


def cut(verdicts: Verdicts, rows: np.ndarray) -> Verdicts:
    return {key: value[rows] for key, value in verdicts.items()}


def by_task(found: Found, tasks: Sequence[str], chance: Mapping[str, float], common: Mapping[str, float]) -> Iterator[list[str]]:
    """Points over the base on each task, of the first seed; the heads first."""
    yield ["points over the base", *(f"{task} (chance {chance[task]:.0f})" if task in chance else task for task in tasks)]
    base = found["base"][0]
    right = [base["task"] == task for task in tasks]
    yield ["base, accuracy in %", *(f"{100 * base['correct'][rows].mean():.1f}" for rows in right)]
    if common:
        shown = (f"{100 * common[task]:.1f}" if task in common else "" for task in tasks)
        yield ["always the most common answer, accuracy in %", *shown]
    for name, (first, *_) in found.items():
        if name != "base":
            yield [NAMES.get(name, name), *(str(compared(cut(first, rows), cut(base, rows))) for rows in right)]


def sections(results: Results, settings: Settings, told: Sequence[str]) -> list[Section]:
    """Everything that is stored of a model, the test split first, then what promises were tested on."""
    return [
        section(results, setting, split, settings, told)
        for split in ("test", "calibrate", "tune")
        for setting in settings
        if ("base", 0) in results.of(setting, split)
    ]
