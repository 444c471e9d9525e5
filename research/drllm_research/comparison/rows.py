"""What the comparison of methods asks (settings) and whom (rows)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

ARC, OBQA = ("arc_easy", "arc_challenge"), ("openbookqa",)
MIXED = (*ARC, *OBQA, "commonsenseqa", "piqa", "boolq")
OUTSIDE = ("piqa", "sciq", "commonsenseqa", "boolq", "mmlu")
# Of a model that answers letters: what it is asked so, and kinds of prompts of which some are answered by numbers.
LETTERS = (*ARC, *OBQA, "commonsenseqa")
KINDS = (*LETTERS, "piqa", "arith-6", "arith-8")
UNSEEN = ("mmlu", "sciq", "truthfulqa", "agieval")


@dataclass(frozen=True)
class Setting:
    """What a setting asks.

    Attributes:
        learned: tasks learned from.
        asked: tasks asked.
        policies: of another setting, if it trains none of its own.
        reward: how tasks that the matrix does not hold are judged.
        apart: every task that some policy of the model may learn from, whose questions others must not hold.
        searched: tasks learned from by tree search, which is too dear for all kinds; none: all that are learned.
    """

    learned: tuple[str, ...]
    asked: tuple[str, ...]
    policies: str = ""
    reward: str = "auto"
    apart: tuple[str, ...] = MIXED
    searched: tuple[str, ...] = ()


SETTINGS = {
    "arc": Setting(ARC, ARC),
    "openbookqa": Setting(OBQA, OBQA),
    "commonsenseqa": Setting(("commonsenseqa",), ("commonsenseqa",)),
    "piqa": Setting(("piqa",), ("piqa",)),
    "boolq": Setting(("boolq",), ("boolq",)),
    "in-domain": Setting((*ARC, *OBQA), (*ARC, *OBQA)),
    "mixed": Setting(MIXED, MIXED),
    "ood": Setting((*ARC, *OBQA), OUTSIDE, "in-domain"),
    "letters": Setting(LETTERS, LETTERS, apart=KINDS, searched=ARC),
    "kinds": Setting(KINDS, KINDS, apart=KINDS, searched=(*ARC, "arith-6", "arith-8")),
    "letters-ood": Setting(LETTERS, UNSEEN, "letters", "letter", KINDS),
    "letters-ood-likelihood": Setting(LETTERS, UNSEEN, "letters", "auto", KINDS),  # as lm-eval grades them
}
TOLD = ("arc", "openbookqa", "commonsenseqa", "piqa", "boolq")  # settings whose static routes make static-per-task
BUDGET = 0.9


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
        method, options: what is trained.
        seeds: whether a seed changes it.
        searched: it learns from a tree search, not from the matrix.
        fit, tune: questions a task that it learns from and is chosen by; None: all there are.
        only: the settings it is trained in; none: all but those of one task.
    """

    method: str
    options: dict[str, Any]
    seeds: bool = False
    searched: bool = False
    fit: int | None = None
    tune: int | None = None
    only: tuple[str, ...] = ()


