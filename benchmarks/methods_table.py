"""The tables of `benchmarks/methods.py`, from stored verdicts alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from drllm.stats.paired import discordant, even_weights, mcnemar, paired_bootstrap, wilson
from methods_asked import questions_path

ORDER = (
    "base", "static", "static_tuned", "static-per-task", "static_tuned-per-task", "codebook", "shuffled-codebook",
    "shuffled-over-tasks-codebook",
    "codebook_by_task", "shuffled-codebook_by_task", "shuffled-over-tasks-codebook_by_task", "input_blind",
    "random_codebook", "input_blind_by_task", "random_codebook_by_task", "polar", "shuffled-polar", "shuffled-over-tasks-polar", "routers",
    "shuffled-routers", "shuffled-over-tasks-routers", "paper", "shuffled-paper", "shuffled-over-tasks-paper", "oracle", "tale",
    "static@0.9",
    "static_tuned@0.9", "codebook@0.9", "shuffled-codebook@0.9", "shuffled-over-tasks-codebook@0.9", "routers@0.9", "mindskip@0.9",
    "flexidepth@0.9", "tale@0.9", "shortgpt@0.9", "early_exit@0.9", "random_skip@0.9",
)  # fmt: skip
NAMES = {
    "static-per-task": "static-per-task (told the task)",
    "static_tuned-per-task": "static_tuned-per-task (told the task)",
    "oracle": "oracle of 16 routes (told every answer: what the best of them for each question would be)",
    "paper": "routers, preset paper",
    "shuffled-paper": "shuffled routers, preset paper",
    "shuffled-over-tasks-paper": "shuffled-over-tasks routers, preset paper",
}
# Chosen among many on the tune questions: on those very questions their figures flatter, and an interval covers no choice. Static routes
# too: two routes of the list had been looked at on the ARC questions that are tune now.
CHOSEN_ON_TUNE = (
    "static", "static_tuned", "static-per-task", "static_tuned-per-task", "codebook", "codebook_by_task",
    "polar", "routers", "random_codebook", "input_blind", "random_codebook_by_task", "input_blind_by_task",
    "mindskip", "flexidepth",
)  # fmt: skip
# What the conclusions rest on: a method, and those that it has to be above.
CONTRASTS = {
    "codebook": (
        "base", "static", "static_tuned", "shuffled-codebook", "shuffled-over-tasks-codebook", "random_codebook", "input_blind", "polar",
        "routers",
    ),
    "codebook_by_task": (
        "base", "static", "static_tuned", "codebook", "shuffled-codebook_by_task", "shuffled-over-tasks-codebook_by_task",
        "random_codebook_by_task", "input_blind_by_task", "polar",
    ),
    "routers": ("base", "static", "static_tuned", "shuffled-routers", "shuffled-over-tasks-routers"),
    "paper": ("base", "shuffled-paper", "shuffled-over-tasks-paper"),
    "codebook@0.9": (
        "base", "static@0.9", "static_tuned@0.9", "shuffled-codebook@0.9", "shuffled-over-tasks-codebook@0.9", "routers@0.9",
        "mindskip@0.9", "flexidepth@0.9", "tale@0.9", "shortgpt@0.9", "early_exit@0.9", "random_skip@0.9",
    ),
}  # fmt: skip
IN_DOMAIN = {"arc_easy", "arc_challenge", "openbookqa"}
TOLD_SHARE = 0.7  # of what knowing the task gains over a static route, for a policy that is not told
CHANCE = {"piqa": 50.0, "sciq": 25.0, "commonsenseqa": 20.0, "boolq": 50.0, "mmlu": 25.0}  # %, one of as many choices
ABOUT = {
    "arc": "one task: ARC",
    "openbookqa": "one task: OpenBookQA",
    "commonsenseqa": "one task: CommonsenseQA",
    "piqa": "one task: PIQA",
    "boolq": "one task: BoolQ",
    "in-domain": "in domain: ARC and OpenBookQA together",
    "mixed": "mixed traffic: five kinds of prompts, unlabelled",
    "ood": "out of domain: policies of the in-domain setting, not trained again",
}
Verdicts = dict[str, np.ndarray]


def read(path: Path, tasks: Sequence[str]) -> Verdicts:
    """One method's verdicts and passes on some tasks, and the task of each question."""
    found = pq.read_table(questions_path(path)).to_pydict() | pq.read_table(path).to_pydict()
    if len(found["id"]) != len(found["correct"]):
        raise ValueError(f"{path} holds {len(found['correct'])} verdicts of {len(found['id'])} questions: run the setting again")
    names = np.array(found["task"])
    order = np.concatenate([np.flatnonzero(names == task) for task in tasks])
    return {
        "correct": np.array(found["correct"], dtype=float)[order],
        "passes": np.array(found["n_passes"], dtype=float)[order],
        "task": names[order],
        "id": np.array(found["id"])[order],
    }


