"""Tables 2 to 6 and 8 of the paper."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from drllm.core.route import Action
from drllm.core.text import percent, points
from drllm.reporting.parts import Bullets, Paragraph, Part, Table
from drllm.reporting.summary_table import by_task, verdict
from drllm.runs.labels import HEADER, LEGEND, count_labels, label_rows
from drllm.runs.names import BASE, owner_of
from drllm.runs.summary import evenly
from drllm.stats.paired import decided
from drllm.tasks import get_task
from drllm_research.paper import published as paper
from drllm_research.paper.claims import (
    CORRECT,
    LENIENT,
    OURS,
    Claim,
    against,
    answers,
    compared,
    mean_of,
    otherwise,
    pooled,
    routes_of,
    verdicts_of,
    weighed,
    without_few,
)
from drllm_research.paper.exhibits import Exhibit, ablation, after_routers, in_domain, last_scores, searches, train_routers
from drllm_research.paper.passages import answers_of_passages
from drllm_research.paper.setup import Setup
from drllm_research.paper.speed import TABLE_7
from drllm_research.paper.stages import ROUTERS, Bench, Evaluate, Stage, Train
from drllm_research.paper.worked import FLEXIBLE, READ_TWICE, STRICT, Worked, logged, scored, worked_answers, worked_tasks

FIRST_BLOCK = "routers_first_block"
STOOD_IN = " (DART-Math, or arithmetic instead)"
EXECUTING = "executing always meets as many of them as there are, so the share of labels met says little"
BUDGET = 1 - paper.SAVED / paper.OF_LAYERS
BUDGETED, CONTROL_QUESTIONS = "routers_budget", 50
NEAR = 0.5  # passes around the budget that count as keeping to it
GATES = " MindSkip and FlexiDepth learn here from some hundreds of questions, in their papers from hundreds of thousands of texts."
GATED = ("loglik", "letter", "boxed")  # rewards of the tasks that gates learn from
GATE_STEP = 24  # PF of a training step of gates: 8 questions, forward and backward through the frozen blocks
PAIRS = 4000  # of prompts of a task, drawn at random, whose routes are compared


def labels(bench: Bench) -> Any:
    """The statistics of every question visited for these tasks."""
    return count_labels(record for task in bench.setup.tasks for record in bench.kept(task).visited)


def _table2(bench: Bench) -> list[Part]:
    stats = labels(bench)
    row = stats[-1]
    n = row.n
    kept = [record for task in bench.setup.tasks for record in bench.kept(task).records]
    actions = count_labels(kept)[-1].actions if kept else (0, 0, 0)
    total, theirs = max(sum(actions), 1), sum(paper.ACTIONS)
    sampled = sum(paper.SAMPLED.values())
    shares = zip(("skip", "execute", "repeat"), actions, paper.ACTIONS, strict=True)
    mended = sum(record.improved for record in kept)
    pairs = (
        ("questions learned from", f"{len(kept):,}", f"{sampled:,}"),
        ("of which mend a wrong answer, %", percent(mended / max(len(kept), 1)), percent(paper.IMPROVED)),
        ("questions visited", f"{n['visited']:,}", f"{paper.VISITED:,}"),
        ("some path right, % of visited", percent(n["kept"] / max(n["visited"], 1)), f"{percent(sampled / paper.VISITED)} or more"),
        ("routes evaluated a visited question", f"{n['routes'] / max(n['visited'], 1):.1f}", f"{paper.FORWARDS / paper.VISITED:.1f}"),
        *((f"{name} labels, %", f"{100 * ours / total:.2f}", f"{100 * other / theirs:.2f}") for name, ours, other in shares),
    )
    parts: list[Part] = [Table(HEADER, tuple(label_rows(stats)), f"{LEGEND[0].upper()}{LEGEND[1:]}.")]
    header = ("over all tasks", "here", f"{paper.PAPER}, its models")
    parts.append(Table(header, pairs, "Beside the paper's totals, which are of its own models. Labels are of the questions learned from."))
    if row.difference is not None:
        mean, low, high = map(points, row.difference)
        figures = f"{mean} points ({low} to {high}) of what the base gets wrong, questions pooled"
        text = "the search solves more than routes drawn blindly, in as many tries as it may take"
        parts.append(Bullets((Claim(text, decided(*row.difference[1:]), figures, OURS),)))
    return parts


def _table3(bench: Bench) -> list[Part]:
    stage = in_domain(bench.setup)
    summary = bench.run(stage)
    accuracy, passes = [], []
    for name, tasks in groups_of(stage):
        for reader, said in _readers(bench, stage, tasks).items():
            found = [against(bench, stage, ROUTERS, BASE, tasks, reader)]
            accuracy.append(weighed(f"routers raise accuracy{name}{said}", found, by=OURS if said else paper.PAPER))
        passes += [fewer(bench, stage, name, tasks), fewer(bench, stage, name, tasks, "layers")]
    claims = Bullets((*accuracy, *passes, *_instead(bench, stage)))
    caption = f"Routers where they were trained, {summary.split} split; in brackets 95 % intervals."
    return [by_task(summary, caption), claims, *_beside(bench, stage)]


def _instead(bench: Bench, stage: Evaluate) -> list[Claim]:
    """Whether a policy that reads the prompt beats the best single route, and its own routes dealt to other prompts, by each reader."""
    found, tasks = [], stage.tasks
    for policy in (ROUTERS, *(name for name in bench.setup.config.beside if name != "static" and not owner_of(name))):
        dealt = "shuffled" if policy == ROUTERS else f"shuffled-{policy}"
        for other in [name for name in ("static", dealt) if name in stage.methods]:
            for reader, said in _readers(bench, stage, tasks).items():
                difference = [against(bench, stage, policy, other, tasks, reader)]
                found.append(weighed(f"more right answers by {policy} than by {other}{said}", difference, by=OURS))
    return found


GROUPS = {"ARC": ("arc_",), "levels of difficulty": ("dart-", "arith-")}


def groups_of(stage: Evaluate) -> list[tuple[str, tuple[str, ...]]]:
    """All tasks, and the paper's two groups where they hold both: what to say behind a claim, and the tasks."""
    found = {name: tuple(task for task in stage.tasks if task.startswith(starts)) for name, starts in GROUPS.items()}
    n_tasks = len(stage.tasks)
    whole = [(f", mean over {n_tasks} tasks" if n_tasks > 1 else "", stage.tasks)]
    return whole + ([(f" on {name}", tasks) for name, tasks in found.items()] if all(found.values()) else [])


