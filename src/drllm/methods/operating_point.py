"""Which operating point of a trained policy to run: the best on tune within a budget of passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drllm.core.errors import BudgetError, InputError
from drllm.core.files import write_json
from drllm.methods.base import pass_limit
from drllm.runs.layout import POINTS_FILE

if TYPE_CHECKING:
    from drllm.methods.base import Policy, TrainingData


def choose_point(
    policy: Policy, training_data: TrainingData, n_questions: int, budget: float, folder: Path, cheaper: Sequence[Policy] = ()
) -> Policy:
    """The point that is best on `n_questions` tune questions a task within the budget; equal ones: the one nearest the base.

    `cheaper` are further points, tried only if there is a budget. The table goes to `folder/knob.json`. Without tune questions, or with
    `n_questions` 0, the policy as it is.
    """
    (folder / POINTS_FILE).unlink(missing_ok=True)  # of an earlier training
    tune = training_data.tune(n_questions) if n_questions else []
    if not tune:
        if budget < 1:
            raise InputError("there is no tune question to keep the budget on: search data with a validation part, or give tune_questions")
        return policy
    points = [*policy.operating_points(), *(cheaper if budget < 1 else ())]
    answers: list[list[tuple[bool, float]]] = [[] for _ in points]  # verdict and passes of each question
    for ask in tune:
        for found, (verdicts, routes) in zip(answers, training_data.bench.answers(ask, points, "choose the operating point"), strict=True):
            found += [(verdict.correct, route.n_passes) for verdict, route in zip(verdicts, routes, strict=True)]
    table: list[dict[str, Any]] = []
    for index, found in enumerate(answers):
        correct, passes = zip(*found, strict=True)
        table.append({"point": index, "accuracy": float(np.mean(correct)), "mean_passes": float(np.mean(passes)), "n": len(found)})
    write_json(folder / POINTS_FILE, {"points": table})
    limit = pass_limit(budget, policy.n_layers)
    within = [row for row in table if row["mean_passes"] <= limit]
    if not within:
        least = min(row["mean_passes"] for row in table)
        spent = f"spends at least {least:.1f} passes on tune, above the budget of {limit:.1f}"
        raise BudgetError(f"a {policy.name!r} policy {spent}: raise --budget")
    chosen = points[max(within, key=lambda row: (row["accuracy"], -row["point"]))["point"]]
    chosen.prompt_format = policy.prompt_format
    return chosen
