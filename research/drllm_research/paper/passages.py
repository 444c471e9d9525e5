"""What table 4 shows of answers out of passages: SQuAD v2's exact match and F1, of questions with an answer and of those without."""

from __future__ import annotations

from collections.abc import Sequence

from drllm.core.text import percent
from drllm.reporting.parts import Part, Table
from drllm.runs.answers import Answers, read_answers
from drllm.tasks import get_task, load_task
from drllm_research.paper.stages import Bench, Evaluate

HEADER = ("task", "method", "questions", "exact, %", "F1, %", "with an answer", "exact, %", "F1, %", "without one", "exact, %")


def answers_of_passages(bench: Bench, stage: Evaluate) -> list[Part]:
    """A table of the stage's tasks whose answers stand in a passage; nothing where it has none."""
    tasks = [task for task in stage.tasks if get_task(task).kind == "passage"]
    rows = tuple(row for task in tasks for row in _rows(bench, stage, task))
    return [Table(HEADER, rows, "Answers out of passages, counted as SQuAD v2's own script does.")] if rows else []


def _rows(bench: Bench, stage: Evaluate, task: str) -> list[tuple[str, ...]]:
    folder = bench.run(stage).split
    examples = load_task(task, bench.setup.data or None).examples[stage.split]
    has_answer = {example.id: bool(example.choices) for example in examples}
    found, answers = [], read_answers(bench.setup.run.answers(folder))
    for method in bench.there(stage.methods):
        verdicts = answers[method, task]
        kinds = [[at for at, name in enumerate(verdicts.ids) if has_answer[name] is kind] for kind in (True, False)]
        everything = range(len(verdicts.ids))
        shares = [_shares(verdicts, places) for places in (everything, *kinds)]
        found.append((task, method, *shares[0], *shares[1], *shares[2][:2]))  # without an answer both are the same
    return found


def _shares(verdicts: Answers, places: Sequence[int]) -> tuple[str, str, str]:
    """How many questions, and their mean exact match and F1 in percent; blanks where there are none."""
    if not places:
        return "0", "", ""
    means = (sum(float(column[at]) for at in places) / len(places) for column in (verdicts.correct, verdicts.f1))
    return f"{len(places):,}", *map(percent, means)  # type: ignore[return-value]