def _readers(bench: Bench, stage: Evaluate, tasks: Sequence[str]) -> dict[str, str]:
    """Columns of verdicts, and what to say of them: the reward, and the lenient reader where all these tasks are read twice."""
    is_read_twice = all(LENIENT in answers(bench, stage, BASE, task)[0] for task in tasks)
    return {CORRECT: ""} | ({LENIENT: ", read leniently"} if is_read_twice else {})


COUNTED = {  # columns of verdicts
    "n_passes": ("routers make fewer block passes than the base", "Passes a forward"),
    "layers": ("routers save layers a query, over prompt and generated tokens", "Layers a query"),
}


def fewer(bench: Bench, stage: Evaluate, name: str, tasks: Sequence[str], column: str = "n_passes") -> Claim:
    """Whether the routers' mean passes or layers over tasks are below the base's, by a bootstrap over questions."""
    passes = {}
    for task in tasks:
        base = {row["id"]: row[column] for row in answers(bench, stage, BASE, task)}
        passes[task] = [row[column] - base[row["id"]] for row in answers(bench, stage, ROUTERS, task)]
    _, (mean, low, high) = evenly(list(passes.values()))
    text, what = COUNTED[column]
    theirs = mean_of(bench, stage, BASE, tasks, column)
    holds, figures = decided(-high, -low), f"{what} less the base's {theirs:.4g}: {mean:+.2f} ({low:+.2f} to {high:+.2f})"
    many, few = without_few({task: len(values) for task, values in passes.items()})
    if many:
        _, (mean, low, high) = evenly([passes[task] for task in many])
        figures += f"; without {few} {mean:+.2f} ({low:+.2f} to {high:+.2f})"
        figures += otherwise(few, without) if (without := decided(-high, -low)) is not holds else ""
    return Claim(f"{text}{name}", holds, figures)


