"""`train()`: read a run's records, hand them to a method, get a policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from drllm.config import SearchConfig, to_dict
from drllm.errors import ArtifactError, InputError
from drllm.methods.base import Method, get_method, method_of
from drllm.methods.matrix import Matrix, read_matrix
from drllm.methods.planned import planned_questions, planned_records
from drllm.model.policy import Policy
from drllm.model.routed import RoutedModel
from drllm.plans import search_plans
from drllm.provenance import running
from drllm.records import RouteRecord
from drllm.scoring import Scorer, make_scorer
from drllm.tasks import get_task


@dataclass(frozen=True)
class SearchedTask:
    """One task's search records with the questions they belong to, in the same order."""

    name: str
    records: list[RouteRecord]
    questions: list[Any]
    scorer: Scorer


class Material:
    """What a method may learn from: fit questions and what was found out about them, and tune questions to choose by."""

    def __init__(self, routed: RoutedModel, run: Path):
        self.routed, self.run = routed, run
        self._matrices: dict[str, Matrix] = {}

    @property
    def tasks(self) -> list[SearchedTask]:
        """The records of every searched task with their questions, checked against the model; `ArtifactError` without any."""
        return self._searched[0]

    @property
    def search_config(self) -> SearchConfig:
        """What the search ran with."""
        return self._searched[1]

    @property
    def key(self) -> str:
        """Names the search records and the weights they were made with."""
        return self._searched[2]

    def matrix(self, split: str = "fit") -> Matrix:
        """The dense (question x route) matrix of one split, fit or tune: what `search --paths` found, all tasks together."""
        if split not in self._matrices:
            self._matrices[split] = read_matrix(self.routed, self.run, split)
        return self._matrices[split]

    @cached_property
    def _searched(self) -> tuple[list[SearchedTask], SearchConfig, str]:
        return _load_searched(self.routed, self.run)


def train(
    routed: RoutedModel, run: str | Path, method: str | Any = "routers", config: Any = None, argv: Sequence[str] | None = None
) -> Policy:
    """Fit a policy on the records of a run folder.

    Args:
        routed: the model the records were made with; its base weights are only read.
        run: the run folder given to `search`; metrics go to `run/train/<method>/`.
        method: a method's name (`drllm methods`), or its options, which name it.
        config: its options; default: its defaults.

    Raises:
        ArtifactError: no records, an unfinished search, or records of other weights.
        InputError: an unknown method, or options of another one.
    """
    chosen: Method = get_method(method) if isinstance(method, str) else method_of(method)
    config = chosen.config() if config is None and isinstance(method, str) else method if config is None else config
    if type(config) is not chosen.config:
        raise InputError(f"method {chosen.name!r} takes a {chosen.config.__name__}, got a {type(config).__name__}")
    run = Path(run)
    folder = run / "train" / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    with running(run, "train", {"method": chosen.name} | to_dict(config), argv):
        policy = chosen.fit(routed, Material(routed, run), config, folder)
    return policy


def _load_searched(routed: RoutedModel, run: Path) -> tuple[list[SearchedTask], SearchConfig, str]:
    plans = search_plans(run)
    if not plans:
        raise ArtifactError(f"{run} holds no search records: run `drllm search --out {run}` first")
    tasks, digests, search_config = [], [], SearchConfig()
    for folder, plan in plans.items():
        records = planned_records(routed, folder, plan)
        search_config = SearchConfig(**plan["config"])
        scorer = make_scorer(
            routed, get_task(plan["task"]), search_config.reward, search_config.max_step_tokens, search_config.metric,
            search_config.max_new_tokens,
        )  # fmt: skip
        found = planned_questions(scorer, folder, plan)
        tasks.append(SearchedTask(plan["task"], [records[name] for name in plan["ids"]], [found[name] for name in plan["ids"]], scorer))
        digests.append(json.dumps(plan, sort_keys=True))
    return tasks, search_config, hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
