"""The dense (question x route) matrix of a run: what every listed route answers to every question, for methods that choose among routes.

Shapes: N questions, R routes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from drllm.errors import ArtifactError
from drllm.methods.planned import planned_questions, planned_records, planned_scorer
from drllm.model.routed import RoutedModel
from drllm.routes import Route


@dataclass(frozen=True)
class Matrix:
    """Verdicts and margins of R routes, the base first, on N questions of one split.

    Attributes:
        routes: R of them.
        tasks, ids: N each; the task and name of every question.
        prompts: token ids of each question's context, as a policy sees it.
        correct: (N, R) bool.
        margins: (N, R) float32; nan where the reward has none.
        prompt_format: "raw" or "chat".
        key: names the records and the weights behind them.
    """

    routes: tuple[Route, ...]
    tasks: tuple[str, ...]
    ids: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    correct: np.ndarray
    margins: np.ndarray
    prompt_format: str
    key: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def gains(self) -> np.ndarray:
        """(N, R) in {-1, 0, 1}: the verdict less the base's."""
        return self.correct.astype(np.int8) - self.correct[:, :1].astype(np.int8)

    @property
    def margin_gains(self) -> np.ndarray:
        """(N, R): the margin less the base's, in standard deviations of the base's margin within the question's task."""
        tasks = np.array(self.tasks)
        spread = np.ones(len(tasks))
        for name in np.unique(tasks):
            spread[tasks == name] = max(float(np.std(self.margins[tasks == name, 0])), 1e-6)
        return (self.margins - self.margins[:, :1]) / spread[:, None]

    def passes(self) -> np.ndarray:
        """(R,): block passes of each route."""
        return np.array([route.n_passes for route in self.routes])

    def at(self, places: Sequence[int]) -> Matrix:
        """Some columns, in that order."""
        routes = tuple(self.routes[place] for place in places)
        return replace(self, routes=routes, correct=self.correct[:, places], margins=self.margins[:, places])


def read_matrix(routed: RoutedModel, run: Path, plans: dict[Path, dict[str, Any]], split: str) -> Matrix:
    """The tasks of `plans`, of a `search --paths`, questions of one split; `ArtifactError` without any, or with other routes a task."""
    if split not in ("fit", "tune"):
        raise ValueError(f"a method may learn from fit and choose by tune, not read {split}")
    how = f"run `drllm search --paths FILE --splits fit,tune --out {run}` first"
    if not plans:
        raise ArtifactError(f"{run} holds no (question x route) matrix: {how}")
    rows, tasks, prompts, digests = [], [], [], []
    routes: tuple[Route, ...] = ()
    formats = set()
    for folder, plan in plans.items():
        records = planned_records(routed, folder, plan)
        scorer = planned_scorer(routed, plan)
        questions = planned_questions(scorer, folder, plan)
        digests.append(json.dumps(plan, sort_keys=True))
        formats.add(scorer.prompt_format)
        for name in plan["ids"]:
            record = records[name]
            if record.split != split or record.broken:
                continue
            routes = routes or record.routes
            if record.routes != routes:
                raise ArtifactError(f"{folder} was evaluated on other routes than the tasks before it: give all tasks the same --paths")
            rows.append(record)
            tasks.append(plan["task"])
            prompts.append(tuple(questions[name].context_ids))
    if not rows:
        raise ArtifactError(f"the matrix of {run} has no {split} question: {how}")
    if len(formats) != 1:
        raise ArtifactError(f"the tasks of {run} use {len(formats)} prompt formats ({', '.join(sorted(formats))}): use a run for each")
    return Matrix(
        routes, tuple(tasks), tuple(record.id for record in rows), tuple(prompts),
        np.array([record.rewards for record in rows]) > 0.5, np.array([record.margins for record in rows], dtype=np.float32),
        formats.pop(), hashlib.sha256("".join([split, *digests]).encode()).hexdigest()[:16],
    )  # fmt: skip