def _beside(bench: Bench, stage: Evaluate) -> list[Part]:
    """Accuracy by the paper's two groups of tasks, its own figures in columns beside ours where the model is theirs."""
    theirs = paper.published(bench.setup.model)
    rows = []
    for group, starts in GROUPS.items():
        tasks = [task for task in stage.tasks if task.startswith(starts)]
        if tasks:
            verdicts = [[row["correct"] for task in tasks for row in answers(bench, stage, method, task)] for method in (BASE, ROUTERS)]
            shares = [percent(sum(found) / len(found)) for found in verdicts]
            known = (theirs.arc if group == "ARC" else theirs.dart) if theirs else ()
            rows.append((f"{group}{STOOD_IN if group != 'ARC' else ''}, accuracy, %", *shares, *map(str, known)))
    row = pooled(bench.run(stage), ROUTERS)
    rows.append(("block passes a forward", f"{row.n_layers}", f"{row.mean_passes:.2f}", *([""] * 2 if theirs else [])))
    layers = (f"{mean_of(bench, stage, method, stage.tasks, 'layers'):.1f}" for method in (BASE, ROUTERS))
    rows.append(("layers a query, over prompt and generated tokens", *layers, *(map(str, theirs.layers) if theirs else ())))
    header = ("", "base", "routers", *((f"{theirs.name} in {paper.PAPER}: base", "routers") if theirs else ()))
    if theirs is None:
        return [Table(header, tuple(rows), "By the paper's groups of tasks; it has no figures for this model.")]
    caption = "By the paper's groups of tasks. Its layers are of longer answers, 12 to 29 forwards a query: only differences compare."
    return [Table(header, tuple(rows), caption)]


def _outside(setup: Setup) -> Evaluate | None:
    """Graded as lm-eval grades each task, whatever was searched: a model may know the answer and not keep to a letter."""
    worked = worked_tasks(setup.config.outside)
    tasks = tuple(name for name in setup.config.outside if name not in worked)
    return Evaluate((BASE, ROUTERS, "shuffled"), tasks, setup.config.split, reward="auto") if tasks else None


def _worked(setup: Setup) -> Worked | None:
    return Worked(tasks, setup.config.split) if (tasks := worked_tasks(setup.config.outside)) else None


def _outside_stages(setup: Setup) -> list[Stage]:
    found = [stage for stage in (_outside(setup), _worked(setup)) if stage is not None]
    return [*searches(setup), train_routers(setup), *found]


def _table4(bench: Bench) -> list[Part]:
    stage, worked, parts, ends = _outside(bench.setup), _worked(bench.setup), list[Part](), list[str]()
    if stage is not None:
        summary = bench.run(stage)
        parts.append(
            by_task(summary, f"The same routers on tasks that they never saw, each graded as lm-eval does, {summary.split} split.")
        )
        parts += answers_of_passages(bench, stage)
        rows = sorted((row for row in summary.rows if row.task in stage.tasks and row.method == ROUTERS), key=lambda row: row.difference)
        ends.append(f"By task, in points: {', '.join(f'{row.task} {row.change}' for row in rows)}.")
        looking = [against(bench, stage, ROUTERS, "shuffled")]
        ends.append(weighed("routers gain from what they read of the prompt out of domain", looking, by=OURS))
    if worked is not None:
        parts += worked_answers(bench, worked)
    return [*parts, Bullets((*_losses(bench, stage, worked), *ends))]