def compared(ours: Verdicts, other: Verdicts, even: bool = False) -> str:
    """Paired difference in points, stratified by task; `even`: the mean over tasks, whatever their numbers of questions."""
    check_pair(ours, other)
    weights = even_weights(ours["task"]) if even else np.ones(len(ours["task"]))
    difference, low, high = paired_bootstrap(weights * ours["correct"], weights * other["correct"], strata=ours["task"])
    return f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def check_pair(ours: Verdicts, other: Verdicts) -> None:
    """ValueError unless both are verdicts of the same questions in the same order."""
    if not np.array_equal(ours["id"], other["id"]):
        raise ValueError("verdicts of different questions cannot be paired: run the setting again")


def is_chosen(name: str) -> bool:
    """Whether a row's policy, or that of which it is a control, was chosen on tune."""
    return name.partition("@")[0].removeprefix("shuffled-").removeprefix("over-tasks-") in CHOSEN_ON_TUNE


def gain(ours: Verdicts, other: Verdicts) -> float:
    """In points."""
    check_pair(ours, other)
    return 100 * float(ours["correct"].mean() - other["correct"].mean())


def told_the_task(
    out: Path, split: str, tasks: Sequence[str], settings: Mapping[str, Any], told: Sequence[str], file: str
) -> Verdicts | None:
    """The static route of each task's own setting."""
    parts = []
    for task in tasks:
        setting = next((name for name in told if task in settings[name].asked), "")
        path = out / setting / split / file
        if not path.is_file():
            return None
        parts.append(read(path, [task]))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def load(out: Path, setting: str, split: str, settings: Mapping[str, Any], told: Sequence[str]) -> dict[str, list[Verdicts]]:
    """Each method's verdicts, one for each seed, in the order of the table."""
    tasks = settings[setting].asked
    found: dict[str, list[Verdicts]] = {}
    for path in sorted((out / setting / split).glob("*.parquet")):
        found.setdefault(path.stem.rpartition(".")[0].replace("_at_", "@"), []).append(read(path, tasks))
    for name in ("static", "static_tuned"):
        if setting == "mixed" and (parts := told_the_task(out, split, tasks, settings, told, f"{name}.0.parquet")) is not None:
            found[f"{name}-per-task"] = [parts]
    return {name: found[name] for name in [*(n for n in ORDER if n in found), *sorted(found.keys() - set(ORDER))]}


