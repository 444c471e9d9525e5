"""Table 5 of the paper: rivals at the same share of passes."""

from typing import Any

from drllm.core.text import percent
from drllm.paper import published as paper
from drllm.paper.claims import against, pooled, weighed
from drllm.paper.exhibits import Exhibit, comparison, searches, train_routers
from drllm.paper.setup import Setup
from drllm.paper.stages import ROUTERS, Bench, Evaluate, Stage, Train
from drllm.reporting.parts import Bullets, Paragraph, Part
from drllm.reporting.summary_table import verdict
from drllm.runs.names import BASE
from drllm.tasks import get_task

BUDGET = 1 - paper.SAVED / paper.OF_LAYERS
BUDGETED, CONTROL_QUESTIONS = "routers_budget", 50
NEAR = 0.5  # passes around the budget that count as keeping to it
GATES = " MindSkip and FlexiDepth learn here from some hundreds of questions, in their papers from hundreds of thousands of texts."
GATE_STEP = 24  # PF of a training step of gates: 8 questions, forward and backward through the frozen blocks


def _rivals(setup: Setup) -> list[Train]:
    """The rivals of table 5 at the same share of passes; gates learn from tasks with choices alone."""
    budget: tuple[tuple[str, Any], ...] = (("budget", BUDGET),)
    seed: tuple[tuple[str, Any], ...] = (("seed", setup.config.seed),) if setup.config.seed else ()
    n_tune = setup.scaled(CONTROL_QUESTIONS, 8)
    choice = _choice_tasks(setup)
    found = [
        Train("early_exit", "early_exit", budget, forwards_each=0),
        Train("shortgpt", "shortgpt", (*budget, ("questions", setup.scaled(256, 8)))),
        Train("random_skip", "random_skip", (*budget, *seed), forwards_each=0),
        # From the tasks that judge it, as the gates: a control that is set on others keeps another budget here.
        Train(BUDGETED, "routers", (*budget, ("tune_questions", n_tune), *seed), choice, n_tune=n_tune, points=16),
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


def _stages(setup: Setup) -> list[Stage]:
    return [*searches(setup), train_routers(setup), *_rivals(setup), _rivalry(setup)]


def _rivalry(setup: Setup) -> Evaluate:
    methods = (BASE, ROUTERS, *(rival.policy for rival in _rivals(setup)), f"shuffled-{BUDGETED}")
    # Controls and thresholds are set on tune: questions that chose a policy must not judge it.
    split = "calibrate" if setup.config.split == "tune" else setup.config.split
    return Evaluate(methods, _choice_tasks(setup) or setup.tasks, split)


def _table(bench: Bench) -> list[Part]:
    stage = _rivalry(bench.setup)
    summary = bench.run(stage)
    there = {row.method for row in summary.rows}
    rivals = [rival.policy for rival in _rivals(bench.setup) if rival.policy in there and rival.policy != BUDGETED]
    shown = ", ".join(f"{name} {value}" for name, value in paper.RIVALS.items())
    lines = [] if _choice_tasks(bench.setup) else ["MindSkip and FlexiDepth are not in the table: their gates learn from choices alone."]
    lines += [f"{policy} is not in the table: {reason}." for policy, reason in bench.missed.items()]
    if BUDGETED in there:
        leads = [against(bench, stage, BUDGETED, rival) for rival in rivals]
        text = "at equal savings routers keep more accuracy than any rival"
        figures = f"Best of the rivals: {min(leads, key=lambda lead: lead.mean)}"
        kept = {name: pooled(summary, name) for name in (BUDGETED, *rivals)}
        aim = BUDGET * kept[BUDGETED].n_layers
        off = [f"{name} {row.mean_passes:.2f}" for name, row in kept.items() if abs(row.mean_passes - aim) > NEAR]
        if off:
            lines.insert(0, f"The savings are not quite equal: of {aim:.2f} passes aimed at, these make: {', '.join(off)}.")
        lines = [verdict(summary, BUDGETED), weighed(text, leads, figures), *lines]
    caption = (
        f"{paper.SAVED} of {paper.OF_LAYERS} passes saved ({percent(BUDGET)} % kept), {summary.split} split: {BUDGETED} are routers "
        "of preset default with the control set on tune; routers are the paper's, which have no budget."
    )
    theirs = (
        f"{paper.PAPER}, mean accuracy on GSM8K, MMLU, HellaSwag and HumanEval with Llama-3-8B: {shown}. LayerSkip needs a model "
        "trained for it; early_exit stands for leaving early without that." + (GATES if {"mindskip", "flexidepth"} & there else "")
    )
    return [comparison(summary, caption), Paragraph(theirs), Bullets(tuple(lines))]


RIVALS = Exhibit("table5", "Table 5: rivals at equal savings", _stages, _table)