def _losses(bench: Bench, stage: Evaluate | None, worked: Worked | None) -> list[Claim]:
    """The claim out of domain over all tasks, a worked answer read strictly; and, where there are some, read flexibly."""
    ours, base = ({} if stage is None else verdicts_of(bench, stage, method, stage.tasks) for method in (ROUTERS, BASE))
    logs = None if worked is None else logged(bench, worked)
    claims: list[Claim] = []
    for reader in (STRICT, FLEXIBLE) if worked is not None and READ_TWICE in worked.tasks else (STRICT,):
        more = ({}, {}) if worked is None or logs is None else scored(logs, worked.tasks, reader)
        found, aim = compared(ROUTERS, BASE, ours | more[0], base | more[1]), paper.OUTSIDE_MEAN / 100
        holds = True if found.low >= aim else False if found.high < aim else None
        text = f"out of domain routers lose at most {-paper.OUTSIDE_MEAN} points, mean over {len(ours | more[0])} tasks (there over eight)"
        by_them = reader == STRICT
        claims.append(Claim(text + ("" if by_them else f", {FLEXIBLE}"), holds, str(found), paper.PAPER if by_them else OURS))
    return claims


def _rivals(setup: Setup) -> list[Train]:
    """The rivals of table 5 at the same share of passes; gates learn from right answers, which numbers after solved questions are not."""
    budget: tuple[tuple[str, Any], ...] = (("budget", BUDGET),)
    seed: tuple[tuple[str, Any], ...] = (("seed", setup.config.seed),) if setup.config.seed else ()
    n_tune = setup.scaled(CONTROL_QUESTIONS, 8)
    gated_on = _gated_tasks(setup)
    found = [
        Train("early_exit", "early_exit", budget, forwards_each=0),
        Train("shortgpt", "shortgpt", (*budget, ("questions", setup.scaled(256, 8)))),
        Train("random_skip", "random_skip", (*budget, *seed), forwards_each=0),
        # From the tasks that judge it, as the gates: a control that is set on others keeps another budget here.
        Train(BUDGETED, "routers", (*budget, ("tune_questions", n_tune), *seed), gated_on, n_tune=n_tune, points=16),
    ]
    if gated_on:
        steps, n_tune = setup.scaled(150, 3), setup.scaled(100, 8)
        gated = (*budget, ("steps", steps), ("tune_questions", n_tune), *seed)
        found += [
            Train("mindskip", "mindskip", gated, gated_on, 0, steps * GATE_STEP, n_tune, 7),
            Train("flexidepth", "flexidepth", (*gated, ("penalty", 3e-3)), gated_on, 0, steps * GATE_STEP, n_tune, 7),
        ]
    return found


def _gated_tasks(setup: Setup) -> tuple[str, ...]:
    return tuple(task for task in setup.tasks if get_task(task).reward_named(setup.config.reward) in GATED)


def _rivalry_stages(setup: Setup) -> list[Stage]:
    return [*searches(setup), train_routers(setup), *_rivals(setup), _rivalry(setup)]


def _rivalry(setup: Setup) -> Evaluate:
    methods = (BASE, ROUTERS, *(rival.policy for rival in _rivals(setup)), f"shuffled-{BUDGETED}")
    # Controls and thresholds are set on tune: questions that chose a policy must not judge it.
    split = "calibrate" if setup.config.split == "tune" else setup.config.split
    return Evaluate(methods, _gated_tasks(setup) or setup.tasks, split)


