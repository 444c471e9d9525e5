"""Tables 2 to 8 of the paper, and its latency."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from drllm.core.route import Action, Route
from drllm.core.text import p_value, percent, points, with_interval
from drllm.paper import published as paper
from drllm.paper.exhibits import (
    OURS,
    ROUTERS,
    Claim,
    Exhibit,
    ablation,
    after_routers,
    against,
    answers,
    comparison,
    in_domain,
    jointly,
    last_scores,
    otherwise,
    pooled,
    searches,
    train_routers,
    weighed,
    without_few,
)
from drllm.paper.rivals import RIVALS
from drllm.paper.setup import Setup
from drllm.paper.stages import ROUNDS, Bench, Clock, Evaluate, Train
from drllm.reporting.parts import Bullets, Paragraph, Part, Table
from drllm.runs.label_stats import describe, tables
from drllm.runs.names import BASE
from drllm.runs.records import read_records
from drllm.runs.summary import Summary, evenly
from drllm.stats.paired import decided, holm

FIRST_BLOCK = "routers_first_block"
STOOD_IN = " (DART-Math, or arithmetic instead)"
TIMED = (
    "Times are medians of the rounds, ratios the geometric mean of the rounds' own ratios, so the two need not agree; what else the "
    "machine did counts in both."
)
PAIRS = 4000  # of prompts of a task, drawn at random, whose routes are compared


def labels(bench: Bench) -> Any:
    """The statistics of every record searched for these tasks."""
    return describe(record for task in bench.setup.tasks for record in read_records(bench.setup.out / "search" / task))


def _table2(bench: Bench, _: Path) -> list[Part]:
    stats = labels(bench)
    row = stats.rows[-1]
    total, theirs = max(sum(row.actions), 1), sum(paper.ACTIONS)
    sampled = sum(paper.SAMPLED.values())
    pairs = [
        ("questions visited", f"{row.visited:,}", f"{paper.VISITED:,}"),
        ("kept, % of visited", percent(row.kept / max(row.visited, 1)), f"{percent(sampled / paper.VISITED)} (as many as it samples)"),
        ("kept paths that mend a wrong answer, %", percent(row.improved / max(row.kept, 1)), percent(paper.IMPROVED)),
        ("routes evaluated a visited question", f"{row.search_routes / max(row.visited, 1):.1f}", f"{paper.FORWARDS / paper.VISITED:.1f}"),
        *((f"{name} labels, %", f"{100 * ours / total:.2f}", f"{100 * other / theirs:.2f}")
          for name, ours, other in zip(("skip", "execute", "repeat"), row.actions, paper.ACTIONS, strict=True)),
    ]  # fmt: skip
    parts: list[Part] = [Table(header, tuple(found), f"{title[0].upper()}{title[1:]}.") for title, header, found in tables(stats)]
    parts.append(
        Table(
            ("over all tasks", "here", f"{paper.PAPER}, its models"),
            tuple(pairs),
            "Beside the paper's totals, which are of its own models.",
        )
    )
    if row.difference is not None:
        mean, low, high = map(points, row.difference)
        figures = f"{mean} points ({low} to {high}) of what the base gets wrong, questions pooled"
        found = Claim(
            "the search solves more than routes drawn blindly, in as many tries as it may take", decided(*row.difference[1:]), figures, OURS
        )
        parts.append(Bullets((found,), strong=True))
    return parts


def _table3(bench: Bench, _: Path) -> list[Part]:
    stage = in_domain(bench.setup)
    summary = bench.run(stage)
    accuracy, passes = [], []
    for name, tasks in groups_of(stage):
        found = against(bench, stage, ROUTERS, BASE, tasks)
        accuracy.append(weighed(f"routers raise accuracy{name}", [found]))
        passes.append(fewer_passes(bench, stage, name, tasks))
    looked = looking(bench, stage, "looking at the prompt is worth something where routers were trained")
    return [
        comparison(summary, f"Routers where they were trained, {summary.split} split; in brackets 95 % intervals."),
        Bullets((*accuracy, *passes, looked), strong=True),
        *_levels(summary),
        *_beside(bench, stage),
    ]


def _levels(summary: Summary) -> list[Part]:
    """A sentence where levels of difficulty are not in the order of what the base can do."""
    found = {row.task: row.accuracy for row in summary.rows if row.method == BASE and row.task.startswith(("dart-", "arith-"))}
    odd = [f"{task} than {before}" for before, task in itertools.pairwise(found) if found[task] > found[before]]
    return (
        [Paragraph(f"Levels are of the questions, not of what this model can do: the base does better on {', '.join(odd)}.")] if odd else []
    )


GROUPS = {"ARC": ("arc_",), "levels of difficulty": ("dart-", "arith-")}


def groups_of(stage: Evaluate) -> list[tuple[str, tuple[str, ...]]]:
    """All tasks, and the paper's two groups where they hold both: what to say behind a claim, and the tasks."""
    found = {name: tuple(task for task in stage.tasks if task.startswith(starts)) for name, starts in GROUPS.items()}
    n_tasks = len(stage.tasks)
    whole = [(f", mean over {n_tasks} tasks" if n_tasks > 1 else "", stage.tasks)]
    return whole + ([(f" on {name}", tasks) for name, tasks in found.items()] if all(found.values()) else [])


