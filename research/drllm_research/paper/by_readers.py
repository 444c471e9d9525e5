"""A gain by the strict and by the lenient reader, and what of it is form: beside every comparison of letters or boxed answers."""

from __future__ import annotations

from collections.abc import Sequence

from drllm.core.text import percent, with_interval
from drllm.reporting.parts import Part, Table
from drllm.runs.names import BASE
from drllm.runs.summary import evenly
from drllm_research.paper.claims import LENIENT, STRICT, against, answers, mean_of
from drllm_research.paper.stages import Bench, Evaluate

HEADER = ("points over the base", "strict", "lenient", "form", "answers in the asked form, %", "boxes not closed, %")
CAPTION = (
    "Each answer is read twice. The strict reader, the authors', takes a bare letter or a closed box; the lenient one takes the right "
    "answer in any form. Form is the strict gain less the lenient one, question by question. Mean over {tasks}; 95 % intervals."
)


def by_readers(bench: Bench, stage: Evaluate) -> list[Part]:
    """A row a method, the base first; nothing where no answer is a letter or boxed."""
    tasks = [task for task in stage.tasks if STRICT in answers(bench, stage, BASE, task)[0]]
    if not tasks:
        return []
    accuracy = (percent(mean_of(bench, stage, BASE, tasks, reader)) for reader in (STRICT, LENIENT))
    rows = [(f"{BASE} (its accuracy, %)", *accuracy, "", *_forms(bench, stage, BASE, tasks))]
    for name in (method for method in bench.there(stage.methods) if method != BASE):
        gains = [against(bench, stage, name, BASE, tasks, reader) for reader in (STRICT, LENIENT)]
        shown = (with_interval(gain.mean, gain.low, gain.high) for gain in gains)
        rows.append((name, *shown, with_interval(*form_of(bench, stage, name, tasks)), *_forms(bench, stage, name, tasks)))
    return [Table(HEADER, tuple(rows), CAPTION.format(tasks=", ".join(tasks)))]


def form_of(bench: Bench, stage: Evaluate, method: str, tasks: Sequence[str]) -> tuple[float, float, float]:
    """What of a method's gain over the base is form: mean and 95 % interval, as fractions, each task weighing the same."""
    parts = []
    for task in tasks:
        base = {row["id"]: row for row in answers(bench, stage, BASE, task)}
        rows = [(row, base[row["id"]]) for row in answers(bench, stage, method, task)]
        parts.append([(ours[STRICT] - theirs[STRICT]) - (ours[LENIENT] - theirs[LENIENT]) for ours, theirs in rows])
    return evenly(parts)[1]


def _forms(bench: Bench, stage: Evaluate, method: str, tasks: Sequence[str]) -> list[str]:
    """Shares of a method's answers that are in the asked form, and that end in an open box, in percent."""
    forms = [[row["form"] for row in answers(bench, stage, method, task)] for task in tasks]
    return [percent(sum(found.count(form) / len(found) for found in forms) / len(forms)) for form in ("asked", "unclosed")]
