"""Re-verification of kept routes: alone, in float32, and under another wording, since a label that flips teaches nothing.

| reward | checks |
|---|---|
| loglik | `fp32:acc`, `fp32:acc_norm`: the same question; `template:acc`, `template:acc_norm`: a second prompt template |
| letter | `fp32`; `rotated:k`: the options rotated by k, for every k |
| boxed, number, exact | `fp32` |

Each runs in steps of one sequence, so no other question is in the batch. A wording that does not fit the context is not checked.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.model.copies import twin_in
from drllm.model.routed import RoutedModel
from drllm.runs.records import Check
from drllm.scoring.loglik import LoglikScorer
from drllm.scoring.scorer import Scorer, scorer_of
from drllm.tasks import Example, Task

ALONE = 1  # tokens of a step: fewer than any question has, so each step holds one sequence


class Verifier:
    """Checks routes on a float32 twin of the model, made when there is something to check; a float32 model is its own twin.

    The twin converts the model's own weights block by block: memory for one block, the embedding and the head is needed.
    """

    def __init__(self, routed: RoutedModel, task: Task, config: SearchConfig):
        self.task, self.config = task, config
        twin = routed if routed.model.dtype == torch.float32 else twin_in(routed, torch.float32)
        self.scorer: Scorer = scorer_of(twin, task, replace(config, max_step_tokens=ALONE))

    def checks(self, example: Example, routes: Iterable[Route | None]) -> tuple[Check, ...]:
        """Every check of each distinct route, None left out; none in a wording that does not fit the context."""
        wanted = list(dict.fromkeys(route for route in routes if route is not None))
        versions = [("fp32", self.task, example)]
        if isinstance(self.scorer, LoglikScorer):
            versions.append(("template", self.task.reworded(), example))
        elif self.scorer.reward == "letter":
            versions += [(f"rotated:{by}", self.task, rotated(example, by)) for by in range(1, len(example.choices))]
        scorer: Any = self.scorer
        found: list[Check] = []
        for name, task, version in versions:
            try:
                question = scorer.question(task, version)
            except InputError:
                continue
            scorer.load([question])
            for route in wanted:
                [verdict] = scorer.score([(0, route)])
                if isinstance(scorer, LoglikScorer):
                    found.append(Check(route, f"{name}:acc", bool(verdict.acc), verdict.margin_acc))
                    found.append(Check(route, f"{name}:acc_norm", bool(verdict.acc_norm), verdict.margin_acc_norm))
                else:
                    found.append(Check(route, name, verdict.correct, verdict.margin))
        return tuple(sorted(found, key=lambda check: wanted.index(check.route)))


def rotated(example: Example, by: int) -> Example:
    """The same question with its options moved `by` places up, around the end."""
    assert isinstance(example.answer, int)
    n = len(example.choices)
    return replace(example, choices=example.choices[by:] + example.choices[:by], answer=(example.answer - by) % n)
