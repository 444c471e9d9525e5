"""One method's verdicts on one task's questions, kept in a Parquet file each: what `evaluate` compares, made here or on a cluster."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drllm.core.config import EvaluateConfig, to_dict
from drllm.core.errors import ArtifactError
from drllm.core.files import write_bytes
from drllm.core.progress import Progress
from drllm.core.route import GatedDepth, Route
from drllm.model.routed import RoutedModel
from drllm.policies import saved as artifact
from drllm.policies.given import GivenRoutes
from drllm.policies.policy import Policy
from drllm.scoring.scorer import Scorer, make_scorer, questions_digest
from drllm.tasks import Example, Task

CHUNK = 64  # questions between two steps of the progress bar


@dataclass(frozen=True)
class Answered:
    """One method's verdicts on one task's questions, all in the same order."""

    ids: list[str]
    correct: list[bool]
    acc: list[bool | None]
    acc_norm: list[bool | None]
    margin: list[float]
    routes: list[Any]  # a Route each, or a GatedDepth
    seconds: float


@dataclass(frozen=True)
class Asked:
    """One method on one task, before it is answered.

    Attributes:
        saved: the folder of the method's policy; None for the base, and for controls.
        routes: of a control, one a question in the order in which they are answered.
        path, key: where the verdicts go, and what names all they depend on.
        told: metadata stored with the verdicts so they can be compared without the model: what they can be compared with
            (`comparable`), and whose verdicts they are (`policy`).
    """

    method: str
    task: Task
    examples: list[Example]
    saved: Path | None
    routes: list[Route] | None
    path: Path
    key: str = ""
    told: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.method} on {self.task.name}"

    def policy(self, routed: RoutedModel) -> Policy | None:
        """What answers; None is the base."""
        if self.routes is not None:
            return GivenRoutes(self.routes)
        return None if self.saved is None else artifact.load_policy(self.saved, routed)

    def key_with(self, routed: RoutedModel, config: EvaluateConfig, questions: Sequence[Any]) -> str:
        """Names everything a verdict depends on: weights, dtype, policy files, configuration, questions."""
        named = [self.method, routed.fingerprint, str(routed.model.dtype), to_dict(config), questions_digest(questions)]
        digest = hashlib.sha256(json.dumps(named).encode())
        if self.saved is not None:
            digest.update(artifact.digest(self.saved).encode())
        if self.routes is not None:
            digest.update(" ".join(map(str, self.routes)).encode())
        return digest.hexdigest()


def told_of(routed: RoutedModel, config: EvaluateConfig, questions: Sequence[Any], saved: Path | None) -> tuple[tuple[str, str], ...]:
    """`Asked.told`: two methods' verdicts can be compared where weights, type, configuration and questions are the same."""
    named = json.dumps([routed.fingerprint, str(routed.model.dtype), to_dict(config), questions_digest(questions)])
    policy = () if saved is None else (("policy", artifact.digest(saved)),)
    return ("comparable", hashlib.sha256(named.encode()).hexdigest()[:16]), *policy


def scorer_of(routed: RoutedModel, task: Task, config: EvaluateConfig) -> Scorer:
    """What judges a task's answers as the configuration says."""
    return make_scorer(routed, task, config.reward, config.max_step_tokens, config.metric, config.max_new_tokens)


def questions_of(scorer: Scorer, task: Task, examples: Sequence[Example]) -> list[Any]:
    """The questions in the order in which all methods answer them: the shortest first."""
    return sorted((scorer.question(task, example) for example in examples), key=lambda q: (q.n_tokens, q.example.id))


def control_routes(name: str, routes: Sequence[Route], seed: str) -> list[Route]:
    """The routes of a control: the same actions at random blocks, or the same routes at other prompts."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{name}:{seed}".encode()).digest()[:8], "big"))
    if name == "random":
        return [Route(rng.permutation([int(action) for action in route]).tolist()) for route in routes]
    # A random cyclic order deals every route to another prompt.
    order = rng.permutation(len(routes))
    dealt: list[Route] = list(routes)
    for giver, taker in zip(order, np.roll(order, 1), strict=True):
        dealt[int(taker)] = routes[int(giver)]
    return dealt


def answer(scorer: Scorer, questions: Sequence[Any], policy: Policy | None, asked: Asked) -> Answered:
    """Verdicts of one method on one task, read back when the same evaluation has been done before."""
    if (saved := read_answers(asked.path, asked.key)) is not None:
        return saved
    verdicts, routes = [], []
    started = time.perf_counter()
    with Progress(asked.label, len(questions)) as progress:
        for start in range(0, len(questions), CHUNK):
            chunk = questions[start : start + CHUNK]
            rows = policy.rows(range(start, start + len(chunk))) if isinstance(policy, GivenRoutes) else policy
            some_verdicts, some_routes = scorer.score_policy(chunk, rows)
            verdicts += some_verdicts
            routes += some_routes
            progress.advance(len(chunk))
    seconds = time.perf_counter() - started
    answered = Answered(
        [question.example.id for question in questions], [v.correct for v in verdicts], [v.acc for v in verdicts],
        [v.acc_norm for v in verdicts], [v.margin for v in verdicts], routes, seconds,
    )  # fmt: skip
    table = pa.table(
        {
            "id": answered.ids, "correct": answered.correct, "correct_acc": pa.array(answered.acc, pa.bool_()),
            "correct_acc_norm": pa.array(answered.acc_norm, pa.bool_()), "margin": pa.array(answered.margin, pa.float32()),
            "route": [str(route) for route in routes], "n_passes": [route.n_passes for route in routes],
        },
        metadata={"key": asked.key, "seconds": repr(seconds)} | dict(asked.told),
    )  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    asked.path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(asked.path, sink.getvalue().to_pybytes())
    return answered


def read_answers(path: Path, key: str) -> Answered | None:
    """The verdicts saved under a key, else None; `ArtifactError` for a corrupt file."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is corrupt ({str(error).splitlines()[0][:80]}): delete it and evaluate again") from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"key") != key.encode():
        return None
    columns = table.to_pydict()
    margins = [math.nan if value is None else value for value in columns["margin"]]
    routes = [Route.parse(text) if text else GatedDepth(passes) for text, passes in zip(columns["route"], columns["n_passes"], strict=True)]
    return Answered(
        columns["id"], columns["correct"], columns["correct_acc"], columns["correct_acc_norm"], margins, routes, float(metadata[b"seconds"])
    )