def looking(bench: Bench, stage: Evaluate, text: str) -> Claim:
    """Whether routers beat their own routes, dealt to other prompts."""
    worth = against(bench, stage, ROUTERS, "shuffled")
    return weighed(text, [worth], by=OURS)


def fewer_passes(bench: Bench, stage: Evaluate, name: str, tasks: Sequence[str]) -> Claim:
    """Whether the routers' mean passes over tasks are below the base's, by a bootstrap over questions."""
    n_layers = pooled(bench.run(stage), ROUTERS).n_layers
    passes = {task: [row["n_passes"] - n_layers for row in answers(bench, stage, ROUTERS, task)] for task in tasks}
    _, (mean, low, high) = evenly(list(passes.values()))
    holds, figures = decided(-high, -low), f"Passes less the base's {n_layers}: {mean:+.2f} ({low:+.2f} to {high:+.2f})"
    many, few = without_few({task: len(values) for task, values in passes.items()})
    if many:
        _, (mean, low, high) = evenly([passes[task] for task in many])
        figures += f"; without {few} {mean:+.2f} ({low:+.2f} to {high:+.2f})"
        figures += otherwise(few, without) if (without := decided(-high, -low)) is not holds else ""
    return Claim(f"routers make fewer block passes than the base{name}", holds, figures)


def _beside(bench: Bench, stage: Evaluate) -> list[Part]:
    """Accuracy by the paper's two groups of tasks, its own figures in columns beside ours where the model is theirs."""
    theirs = paper.published(bench.setup.model)
    rows = []
    for group, starts in GROUPS.items():
        tasks = [task for task in stage.tasks if task.startswith(starts)]
        if tasks:
            shares = []
            for method in (BASE, ROUTERS):
                verdicts = [row["correct"] for task in tasks for row in answers(bench, stage, method, task)]
                shares.append(percent(sum(verdicts) / len(verdicts)))
            known = (theirs.arc if group == "ARC" else theirs.dart) if theirs else ()
            rows.append((f"{group}{STOOD_IN if group != 'ARC' else ''}, accuracy, %", *shares, *map(str, known)))
    row = pooled(bench.run(stage), ROUTERS)
    rows.append(("block passes a prompt", f"{row.n_layers}", f"{row.mean_passes:.2f}", *([""] * 2 if theirs else [])))
    header = ("", "base", "routers", *((f"{theirs.name} in {paper.PAPER}: base", "routers") if theirs else ()))
    if theirs is None:
        return [Table(header, tuple(rows), "By the paper's groups of tasks; it has no figures for this model.")]
    base, routed = theirs.layers
    rows.append(("block passes a query, all generated tokens together", "", "", f"{base}", f"{routed}"))
    return [Table(header, tuple(rows), "By the paper's groups of tasks.")]


def _outside(setup: Setup) -> Evaluate:
    return Evaluate((BASE, ROUTERS, "shuffled"), setup.config.outside, setup.config.split)