def _table5(bench: Bench) -> list[Part]:
    stage = _rivalry(bench.setup)
    summary = bench.run(stage)
    there = {row.method for row in summary.rows}
    rivals = [rival.policy for rival in _rivals(bench.setup) if rival.policy in there and rival.policy != BUDGETED]
    shown = ", ".join(f"{name} {value}" for name, value in paper.RIVALS.items())
    without = "MindSkip and FlexiDepth are not in the table: their gates learn from choices and boxed answers alone."
    lines = [] if _gated_tasks(bench.setup) else [without]
    lines += [f"{policy} is not in the table: {reason}." for policy, reason in bench.missed.items()]
    if BUDGETED in there:
        leads = [against(bench, stage, BUDGETED, rival) for rival in rivals]
        figures = f"Best of the rivals: {min(leads, key=lambda lead: lead.mean)}"
        kept = {name: pooled(summary, name) for name in (BUDGETED, *rivals)}
        aim = BUDGET * kept[BUDGETED].n_layers
        off = [f"{name} {row.mean_passes:.2f}" for name, row in kept.items() if abs(row.mean_passes - aim) > NEAR]
        if off:
            lines.insert(0, f"The savings are not quite equal: of {aim:.2f} passes aimed at, these make: {', '.join(off)}.")
        lines = [verdict(summary, BUDGETED), weighed("at equal savings routers keep more accuracy than any rival", leads, figures), *lines]
    caption = (
        f"{paper.SAVED} of {paper.OF_LAYERS} passes saved ({percent(BUDGET)} % kept), {summary.split} split: {BUDGETED} are routers "
        "of preset default with the control set on tune; routers are the paper's, which have no budget."
    )
    theirs = (
        f"{paper.PAPER}, mean accuracy on GSM8K, MMLU, HellaSwag and HumanEval with Llama-3-8B: {shown}. LayerSkip needs a model "
        "trained for it; early_exit stands for leaving early without that." + (GATES if {"mindskip", "flexidepth"} & there else "")
    )
    return [by_task(summary, caption), Paragraph(theirs), Bullets(tuple(lines))]


def _on_first_block(setup: Setup) -> Train:
    return train_routers(setup, FIRST_BLOCK, first_block=True)


def _inputs(setup: Setup) -> Evaluate:
    return ablation(setup, [ROUTERS, FIRST_BLOCK])


def _table6(bench: Bench) -> list[Part]:
    stage = _inputs(bench.setup)
    found = against(bench, stage, FIRST_BLOCK, BASE)
    below = None if found.is_gain is None else not found.is_gain
    own = weighed("each router does better on its own block's input", [against(bench, stage, ROUTERS, FIRST_BLOCK)])
    fallen = Claim("fed the first block's input, routers fall below the base", below, str(found))
    caption = "Each router on the states entering its own block, or all on those entering the first, tune split."
    return [by_task(bench.run(stage), caption), Bullets((own, fallen))]


def _table8(bench: Bench) -> list[Part]:
    stage = in_domain(bench.setup)
    rows = []
    rng = np.random.default_rng(bench.setup.config.seed)
    for task in stage.tasks:
        routes = routes_of(bench, stage, task)
        actions = np.array([tuple(route) for route in routes])  # of routers, which decide digits
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
    header = ("task", "prompts", "distinct routes", "blocks on which two prompts' routes agree, %")
    return [
        Table(header, tuple(rows), f"How far routes differ; {paper.PAPER}: {low} to {high} %."),
        Table((f"on {kept}, %", "here", f"{paper.PAPER}, its models"), quality, "Routers against the search's labels, along their path."),
        Paragraph(f"Nearly all labels are `execute`: {EXECUTING}."),
    ]


TABLES = (
    Exhibit("table2", "Table 2: labels of the search", searches, _table2),
    Exhibit("table3", "Table 3: accuracy and block passes in domain", after_routers(in_domain), _table3),
    Exhibit("table4", "Table 4: out of domain", _outside_stages, _table4),
    Exhibit("table5", "Table 5: rivals at equal savings", _rivalry_stages, _table5),
    Exhibit("table6", "Table 6: what routers read", after_routers(_on_first_block, _inputs), _table6),
    TABLE_7,
    Exhibit("table8", "Table 8: agreement of routes, quality of routers", after_routers(in_domain), _table8),
)
