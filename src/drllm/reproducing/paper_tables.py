"""Tables 2 to 8 of the paper, and its latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from drllm.evaluation.names import BASE
from drllm.evaluation.stats import paired_bootstrap
from drllm.record_stats import describe, tables
from drllm.records import read_records
from drllm.reporting.parts import Bullets, Paragraph, Part, Table
from drllm.reproducing import published as paper
from drllm.reproducing.exhibits import (
    ROUTERS,
    Exhibit,
    ablation,
    above_all,
    after_routers,
    against,
    answers,
    claim,
    comparison,
    gains,
    in_domain,
    jointly,
    last_scores,
    pooled,
    searches,
    train_routers,
)
from drllm.reproducing.setup import Setup
from drllm.reproducing.stages import Bench, Clock, Evaluate, Stage, Train
from drllm.routes import Action, Route
from drllm.tables import decided, percent, points, verdict
from drllm.tasks import get_task

BUDGET = 1 - paper.SAVED / paper.OF_LAYERS
FIRST_BLOCK, BUDGETED, KNOB = "routers_first_block", "routers_budget", 50
GATES = " MindSkip and FlexiDepth learn here from some hundreds of questions, in their papers from hundreds of thousands of texts."
GATE_STEP = 24  # PF of a training step of gates: 8 questions, forward and backward through the frozen blocks
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
        word = (
            "The search solves more than as many blind routes"
            if decided(*row.difference[1:])
            else "The search solves no more than as many blind routes, as far as this sample tells"
        )
        mean, low, high = map(points, row.difference)
        parts.append(Bullets((f"{word}: {mean} points ({low} to {high}) of what the base gets wrong.",), strong=True))
    return parts


def _table3(bench: Bench, _: Path) -> list[Part]:
    stage = in_domain(bench.setup)
    summary = bench.run(stage)
    row = pooled(summary, ROUTERS)
    parts: list[Part] = [
        comparison(summary, f"Routers where they were trained, {summary['split']} split; in brackets 95 % intervals."),
        Bullets(
            (
                verdict(summary, ROUTERS),
                claim("routers raise accuracy", gains(row)),
                claim("routers make fewer block passes than the base", fewer_passes(bench, stage)),
                f"What looking at the prompt is worth: {against(bench, stage, ROUTERS, 'shuffled')}.",
            ),
            strong=True,
        ),
    ]
    return [*parts, *_beside(bench, stage)]


def fewer_passes(bench: Bench, stage: Evaluate) -> bool | None:
    """Whether the routers' mean passes are below the base's, by a bootstrap over questions; None where their interval holds it."""
    rows = [row for task in stage.tasks for row in answers(bench, stage, ROUTERS, task)]
    n_layers = len(rows[0]["route"])
    _, low, high = paired_bootstrap([row["n_passes"] for row in rows], [n_layers] * len(rows))
    return decided(-high, -low)


GROUPS = {"ARC": ("arc_",), "levels of difficulty (DART-Math, or arithmetic instead)": ("dart-", "arith-")}


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
            rows.append((f"{group}, accuracy, %", *shares, *map(str, known)))
    row = pooled(bench.run(stage), ROUTERS)
    rows.append(("block passes a prompt", f"{row['n_layers']}", f"{row['mean_passes']:.2f}", *([""] * 2 if theirs else [])))
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
    row = pooled(summary, ROUTERS)
    aim = paper.OUTSIDE_MEAN / 100
    holds = True if row["difference_low"] >= aim else False if row["difference_high"] < aim else None
    text = f"out of domain routers lose at most {-paper.OUTSIDE_MEAN} points (there on average over eight benchmarks)"
    return [
        comparison(summary, f"The same routers on tasks that they never saw, {summary['split']} split."),
        Bullets((verdict(summary, ROUTERS), claim(text, holds), f"{against(bench, stage, ROUTERS, 'shuffled')}."), strong=True),
    ]


def _rivals(setup: Setup) -> list[Train]:
    """The rivals of table 5 at the same share of passes; gates learn from tasks with choices alone."""
    budget: tuple[tuple[str, Any], ...] = (("budget", BUDGET),)
    seed: tuple[tuple[str, Any], ...] = (("seed", setup.config.seed),) if setup.config.seed else ()
    n_tune = setup.scaled(KNOB, 8)
    choice = _choice_tasks(setup)
    found = [
        Train("early_exit", "early_exit", budget, forwards_each=0),
        Train("shortgpt", "shortgpt", (*budget, ("questions", setup.scaled(256, 8)))),
        Train("random_skip", "random_skip", (*budget, *seed), forwards_each=0),
        Train(BUDGETED, "routers", (*budget, ("tune_questions", n_tune), *seed), knob=n_tune, points=16),
    ]
    if choice:
        steps, n_tune = setup.scaled(150, 3), setup.scaled(100, 8)
        gated = (*budget, ("steps", steps), ("tune_questions", n_tune), *seed)
        found += [
            Train("mindskip", "mindskip", gated, choice, 0, steps * GATE_STEP, n_tune, 7),
            Train("flexidepth", "flexidepth", (*gated, ("penalty", 3e-3)), choice, 0, steps * GATE_STEP, n_tune, 7),
        ]
    return found


def _choice_tasks(setup: Setup) -> tuple[str, ...]:
    return tuple(task for task in setup.tasks if get_task(task).reward_named(setup.config.reward) == "loglik")


def _table5_stages(setup: Setup) -> list[Stage]:
    rivals = _rivals(setup)
    return [*searches(setup), train_routers(setup), *rivals, _rivalry(setup)]


def _rivalry(setup: Setup) -> Evaluate:
    methods = (BASE, ROUTERS, *(rival.policy for rival in _rivals(setup)), f"shuffled-{BUDGETED}")
    # Knobs and thresholds are set on tune: questions that chose a policy must not judge it.
    split = "calibrate" if setup.config.split == "tune" else setup.config.split
    return Evaluate(methods, _choice_tasks(setup) or setup.tasks, split)


def _table5(bench: Bench, _: Path) -> list[Part]:
    stage = _rivalry(bench.setup)
    summary = bench.run(stage)
    there = {row["method"] for row in summary["rows"]}
    rivals = [rival.policy for rival in _rivals(bench.setup) if rival.policy in there and rival.policy != BUDGETED]
    best = max(rivals, key=lambda name: pooled(summary, name)["accuracy"])
    shown = ", ".join(f"{name} {value}" for name, value in paper.RIVALS.items())
    lines = [] if _choice_tasks(bench.setup) else ["MindSkip and FlexiDepth are not in the table: their gates learn from choices alone."]
    lines += [f"{policy} is not in the table: {reason}." for policy, reason in bench.missed.items()]
    if BUDGETED in there:
        leads = [against(bench, stage, BUDGETED, rival) for rival in rivals]
        text = "at equal savings routers keep more accuracy than any rival"
        passes = {name: pooled(summary, name)["mean_passes"] for name in (BUDGETED, best)}
        judged = [verdict(summary, BUDGETED), f"Of the rivals {best} is best: {leads[rivals.index(best)]}."]
        judged.append(claim(text, above_all(leads)))
        if passes[BUDGETED] > passes[best]:
            judged.append(f"The savings are not quite equal: {BUDGETED} make {passes[BUDGETED]:.2f} passes, {best} {passes[best]:.2f}.")
        lines = [*judged, *lines]
    return [
        comparison(
            summary,
            f"{paper.SAVED} of {paper.OF_LAYERS} passes saved ({percent(BUDGET)} % kept), {summary['split']} split: {BUDGETED} are routers "
            "of preset default with the knob set on tune; routers are the paper's, which have no budget.",
        ),
        Paragraph(
            f"{paper.PAPER}, mean accuracy on GSM8K, MMLU, HellaSwag and HumanEval with Llama-3-8B: {shown}. LayerSkip needs a model "
            "trained for it; early_exit stands for leaving early without that." + (GATES if {"mindskip", "flexidepth"} & there else "")
        ),
        Bullets(tuple(lines), strong=True),
    ]


def _on_first_block(setup: Setup) -> Train:
    return train_routers(setup, FIRST_BLOCK, first_block=True)


def _inputs(setup: Setup) -> Evaluate:
    return ablation(setup, [ROUTERS, FIRST_BLOCK])


def _table6(bench: Bench, _: Path) -> list[Part]:
    stage = _inputs(bench.setup)
    summary = bench.run(stage)
    below = gains(pooled(summary, FIRST_BLOCK))
    return [
        comparison(summary, "Each router on the states entering its own block, or all on those entering the first, tune split."),
        Bullets(
            (
                f"{against(bench, stage, ROUTERS, FIRST_BLOCK)}.",
                claim("fed the first block's input, routers fall below the base", None if below is None else not below),
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
    faster = [decided(1 - row["ratio_high"], 1 - row["ratio_low"]) for row in found]
    n_tokens = found[0]["tokens"]
    return [
        Table(
            header,
            rows,
            f"{n_tokens} tokens an answer by transformers' `generate`, base and routers in turn on the same questions.",
        ),
        Bullets((claim("routers raise throughput at every batch size", jointly(faster)),), strong=True),
    ]


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
        Table(header, rows),
        Bullets(
            (
                claim("a long answer takes less time", holds),
                claim("deciding takes below 1 % of it", found["router"] < 0.01 * found["routed"]),
            ),
            strong=True,
        ),
    ]


TABLES = (
    Exhibit("table2", "Table 2: labels of the search", searches, _table2),
    Exhibit("table3", "Table 3: accuracy and block passes in domain", after_routers(in_domain), _table3),
    Exhibit("table4", "Table 4: out of domain", after_routers(_outside), _table4),
    Exhibit("table5", "Table 5: rivals at equal savings", _table5_stages, _table5),
    Exhibit("table6", "Table 6: what routers read", after_routers(_on_first_block, _inputs), _table6),
    Exhibit("table7", "Table 7: throughput", after_routers(lambda _: Clock("throughput")), _table7),
    Exhibit("table8", "Table 8: agreement of routes, quality of routers", after_routers(in_domain), _table8),
)
LATENCY = Exhibit("latency", "Latency of a long answer", after_routers(lambda _: Clock("latency")), _latency)
