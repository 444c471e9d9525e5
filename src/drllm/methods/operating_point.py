"""Which operating point of a trained policy to run: the best on tune within a budget of passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drllm.core.errors import BudgetError, InputError
from drllm.core.files import write_json
from drllm.methods.base import pass_limit
from drllm.runs.layout import POINTS_FILE

Answered = Sequence[tuple[Sequence[Any], Sequence[Any]]]  # of each point, verdicts and routes of the questions

if TYPE_CHECKING:
    from drllm.methods.base import TrainingData


def choose(
    made: Any,
    points: Sequence[Any],
    answer: Callable[[Any], Answered],
    training_data: TrainingData,
    n_questions: int,
    budget: float,
    folder: Path,
) -> Any:
    """The point that is best on `n_questions` tune questions a task within the budget, by the verdicts and routes that `answer` gives; the
    first of equal ones.

    The table goes to `folder/knob.json`. Without tune questions, or with `n_questions` 0, what was made, as it is.
    """
    (folder / POINTS_FILE).unlink(missing_ok=True)  # of an earlier training
    tune = training_data.tune(n_questions) if n_questions else []
    if not tune:
        if budget < 1:
            raise InputError("there is no tune question to keep the budget on: search data with a validation part, or give tune_questions")
        return made
    answers: list[list[tuple[bool, float]]] = [[] for _ in points]  # verdict and passes of each question
    for ask in tune:
        for found, (verdicts, routes) in zip(answers, answer(ask), strict=True):
            found += [(verdict.correct, route.n_passes) for verdict, route in zip(verdicts, routes, strict=True)]
    table: list[dict[str, Any]] = []
    for index, found in enumerate(answers):
        correct, passes = zip(*found, strict=True)
        table.append({"point": index, "accuracy": float(np.mean(correct)), "mean_passes": float(np.mean(passes)), "n": len(found)})
    write_json(folder / POINTS_FILE, {"points": table})
    limit = pass_limit(budget, made.n_layers)
    within = [row for row in table if row["mean_passes"] <= limit]
    if not within:
        least = min(row["mean_passes"] for row in table)
        spent = f"spends at least {least:.1f} passes on tune, above the budget of {limit:.1f}"
        raise BudgetError(f"a {made.name!r} policy {spent}: raise --budget")
    chosen = points[max(within, key=lambda row: (row["accuracy"], -row["point"]))["point"]]
    chosen.prompt_format = made.prompt_format
    return chosen