def _table4(bench: Bench, _: Path) -> list[Part]:
    stage = _outside(bench.setup)
    summary = bench.run(stage)
    found, aim = against(bench, stage, ROUTERS, BASE), paper.OUTSIDE_MEAN / 100
    holds = True if found.low >= aim else False if found.high < aim else None
    text = f"out of domain routers lose at most {-paper.OUTSIDE_MEAN} points, mean over {len(stage.tasks)} tasks (there over eight)"
    rows = (row for row in summary.rows if row.task in stage.tasks and row.method == ROUTERS)
    by_task = sorted(rows, key=lambda row: row.difference)
    ends = [f"{row.task} {with_interval(row.difference, row.difference_low, row.difference_high)}" for row in by_task]
    looked = looking(bench, stage, "looking at the prompt is worth something out of domain")
    return [
        comparison(summary, f"The same routers on tasks that they never saw, {summary.split} split."),
        Bullets((Claim(text, holds, str(found)), f"By task, in points: {', '.join(ends)}.", looked), strong=True),
    ]


def _on_first_block(setup: Setup) -> Train:
    return train_routers(setup, FIRST_BLOCK, first_block=True)


def _inputs(setup: Setup) -> Evaluate:
    return ablation(setup, [ROUTERS, FIRST_BLOCK])


def _table6(bench: Bench, _: Path) -> list[Part]:
    stage = _inputs(bench.setup)
    summary = bench.run(stage)
    found = against(bench, stage, FIRST_BLOCK, BASE)
    below = None if found.is_gain is None else not found.is_gain
    return [
        comparison(summary, "Each router on the states entering its own block, or all on those entering the first, tune split."),
        Bullets(
            (
                weighed("each router does better on its own block's input", [against(bench, stage, ROUTERS, FIRST_BLOCK)]),
                Claim("fed the first block's input, routers fall below the base", below, str(found)),
            ),
            strong=True,
        ),
    ]


def _table7(bench: Bench, _: Path) -> list[Part]:
    found = bench.run(Clock("throughput"))
    rows = tuple(
        (
            str(row["batch"]),
            f"{row['base_tokens_s']:.1f}",
            f"{row['routed_tokens_s']:.1f}",
            f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})",
            f"{100 * (1 / row['ratio'] - 1):+.1f}",
            f"{row['passes']:.2f}",
            f"{100 * paper.THROUGHPUT[row['batch']]:+.1f}" if row["batch"] in paper.THROUGHPUT else "",
        )
        for row in found
    )
    header = (
        "batch",
        "base, tokens/s",
        "routers, tokens/s",
        "seconds, routers / base",
        "throughput, %",
        "mean passes",
        f"{paper.PAPER}, %",
    )
    adjusted = holm([p_of_ratio(row) for row in found])
    faster = [decided(1 - row["ratio_high"], 1 - row["ratio_low"], p) for row, p in zip(found, adjusted, strict=True)]
    n_tokens = found[0]["tokens"]
    ratios = "; ".join(
        f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f}, Holm's p {p_value(p)}) at {row['batch']}"
        for row, p in zip(found, adjusted, strict=True)
    )
    judged = Claim("routers raise throughput at every batch size", jointly(faster), f"Seconds of routers over base: {ratios}")
    return [
        Table(
            header,
            rows,
            f"{n_tokens} tokens an answer by transformers' `generate`, base and routers in turn on the same questions. "
            f"{TIMED}{machine(bench)}",
        ),
        Bullets((judged,), strong=True),
    ]


def machine(bench: Bench) -> str:
    """What the run's last job ran on, as a sentence; empty where no job has said so."""
    path = bench.setup.out / "run.json"
    found = (
        next((job["hardware"] for job in reversed(json.loads(path.read_text())) if job.get("hardware")), None) if path.is_file() else None
    )
    return f" On {found['processor']}, {found['cores']} cores." if found else ""


def p_of_ratio(row: Mapping[str, float]) -> float:
    """Two-sided p of a ratio of seconds, of the t test behind its interval (`drllm.paper.clock`)."""
    half = math.log(row["ratio_high"] / row["ratio_low"]) / 2
    if half == 0:
        return 1.0 if row["ratio"] == 1 else 0.0
    freedom = ROUNDS - 1
    return float(2 * stats.t.sf(abs(math.log(row["ratio"])) / half * stats.t.ppf(0.975, freedom), freedom))


