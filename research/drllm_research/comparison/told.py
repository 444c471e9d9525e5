"""One route a task, told the task: what a policy that reads the prompt has to be above before reading is worth anything."""

from __future__ import annotations

from typing import Any

import numpy as np

PRICES = (0.0, *(0.002 * 1.1**step for step in range(80)))  # of a pass, in points per share of the base's passes


def routes_by_task(training_data: Any, budget: float) -> dict[str, Any]:
    """Of each task the route with the highest mean gain on its fit and tune questions, a saved pass counted at one price for all.

    The price is the lowest that keeps the mean over tasks within `budget`, a share of the base's passes. `SystemExit` where none does.
    A codebook is chosen by the same questions.
    """
    from drllm.methods.codebook import CodebookConfig

    fit, tune = training_data.fit_and_tune()
    gains = np.concatenate([part.mixed_gains(CodebookConfig().margin_weight) for part in (fit, tune)])
    tasks, saved = np.array(fit.tasks + tune.tasks), fit.saved()
    names = list(dict.fromkeys(tasks.tolist()))
    means = np.array([gains[tasks == name].mean(0) for name in names])
    for price in PRICES:
        chosen = (means + price * saved).argmax(1)
        if (1 - saved[chosen]).mean() <= budget + 1e-9:
            return {name: fit.routes[place] for name, place in zip(names, chosen, strict=True)}
    raise SystemExit(f"no routes of the matrix keep {budget} of the base's passes: add shorter ones, or leave that row out")
