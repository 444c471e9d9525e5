"""A task folder's records and the questions they belong to, each checked against its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drllm.config import SearchConfig
from drllm.errors import ArtifactError
from drllm.model.routed import RoutedModel
from drllm.plans import parts_of
from drllm.records import RouteRecord, read_records
from drllm.scoring import Scorer, make_scorer, questions_digest
from drllm.tasks import get_task, load_task


def planned_scorer(routed: RoutedModel, plan: dict[str, Any]) -> Scorer:
    """The scorer that a plan's records were made with."""
    config = SearchConfig(**plan["config"])
    return make_scorer(routed, get_task(plan["task"]), config.reward, config.max_step_tokens, config.metric, config.max_new_tokens)


def fit_questions(routed: RoutedModel, folder: Path, plan: dict[str, Any]) -> tuple[Scorer, list[Any]]:
    """A plan's scorer and its fit questions, in the plan's order."""
    scorer = planned_scorer(routed, plan)
    found, records = planned_questions(scorer, folder, plan), planned_records(routed, folder, plan)
    return scorer, [found[name] for name in plan["ids"] if records[name].split == "fit"]


def planned_records(routed: RoutedModel, folder: Path, plan: dict[str, Any]) -> dict[str, RouteRecord]:
    """The folder's records by id; `ArtifactError` for those of another model, or when some are still missing."""
    if plan["fingerprint"] != routed.fingerprint:
        raise ArtifactError(
            f"the records in {folder} were made with {plan['model']} (weights {plan['fingerprint']}), this model has weights "
            f"{routed.fingerprint}: train on the model that was searched"
        )
    records = {record.id: record for record in read_records(folder)}
    if foreign := next((record for record in records.values() if record.fingerprint != routed.fingerprint), None):
        raise ArtifactError(
            f"{folder} holds records of another model (question {foreign.id!r}, weights {foreign.fingerprint}): search again"
        )
    if missing := len(set(plan["ids"]) - records.keys()):
        raise ArtifactError(
            f"the search of {plan['task']} is unfinished ({missing} of {len(plan['ids'])} questions): run the same search again"
        )
    return records


def planned_questions(scorer: Scorer, folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The questions of a plan by id, read where they were read then; `ArtifactError` when they are gone or not the same."""
    splits = plan["config"].get("splits", ("fit",))
    found: dict[str, Any] = {}
    for part in parts_of(plan):
        loaded = load_task(plan["task"], part["data"])
        by_id = {example.id: example for split in splits for example in loaded.examples[split]}
        if absent := [name for name in part["ids"] if name not in by_id]:
            raise ArtifactError(f"question {absent[0]!r} of {folder} is not in {loaded.source}: install or pass the data that was searched")
        asked = {name: scorer.question(loaded.task, by_id[name]) for name in part["ids"]}
        if questions_digest(asked.values()) != part["questions"]:
            raise ArtifactError(
                f"the questions of {loaded.source} are not those that were searched: pass the data of the search, or search again"
            )
        found |= asked
    return found
