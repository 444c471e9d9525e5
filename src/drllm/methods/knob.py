"""Which operating point of a trained policy to run: the best on tune within a budget of passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.errors import InputError
from drllm.files import write_json
from drllm.progress import Progress

if TYPE_CHECKING:
    from drllm.methods.material import Material
    from drllm.model.policy import Policy


def choose_point(
    policy: Policy, material: Material, n_questions: int, budget: float, folder: Path, cheaper: Sequence[Policy] = ()
) -> Policy:
    """The point that is best on `n_questions` tune questions a task within the budget; equal ones: the one nearest the base.

    `cheaper` are further points, tried only if there is a budget. The table goes to `folder/knob.json`. Without tune questions, or with 0
    asked for, the policy as it is.
    """
    (folder / "knob.json").unlink(missing_ok=True)  # of an earlier training
    asked = material.tune(n_questions) if n_questions else []
    if not asked:
        if budget < 1:
            raise InputError("there is no tune question to keep the budget on: search data with a validation part, or give tune_questions")
        return policy
    points = [*policy.operating_points(), *(cheaper if budget < 1 else ())]
    rows = []
    with Progress("set the knob", len(points)) as progress:
        for index, point in enumerate(points):
            correct, passes = [], []
            for scorer, questions in asked:
                verdicts, routes = scorer.score_policy(questions, point)
                correct += [verdict.correct for verdict in verdicts]
                passes += [route.n_passes for route in routes]
            rows.append({"point": index, "accuracy": float(np.mean(correct)), "mean_passes": float(np.mean(passes)), "n": len(correct)})
            progress.advance(1)
    write_json(folder / "knob.json", {"points": rows})
    limit = budget * policy.n_layers + 1e-9 if budget < 1 else float("inf")
    within = [row for row in rows if row["mean_passes"] <= limit]
    if not within:
        least = min(row["mean_passes"] for row in rows)
        raise InputError(
            f"a {policy.name!r} policy spends at least {least:.1f} passes on tune, above the budget of {limit:.1f}: raise --budget"
        )
    chosen = points[max(within, key=lambda row: (row["accuracy"], -row["point"]))["point"]]
    chosen.prompt_format = policy.prompt_format
    return chosen
