"""A task folder's records and the questions they belong to, each checked against its manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drllm.core.errors import ArtifactError
from drllm.model.routed import RoutedModel
from drllm.runs.labels import kept_in
from drllm.runs.manifest import Manifest, data_of
from drllm.runs.records import RouteRecord, read_matrix, read_records
from drllm.scoring.scorer import Scorer, questions_digest, scorer_of
from drllm.tasks import load_task


def manifest_scorer(routed: RoutedModel, manifest: Manifest) -> Scorer:
    """The scorer that a manifest's records were made with."""
    return scorer_of(routed, manifest.as_task, manifest.search_config)


@dataclass(frozen=True)
class CheckedTask:
    """One task's records and the questions they belong to, in the same order: the manifest's."""

    name: str
    manifest: Manifest
    records: list[RouteRecord]
    questions: list[Any]
    scorer: Scorer

    def of_split(self, split: str) -> CheckedTask:
        """The questions of one split."""
        here = [pair for pair in zip(self.records, self.questions, strict=True) if pair[0].split == split]
        return replace(self, records=[record for record, _ in here], questions=[question for _, question in here])


def checked_tasks(routed: RoutedModel, manifests: dict[Path, Manifest]) -> list[CheckedTask]:
    """The tasks of these folders, each checked against its manifest."""
    tasks = []
    for folder, manifest in manifests.items():
        records, scorer = checked_records(routed, folder, manifest), manifest_scorer(routed, manifest)
        found = checked_questions(scorer, folder, manifest)
        ids = [id for id in manifest.ids if id in records]  # all of them, unless a number was to be kept
        tasks.append(CheckedTask(manifest.task, manifest, [records[id] for id in ids], [found[id] for id in ids], scorer))
    return tasks


def checked_records(routed: RoutedModel, folder: Path, manifest: Manifest) -> dict[str, RouteRecord]:
    """The folder's records by id; `ArtifactError` for those of another model, or when some are still missing."""
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


def checked_questions(scorer: Scorer, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The questions of a manifest by id, read where they were read then; `ArtifactError` when they are gone or not the same."""
    loaded = load_task(manifest.task, data_of(folder, manifest.data))
    by_id = {example.id: example for split in manifest.search_config.splits for example in loaded.examples[split]}
    if absent := [name for name in manifest.ids if name not in by_id]:
        raise ArtifactError(f"question {absent[0]!r} of {folder} is not in {loaded.source}: install or pass the data that was searched")
    questions = {name: scorer.question(loaded.task, by_id[name]) for name in manifest.ids}
    if questions_digest(questions.values()) != manifest.questions:
        problem = f"the questions of {loaded.source} are not those that were searched"
        raise ArtifactError(f"{problem}: pass the data of the search, or search again")
    return questions
