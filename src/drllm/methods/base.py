"""`train()`: read a run's search records, hand them to a method, get a policy."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drllm.config import SearchConfig, TrainConfig, to_dict
from drllm.errors import ArtifactError, InputError
from drllm.model.policy import Policy
from drllm.model.routed import RoutedModel
from drllm.plans import parts_of, search_plans
from drllm.provenance import running
from drllm.records import RouteRecord, read_records
from drllm.registry import did_you_mean
from drllm.scoring import Scorer, make_scorer, questions_digest
from drllm.tasks import get_task, load_task

# name -> module whose `fit(routed, material, config, folder) -> Policy` makes it; imported when asked for
METHODS = {"routers": "drllm.methods.routers", "static": "drllm.methods.static"}


@dataclass(frozen=True)
class SearchedTask:
    """One task's search records with the questions they belong to, in the same order."""

    name: str
    records: list[RouteRecord]
    questions: list[Any]
    scorer: Scorer


@dataclass(frozen=True)
class Material:
    """What a method may learn from: the fit questions and their records, nothing else."""

    tasks: list[SearchedTask]
    search_config: SearchConfig
    key: str  # names the records and the weights they were made with


def train(routed: RoutedModel, run: str | Path, config: TrainConfig | None = None, argv: Sequence[str] | None = None) -> Policy:
    """Fit a policy on the search records of a run folder.

    Args:
        routed: the model the records were made with; its base weights are only read.
        run: the run folder given to `search`; metrics go to `run/train/<method>/`.
        config: every knob; `config.method` names the method.

    Raises:
        ArtifactError: no records, an unfinished search, or records of other weights.
    """
    config = config or TrainConfig()
    run = Path(run)
    if config.method not in METHODS:
        raise InputError(f"unknown method {config.method!r}{did_you_mean(config.method, METHODS)}; choose from {', '.join(METHODS)}")
    material = load_material(routed, run)
    folder = run / "train" / config.method
    folder.mkdir(parents=True, exist_ok=True)
    with running(run, "train", to_dict(config), argv):
        policy = importlib.import_module(METHODS[config.method]).fit(routed, material, config, folder)
    return policy


def load_material(routed: RoutedModel, run: Path) -> Material:
    """The records of every searched task with their questions, checked against the model."""
    plans = search_plans(run)
    if not plans:
        raise ArtifactError(f"{run} holds no search records: run `drllm search --out {run}` first")
    tasks, digests, search_config = [], [], SearchConfig()
    for folder, plan in plans.items():
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
        search_config = SearchConfig(**plan["config"])
        scorer = make_scorer(
            routed, get_task(plan["task"]), search_config.reward, search_config.max_step_tokens, search_config.metric,
            search_config.max_new_tokens,
        )  # fmt: skip
        found: dict[str, Any] = {}
        for part in parts_of(plan):
            loaded = load_task(plan["task"], part["data"])
            by_id = {example.id: example for example in loaded.examples["fit"]}
            if absent := [name for name in part["ids"] if name not in by_id]:
                raise ArtifactError(
                    f"question {absent[0]!r} of {folder} is not in {loaded.source}: install or pass the data that was searched"
                )
            asked = {name: scorer.question(loaded.task, by_id[name]) for name in part["ids"]}
            if questions_digest(asked.values()) != part["questions"]:
                raise ArtifactError(
                    f"the questions of {loaded.source} are not those that were searched: pass the data of the search, or search again"
                )
            found |= asked
        questions = [found[name] for name in plan["ids"]]
        tasks.append(SearchedTask(plan["task"], [records[name] for name in plan["ids"]], questions, scorer))
        digests.append(json.dumps(plan, sort_keys=True))
    return Material(tasks, search_config, hashlib.sha256("".join(digests).encode()).hexdigest()[:16])