def _table8(bench: Bench, _: Path) -> list[Part]:
    stage = in_domain(bench.setup)
    rows = []
    rng = np.random.default_rng(bench.setup.config.seed)
    for task in stage.tasks:
        routes = [Route.parse(row["route"]) for row in answers(bench, stage, ROUTERS, task)]
        actions = np.array([tuple(route) for route in routes])
        first, second = rng.integers(len(routes), size=(2, PAIRS))
        apart = first != second
        same = float((actions[first[apart]] == actions[second[apart]]).mean()) if apart.any() else 1.0
        rows.append((task, str(len(routes)), str(len(set(routes))), percent(same)))
    scores, is_held_back = last_scores(bench, ROUTERS)
    kept = "held-back questions" if is_held_back else "the questions learned from (none was held back)"
    quality = (
        ("macro-F1", scores["macro_f1"], percent(paper.MACRO_F1)),
        ("labels met", scores["accuracy"], percent(paper.BLOCK_ACCURACY)),
        *((f"F1 of {action.name.lower()}", scores[f"f1_{action.name.lower()}"], "") for action in Action),
    )
    low, high = (percent(value) for value in paper.AGREEMENT)
    return [
        Table(("task", "prompts", "distinct routes", "blocks on which two prompts' routes agree, %"), tuple(rows),
              f"How far routes differ; {paper.PAPER}: {low} to {high} %."),
        Table((f"on {kept}, %", "here", f"{paper.PAPER}, its models"), quality, "Routers against the search's labels, along their path."),
        Paragraph(
            "Nearly all labels are `execute`: executing always meets as many of them as there are, so the share of labels met says little."
        ),
    ]  # fmt: skip


def _latency(bench: Bench, _: Path) -> list[Part]:
    found = bench.run(Clock("latency"))
    base, routed, router = paper.LATENCY
    rows = (
        ("base, seconds", f"{found['base']:.2f}", f"{base:.2f}"),
        ("routers, seconds", f"{found['routed']:.2f}", f"{routed:.2f}"),
        ("routers / base", f"{found['ratio']:.3f} ({found['ratio_low']:.3f} to {found['ratio_high']:.3f})", f"{routed / base:.3f}"),
        ("of which deciding, seconds", f"{found['router']:.4f}", f"{router:.2f}"),
        ("deciding, % of the answer", f"{100 * found['router'] / found['routed']:.2f}", f"{100 * router / routed:.2f}"),
        ("block passes", f"{found['passes']:.1f}", ""),
    )
    header = (f"{found['tokens']} tokens, one prompt", "here", f"{paper.PAPER}: 1,000 tokens, a model and hardware of its own")
    holds = decided(1 - found["ratio_high"], 1 - found["ratio_low"])
    return [
        Table(header, rows, f"{TIMED}{machine(bench)}"),
        Bullets(
            (
                Claim("a long answer takes less time", holds, f"Seconds of routers over base: {rows[2][1]}"),
                Claim(
                    "deciding takes below 1 % of it",
                    found["router"] < 0.01 * found["routed"],
                    f"{rows[4][1]} % by medians, which have no interval",
                ),
            ),
            strong=True,
        ),
    ]


TABLES = (
    Exhibit("table2", "Table 2: labels of the search", searches, _table2),
    Exhibit("table3", "Table 3: accuracy and block passes in domain", after_routers(in_domain), _table3),
    Exhibit("table4", "Table 4: out of domain", after_routers(_outside), _table4),
    RIVALS,
    Exhibit("table6", "Table 6: what routers read", after_routers(_on_first_block, _inputs), _table6),
    Exhibit("table7", "Table 7: throughput", after_routers(lambda _: Clock("throughput")), _table7),
    Exhibit("table8", "Table 8: agreement of routes, quality of routers", after_routers(in_domain), _table8),
)
LATENCY = Exhibit("latency", "Latency of a long answer", after_routers(lambda _: Clock("latency")), _latency)