def table(out: Path, setting: str, split: str, settings: Mapping[str, Any], told: Sequence[str]) -> Iterator[str]:
    """One setting as Markdown."""
    found = load(out, setting, split, settings, told)
    base, static = found["base"][0], found.get("static", found["base"])[0]
    tasks = settings[setting].asked
    counts = ", ".join(f"{task} {int((base['task'] == task).sum())}" for task in tasks)
    yield f"### {ABOUT[setting]}, {split} split ({len(base['correct'])} questions: {counts})"
    yield ""
    of_test = " --split test" if split == "test" else ""
    yield f"`python benchmarks/methods.py run --run RUN --out results/{out.name} --data DATA --settings {setting}{of_test}`"
    yield ""
    yield (
        "| method | accuracy, % | vs base, points | vs base, mean over tasks | McNemar p | vs static, points | better / worse | passes | "
        "prompt seconds, ratio (tune) | training, s | fit / tune questions | vs base, other seeds |"
    )
    yield "|" + "---|" * 12
    for name, (first, *others) in found.items():
        check_pair(first, base)
        low, high = wilson(int(first["correct"].sum()), len(first["correct"]))
        better, worse = discordant(first["correct"], base["correct"])
        file = f"{name.replace('@', '_at_')}.0.json"
        trained, clock = _json(out / (settings[setting].policies or setting) / "training" / file), _json(out / setting / "clock" / file)
        cells = [
            NAMES.get(name, name) + (" *" if split == "tune" and setting != "ood" and is_chosen(name) else ""),
            f"{100 * first['correct'].mean():.1f} ({100 * low:.1f} to {100 * high:.1f})",
            "" if name == "base" else compared(first, base),
            "" if name == "base" or len(tasks) == 1 else compared(first, base, even=True),
            "" if name == "base" or (split == "tune" and is_chosen(name)) else f"{mcnemar(first['correct'], base['correct']):.3f}",
            "" if name in ("base", "static") else compared(first, static),
            "" if name == "base" else f"{better} / {worse}",
            f"{first['passes'].mean():.2f}",
            f"{clock['ratio']:.2f} ({clock['low']:.2f} to {clock['high']:.2f})" if clock else "",
            f"{trained['seconds']:.0f}" if trained else "",
            f"{trained['fit']} / {trained['tune']}" if trained else "",
            ", ".join(f"{gain(one, base):+.1f}" for one in others),
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    if split == "test" and set(tasks) & set(CHANCE):
        yield "Of tasks without a test part (all but ARC and OpenBookQA) these are development questions by which nothing was chosen. "
        yield ""
    if split == "tune" and setting != "ood":
        yield "\\* the best of many on these very questions: optimistic, and its interval covers no choice. "
        yield ""
    yield from contrasts(found, tasks)
    if len(tasks) > 1 or setting in CHANCE:
        common = _json(out / setting / split / "most_common.json") or {}
        yield from by_task(found, tasks, CHANCE if setting != "in-domain" else {}, common)


def contrasts(found: dict[str, list[Verdicts]], tasks: Sequence[str]) -> Iterator[str]:
    """Paired differences that the conclusions rest on: verdicts are means over seeds, so several deals and draws stand in a control."""
    mean = {name: runs[0] | {"correct": np.mean([run["correct"] for run in runs], axis=0)} for name, runs in found.items()}
    rows = [(f"{ours} less {other}", mean[ours], mean[other]) for ours, others in CONTRASTS.items() for other in others
            if ours in mean and other in mean]  # fmt: skip
    for static in ("static", "static_tuned"):
        if f"{static}-per-task" in mean:
            told, one = mean[f"{static}-per-task"], mean[static]
            aim = one | {"correct": one["correct"] + TOLD_SHARE * (told["correct"] - one["correct"])}
            rows.append((f"{static}-per-task less {static}", told, one))
            for ours in ("codebook", "codebook_by_task"):
                if ours in mean:
                    rows.append((f"{ours} less {static}, less {TOLD_SHARE:.0%} of what {static}-per-task gains over it", mean[ours], aim))
    if not rows:
        return
    # Parts of the tasks: without the one of yes and no; and of mixed traffic those whose questions the in-domain setting does not ask.
    parts: dict[str, list[str]] = {}
    if "boolq" in tasks and len(tasks) > 1:
        parts["pooled without boolq"] = [task for task in tasks if task != "boolq"]
    if set(tasks) > IN_DOMAIN:
        new = [task for task in tasks if task not in IN_DOMAIN]
        parts[f"pooled, {', '.join(new)} alone"] = new
    heads = ["pooled", *(["mean over tasks"] if len(tasks) > 1 else []), *parts]
    several = max(len(runs) for runs in found.values()) > 1
    yield f"| points, {'means over seeds' if several else 'one seed'} | " + " | ".join(heads) + " |"
    yield "|" + "---|" * (1 + len(heads))
    for label, ours, other in rows:
        cells = [label, compared(ours, other), *([compared(ours, other, even=True)] if len(tasks) > 1 else [])]
        for names in parts.values():
            here = np.isin(ours["task"], names)
            cells.append(compared(*({key: value[here] for key, value in verdicts.items()} for verdicts in (ours, other))))
        yield "| " + " | ".join(cells) + " |"
    yield ""


def by_task(
    found: dict[str, list[Verdicts]], tasks: Sequence[str], chance: Mapping[str, float], common: Mapping[str, float]
) -> Iterator[str]:
    """Points over the base on each task, of the first seed."""
    heads = [f"{task} (chance {chance[task]:.0f})" if task in chance else task for task in tasks]
    yield "| points over the base | " + " | ".join(heads) + " |"
    yield "|" + "---|" * (1 + len(tasks))
    base = found["base"][0]
    right = [base["task"] == task for task in tasks]
    yield "| base, accuracy in % | " + " | ".join(f"{100 * base['correct'][rows].mean():.1f}" for rows in right) + " |"
    if common:
        shown = (f"{100 * common[task]:.1f}" if task in common else "" for task in tasks)
        yield "| always the most common answer, accuracy in % | " + " | ".join(shown) + " |"
    for name, (first, *_) in found.items():
        if name != "base":
            cut = [[{key: value[rows] for key, value in verdicts.items()} for verdicts in (first, base)] for rows in right]
            yield f"| {NAMES.get(name, name)} | " + " | ".join(compared(*pair) for pair in cut) + " |"
    yield ""


def curve(out: Path) -> Iterator[str]:
    """Policy value against fit questions, of `benchmarks/methods_curve.py`."""
    for path in sorted(out.glob("*/curve.json")):
        about = json.loads(path.read_text())
        yield f"### Learning curve: {ABOUT[path.parent.name]}, tune split"
        yield ""
        yield f"`python benchmarks/methods_curve.py --run RUN --out results/{out.name} --settings {path.parent.name}`"
        yield ""
        yield (
            "A book is chosen on one half of the tune questions and measured on the other, and the other way round. The routes to choose "
            "from were found on all fit questions, whatever the number learned from here: what little data gives is too high, if anything."
        )
        yield ""
        yield "| fit questions | static, points over the base | code book, points over the base, by draw | mean |"
        yield "|---|---|---|---|"
        for row in about["rows"]:
            books = row["codebook"]
            shown = ", ".join(f"{100 * value:+.1f}" for value in books)
            statics = ", ".join(f"{100 * value:+.1f}" for value in row["static"])
            yield f"| {row['questions']} | {statics} | {shown} | {100 * np.mean(books):+.1f} |"
        yield ""
        points, low, high = about["rise"]["points"]
        yield (
            f"From {about['rise']['from']} to {about['rise']['to']} fit questions the code book gains {100 * points:+.1f} "
            f"({100 * low:+.1f} to {100 * high:+.1f}) points. With all questions the values differ in the seed of folds alone."
        )
        yield ""


def tables(outs: Sequence[Path], settings: Mapping[str, Any], told: Sequence[str]) -> Iterator[str]:
    """Everything that is stored of each model, the test split first."""
    yield "# Methods compared"
    yield ""
    yield (
        "Generated by `make table-methods` from the verdicts in `results/`. Each section names the command that made its verdicts: RUN is "
        "the run folder with the dense matrix (`benchmarks/methods.py` says which search makes it), DATA the folder of question sets. "
        "Brackets are 95 % intervals: Wilson's of an accuracy, a paired bootstrap stratified by task of a difference, a bootstrap of the "
        "median of a ratio. Passes are block passes a prompt. `shuffled-` deals a method's own routes to other prompts of the same task "
        "(`-over-tasks-`: to any prompt). Verdicts are of `acc_norm`: choices by log-likelihood a character. A seed draws "
        "a code book's folds, random routes and skips, and the routers' first weights; questions are the same. The mean over tasks weighs "
        "tasks alike, whatever their numbers of questions, which tune and test hold in other shares. `static` is the best single route of "
        "the matrix (single edits, pairs, in domain triples too), chosen and confirmed on fit questions; greedy from the base on: `tale`. "
        "The conclusions are in `docs/policies.md`, how each choice was made in `docs/LOG.md`. Last stand the paper's tables and figures "
        "on SmolLM2-135M, made again by `drllm reproduce`: [what holds here](#what-holds-here)."
    )
    yield ""
    for out in outs:
        about = json.loads((out / "model.json").read_text())
        yield f"## {about['model']}, {about['blocks']} blocks"
        yield ""
        for split in ("test", "tune"):
            for setting in settings:
                if (out / setting / split / "base.0.parquet").is_file():
                    yield from table(out, setting, split, settings, told)
        yield from curve(out)


def paper_page(page: Path, docs: Path) -> Iterator[str]:
    """The page of a reproduction, one level down; its pictures and numbers are linked from a file in `docs`."""
    there = Path(os.path.relpath(page.parent, docs))
    is_code = False
    for line in page.read_text(encoding="utf-8").splitlines():
        is_code ^= line.startswith("````")
        if not is_code and line.startswith("#"):
            line = f"#{line}"
        yield line if is_code else re.sub(r"\]\(([\w.-]+\.(?:png|csv))\)", rf"]({there}/\1)", line)


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
