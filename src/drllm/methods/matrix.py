"""The dense (question x route) matrix of a run: what every listed route answers to every question, for methods that choose among routes.

Shapes: N questions, R routes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drllm.core.digest import short_digest
from drllm.core.errors import ArtifactError
from drllm.core.route import Route
from drllm.runs.manifest import Manifest
from drllm.runs.records import RouteRecord

if TYPE_CHECKING:
    from drllm.methods.checked_records import CheckedTask  # with torch


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

    def mixed_gains(self, margin_weight: float) -> np.ndarray:
        """(N, R): `mixed_gain`, margins in standard deviations of the base's within the question's task."""
        tasks = np.array(self.tasks)
        spread = np.ones((len(tasks), 1))
        for name in np.unique(tasks):
            spread[tasks == name] = max(float(np.std(self.margins[tasks == name, 0])), 1e-6)
        return mixed_gain(self.margins, self.correct, spread, margin_weight)

    def passes(self) -> np.ndarray:
        """(R,): block passes of each route."""
        return np.array([route.n_passes for route in self.routes])

    def at(self, places: Sequence[int]) -> Matrix:
        """Some columns, in that order."""
        routes = tuple(self.routes[place] for place in places)
        return replace(self, routes=routes, correct=self.correct[:, places], margins=self.margins[:, places])


def mixed_gain(margins: np.ndarray, right: np.ndarray, spread: np.ndarray | float, weight: float) -> np.ndarray:
    """Gains over the base, which comes first on the last axis: margin's, at most a standard deviation of the base's, and verdict's.

    Margins are steadier; alone they miss a route that turns many verdicts by a little. Where there are none, the verdict alone.
    """
    verdict = right.astype(float) - right[..., :1]
    margin = np.clip((margins - margins[..., :1]) / spread, -1, 1)
    return np.where(np.isnan(margin), verdict, weight * margin + (1 - weight) * verdict)


def read_matrix(run: Path, manifests: dict[Path, Manifest], dense: Sequence[CheckedTask], split: str) -> Matrix:
    """Questions of one split, on the routes that all tasks were evaluated on; `dense` are the tasks of `manifests`, of a `search --paths`.

    `ArtifactError` without any question, or without such a route.
    """
    if split not in ("fit", "tune"):
        raise ValueError(f"a method may learn from fit and choose by tune, not read {split}")
    how = f"run `drllm search --paths FILE --splits fit,tune --out {run}` first"
    if not manifests:
        raise ArtifactError(f"{run} holds no (question x route) matrix: {how}")
    records: list[RouteRecord] = []
    prompts: list[tuple[int, ...]] = []
    formats = set()
    for task in dense:
        formats.add(task.scorer.prompt_format)
        here = task.of_split(split)
        for record, question in zip(here.records, here.questions, strict=True):
            if not record.broken:
                records.append(record)
                prompts.append(tuple(question.context_ids))
    if not records:
        raise ArtifactError(f"the matrix of {run} has no {split} question: {how}")
    shared = set.intersection(*({*record.routes} for record in records))
    routes = tuple(route for route in records[0].routes if route in shared)
    if len(routes) < 2:
        raise ArtifactError(f"the tasks of {run} were evaluated on no route that all of them share: give all tasks the same --paths")
    digests = [json.dumps(manifest.to_json(), sort_keys=True) for manifest in manifests.values()]
    columns = [[record.routes.index(route) for route in routes] for record in records]
    if len(formats) != 1:
        raise ArtifactError(f"the tasks of {run} use {len(formats)} prompt formats ({', '.join(sorted(formats))}): use a run for each")
    rewards = [[record.rewards[at] for at in places] for record, places in zip(records, columns, strict=True)]
    margins = [[record.margins[at] for at in places] for record, places in zip(records, columns, strict=True)]
    tasks, ids = tuple(record.task for record in records), tuple(record.id for record in records)
    values = (np.array(rewards) > 0.5, np.array(margins, dtype=np.float32))
    return Matrix(routes, tasks, ids, tuple(prompts), *values, formats.pop(), short_digest("".join([split, *digests])))
