"""What a method learns from: the records of a run and their questions, checked, read once and only when asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.digest import short_digest
from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.methods.matrix import Matrix
from drllm.model.routed import RoutedModel
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import Policy
from drllm.runs.labels import kept_in
from drllm.runs.manifest import Manifest, data_of, path_manifests, search_manifests
from drllm.runs.records import RouteRecord, read_matrix, read_records
from drllm.scoring.asking import Ask, Bench, asking_here
from drllm.scoring.scorer import Scorer, askable, questions_digest, scorer_of
from drllm.tasks import load_task


@dataclass(frozen=True)
class CheckedTask:
    """One task's records and the questions they belong to, in the same order: the manifest's."""

    name: str
    manifest: Manifest
    records: list[RouteRecord]
    questions: list[Any]
    scorer: Scorer

    def of_split(self, split: str) -> CheckedTask:
        here = [pair for pair in zip(self.records, self.questions, strict=True) if pair[0].split == split]
        return replace(self, records=[record for record, _ in here], questions=[question for _, question in here])


class TrainingData:
    """What a method may learn from: fit questions and what was found out about them, and tune questions to choose by."""

    def __init__(self, routed: RoutedModel, run: Path, only: Sequence[str] = ()):
        """`only` names the tasks to learn from; none: all of the run."""
        self.routed, self.run, self.only = routed, run, tuple(only)
        searched, dense = search_manifests(run), path_manifests(run)
        known = {manifest.task for manifest in (searched | dense).values()}
        if absent := [name for name in self.only if name not in known]:
            raise InputError(f"{run} holds no records of task {absent[0]!r}: it has {', '.join(sorted(known)) or 'none'}")
        self.search_manifests, self.path_manifests = (  # by task folder
            {folder: manifest for folder, manifest in found.items() if manifest.task in (self.only or known)} for found in (searched, dense)
        )
        self._matrices: dict[str, Matrix] = {}

    @cached_property
    def bench(self) -> Bench:
        return asking_here(self.routed, self.run)

    @cached_property
    def tasks(self) -> list[CheckedTask]:
        """The records of every searched task with their questions, checked against the model; `ArtifactError` without any."""
        if not self.search_manifests:
            raise ArtifactError(f"{self.run} holds no search records: run `drllm search --out {self.run}` first")
        return _checked(self.routed, self.search_manifests)

    @cached_property
    def _dense(self) -> list[CheckedTask]:
        return _checked(self.routed, self.path_manifests)

    @cached_property
    def fit_tasks(self) -> list[CheckedTask]:
        """Each task's fit questions, of the search or else of the dense matrix."""
        return self.tasks if self.search_manifests or not self.path_manifests else [task.of_split("fit") for task in self._dense]

    @property
    def key(self) -> str:
        """Names the search records, or those of the dense matrix, and the weights they were made with."""
        return short_digest(_text(self.search_manifests or self.path_manifests))

    @property
    def fit_records(self) -> list[tuple[Any, RouteRecord]]:
        """Fit questions with what was found out about them, of the search or else of the dense matrix."""
        return [pair for task in self.fit_tasks for pair in zip(task.questions, task.records, strict=True)]

    @cached_property
    def margin_spread(self) -> dict[str, float]:
        """The standard deviation of the base's margin on the fit questions of each task; 1 where there is none."""
        tasks = [task for task in self.fit_tasks if task.records]
        spread = {task.name: float(np.std([record.base_margin for record in task.records])) for task in tasks}
        return {task: value if value > 0 else 1.0 for task, value in spread.items()}  # nan is not above 0 either

    @property
    def max_step_tokens(self) -> int:
        return min(manifest.search_config.max_step_tokens for manifest in (self.search_manifests or self.path_manifests).values())

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """Token ids of every fit question's context, as a policy sees it."""
        return [tuple(question.context_ids) for task in self.fit_tasks for question in task.questions]

    @property
    def prompt_format(self) -> str | None:
        """Of the fit prompts; None where the tasks differ in it, so that what learns from them takes both."""
        return _format_of(self.fit_tasks)

    def tune(self, limit: int = 0) -> list[Ask]:
        """Each task's tune questions, at most `limit` of each, along no route yet; none where the data has none."""
        found = []
        for folder, manifest in (self.search_manifests or self.path_manifests).items():
            loaded = load_task(manifest.task, data_of(folder, manifest.data))
            if loaded.examples["tune"]:
                scorer = scorer_of(self.routed, manifest.as_task, manifest.search_config)
                questions, _ = askable(scorer, loaded.task, loaded.select("tune", limit))
                found.append(Ask(scorer, manifest.as_task, manifest.search_config, "tune", questions, [()] * len(questions)))
        return found

    def score(self, routes: Sequence[Route], limit: int = 0, label: str = "routes") -> tuple[np.ndarray, np.ndarray]:
        """Verdicts and margins, both (N, R), of routes on the fit questions, in the order of `prompts`, at most `limit` of each task."""
        asks = []
        for task in self.fit_tasks:
            questions = task.questions
            if limit:  # manifests are in the order of lengths: of every so many questions one, for all lengths to be there
                questions = questions[:: max(1, len(questions) // limit)][:limit]
            of = task.manifest
            asks.append(Ask(task.scorer, of.as_task, of.search_config, "fit", questions, [routes] * len(questions)))
        found = [verdicts[route] for part in self.bench.ensure(asks, label) for verdicts in part for route in routes]
        shape = (-1, len(routes))
        correct, margins = [verdict.correct for verdict in found], [verdict.margin for verdict in found]
        return np.array(correct, dtype=bool).reshape(shape), np.array(margins, dtype=np.float32).reshape(shape)

    def matrix(self, split: str = "fit") -> Matrix:
        """The dense (question x route) matrix of one split, fit or tune, of the routes that all tasks were evaluated on."""
        if split not in self._matrices:
            self._matrices[split] = self._read_matrix(split)
        return self._matrices[split]

    def _read_matrix(self, split: str) -> Matrix:
        if split not in ("fit", "tune"):
            raise ValueError(f"a method may learn from fit and choose by tune, not read {split}")
        how = f"run `drllm search --paths FILE --splits fit,tune --out {self.run}` first (a scan or a retrofit writes FILE: scan/best.txt)"
        if not self.path_manifests:
            raise ArtifactError(f"{self.run} holds no (question x route) matrix: {how}")
        tasks = [task.of_split(split) for task in self._dense]
        pairs = [pair for task in tasks for pair in zip(task.records, task.questions, strict=True) if not pair[0].broken]
        if not pairs:
            raise ArtifactError(f"the matrix of {self.run} has no {split} question: {how}")
        records, prompts = [record for record, _ in pairs], tuple(tuple(question.context_ids) for _, question in pairs)
        shared = set.intersection(*({*record.routes} for record in records))
        routes = tuple(route for route in records[0].routes if route in shared)
        if len(routes) < 2:
            problem = f"the tasks of {self.run} were evaluated on no route that all of them share"
            raise ArtifactError(f"{problem}: give all tasks the same --paths")
        columns = [(record, [record.routes.index(route) for route in routes]) for record in records]
        correct = np.array([[record.rewards[at] for at in places] for record, places in columns]) > 0.5
        margins = np.array([[record.margins[at] for at in places] for record, places in columns], dtype=np.float32)
        names, ids = tuple(record.task for record in records), tuple(record.id for record in records)
        key = short_digest(split + _text(self.path_manifests))
        return Matrix(routes, names, ids, prompts, correct, margins, _format_of(tasks), key)

    def constant(self, route: Route) -> Policy:
        """The policy of one route, for prompts like these; of the base's route, for any."""
        policy = RoutePolicy(route)
        policy.prompt_format = None if route.is_full else self.prompt_format
        return policy

    def fit_and_tune(self) -> tuple[Matrix, Matrix]:
        """Both matrices; `ArtifactError` unless they are of the same routes."""
        fit, tune = self.matrix("fit"), self.matrix("tune")
        if fit.routes != tune.routes:
            raise ArtifactError("the matrix's fit and tune questions were evaluated on other routes: make both in one `search --paths`")
        return fit, tune


def _format_of(tasks: Sequence[CheckedTask]) -> str | None:
    formats = {task.scorer.prompt_format for task in tasks}
    return formats.pop() if len(formats) == 1 else None


def _text(manifests: dict[Path, Manifest]) -> str:
    return "".join(json.dumps(manifest.to_json(), sort_keys=True) for manifest in manifests.values())


def _checked(routed: RoutedModel, manifests: dict[Path, Manifest]) -> list[CheckedTask]:
    tasks = []
    for folder, manifest in manifests.items():
        records, scorer = _records(routed, folder, manifest), scorer_of(routed, manifest.as_task, manifest.search_config)
        found = _questions(scorer, folder, manifest)
        ids = [id for id in manifest.ids if id in records]  # all of them, unless a number was to be kept
        tasks.append(CheckedTask(manifest.task, manifest, [records[id] for id in ids], [found[id] for id in ids], scorer))
    return tasks


def _records(routed: RoutedModel, folder: Path, manifest: Manifest) -> dict[str, RouteRecord]:
    weights = routed.fingerprint  # once: it reads every tensor
    if manifest.fingerprint != weights:
        made_with = f"{manifest.model} (weights {manifest.fingerprint}), this model has weights {weights}"
        raise ArtifactError(f"the records in {folder} were made with {made_with}: train on the model that was searched")
    found = read_records(folder) if manifest.paths is None else read_matrix(folder, manifest)
    records = {record.id: record for record in found}
    if other := next((record for record in found if record.fingerprint != weights), None):
        raise ArtifactError(f"{folder} holds records of another model (question {other.id!r}, weights {other.fingerprint}): search again")
    config = manifest.search_config
    kept = kept_in(folder, config) if config.keep and manifest.paths is None else None
    if kept is not None and kept.is_enough:
        return {record.id: record for record in kept.records}
    if missing := len(set(manifest.ids) - records.keys()):
        unfinished = f"is unfinished ({missing} of {len(manifest.ids)} questions)"
        raise ArtifactError(f"the search of {manifest.task} in {folder} {unfinished}: run the same search again")
    return records if kept is None else {record.id: record for record in kept.records}


def _questions(scorer: Scorer, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """By id, read where they were read then; `ArtifactError` when they are gone or not the same."""
    loaded = load_task(manifest.task, data_of(folder, manifest.data))
    by_id = {example.id: example for split in manifest.search_config.splits for example in loaded.examples[split]}
    if absent := [name for name in manifest.ids if name not in by_id]:
        raise ArtifactError(f"question {absent[0]!r} of {folder} is not in {loaded.source}: install or pass the data that was searched")
    questions = {name: scorer.question(loaded.task, by_id[name]) for name in manifest.ids}
    if questions_digest(questions.values()) != manifest.questions:
        problem = f"the questions of {loaded.source} are not those that were searched"
        raise ArtifactError(f"{problem}: pass the data of the search, or search again")
    return questions