KNOB, THRESHOLD = 50, 100  # tune questions a task that they are set on: each costs an evaluation at every point
ROWS = {
    "static": Row("static", {"candidates": 100, "steps": 1}, tune=0),
    "static_tuned": Row("static", {"use_tune": True}),
    "codebook": Row("codebook", {}, True),
    "codebook_by_task": Row("codebook", {"targets": "task"}, True),
    "polar": Row("polar", {}, True),
    "routers": Row("routers", {"tune_questions": KNOB}, True, tune=KNOB),
    "paper": Row("routers", {"preset": "paper"}, True, True, fit=130, tune=0, only=("in-domain", "letters", "kinds")),
    "random_codebook": Row("random_codebook", {}, True),
    "input_blind": Row("input_blind", {}, True),
    "random_codebook_by_task": Row("random_codebook", {"targets": "task"}, True),
    "input_blind_by_task": Row("input_blind", {"targets": "task"}, True),
    "oracle": Row("oracle", {}, tune=0),
    "static@0.9": Row("static", {"candidates": 100, "steps": 1, "budget": BUDGET}, tune=0),
    "static_tuned@0.9": Row("static", {"use_tune": True, "budget": BUDGET}),
    "codebook@0.9": Row("codebook", {"budget": BUDGET}, True),
    "routers@0.9": Row("routers", {"budget": BUDGET, "tune_questions": KNOB}, tune=KNOB),
    "tale": Row("tale", {"questions": 64}, fit=64, tune=0, only=("in-domain", "letters")),
    "tale@0.9": Row("tale", {"budget": BUDGET, "questions": 64}, fit=64, tune=0, only=("in-domain", "letters")),
    "shortgpt@0.9": Row("shortgpt", {"budget": BUDGET, "questions": 255}, fit=85, tune=0),
    "early_exit@0.9": Row("early_exit", {"budget": BUDGET}, fit=0, tune=0),
    "random_skip@0.9": Row("random_skip", {"budget": BUDGET}, True, fit=0, tune=0),
    "mindskip@0.9": Row("mindskip", {"budget": BUDGET, "tune_questions": THRESHOLD}, fit=400, tune=THRESHOLD, only=("in-domain",)),
    "flexidepth@0.9": Row(
        "flexidepth", {"budget": BUDGET, "penalty": 3e-3, "tune_questions": THRESHOLD}, fit=400, tune=THRESHOLD, only=("in-domain",)
    ),
}  # gates: 150 steps of 8 questions; they answer by log-likelihood alone, so not in the settings with letters or numbers
# Of the frontier, static against a policy a prompt; the rows without a budget spend what they like. A policy a prompt has no budget above
# the base's passes: it spends more where that gains, as `polar` may. Beside it stand the best single routes of as many passes or more.
FRONTIER, LONGER, DRAWN = (0.7, 0.75, 0.8, 0.85, 0.95), (1.05, 1.1, 1.14), ("letters", "kinds")
ROWS["codebook_by_task@0.9"] = Row("codebook", {"targets": "task", "budget": BUDGET}, True, only=DRAWN)
ROWS["random_codebook@0.9"] = Row("random_codebook", {"budget": BUDGET}, True, only=DRAWN)
ROWS["random_codebook_by_task@0.9"] = Row("random_codebook", {"targets": "task", "budget": BUDGET}, True, only=DRAWN)
# Those above read states (`STATES`); these read the prompt's text.
ROWS["codebook_text"] = Row("codebook", {"read": "text"}, True)
ROWS["codebook_text@0.9"] = Row("codebook", {"read": "text", "budget": BUDGET}, True)
# Prompts unlike those learned from keep the base: looked at after the others had been read on test.
ROWS["codebook_by_task_guarded"] = Row("codebook", {"targets": "task", "unfamiliar": 0.01}, True, only=DRAWN)
ROWS["codebook_guarded@0.9"] = Row("codebook", {"budget": BUDGET, "unfamiliar": 0.01}, True, only=DRAWN)
# Questions a task that they ask themselves, instead of those above: a step of `tale` asks 27 skips, each a second and more a question.
FEWER = {("letters", "tale"): 30, ("letters", "tale@0.9"): 30}
for spent in FRONTIER:
    ROWS[f"static_tuned@{spent}"] = Row("static", {"use_tune": True, "budget": spent}, only=DRAWN)
    ROWS[f"codebook@{spent}"] = Row("codebook", {"budget": spent}, only=DRAWN)
    ROWS[f"codebook_by_task@{spent}"] = Row("codebook", {"targets": "task", "budget": spent}, only=DRAWN)
for spent in LONGER:
    ROWS[f"static_tuned@{spent}"] = Row("longer", {"at_least": spent}, only=DRAWN)
for name, spent in (("told", 1.0), ("told@0.9", BUDGET)):
    ROWS[name] = Row("told", {"budget": spent}, only=DRAWN)
LIGHT = ("static", "static_tuned", "codebook", "polar", "random_codebook", "input_blind")  # of the settings of one task
SHUFFLED = ("codebook", "codebook_by_task", "polar", "routers", "paper", "codebook@0.9", "routers@0.9", "codebook_by_task@0.9")
SHUFFLED += ("codebook_by_task_guarded", "codebook_guarded@0.9", "codebook_text", "codebook_text@0.9")
STATES = ("codebook", "random_codebook", "input_blind")  # methods whose rows read states where they do not say what


def wanted_rows(setting: str, methods: str, seeds: int) -> Iterable[tuple[str, Row, int]]:
    """(name in the table, row, seed) of a setting."""
    for name, row in ROWS.items():
        narrow = setting in TOLD
        here = SETTINGS[setting].policies or setting
        if row.method == "told" and SETTINGS[setting].policies:  # no route for tasks that nothing was learned from
            continue
        if (methods and name not in methods.split(",")) or (narrow and name not in LIGHT) or (row.only and here not in row.only):
            continue
        if questions := FEWER.get((here, name)):
            row = replace(row, options={**row.options, "questions": questions}, fit=questions)
        for seed in range(seeds if row.seeds and not narrow else 1):
            yield name, row, seed


def file_of(name: str, seed: int) -> str:
    return f"{name.replace('@', '_at_')}.{seed}"
