"""What each method of a comparison decided and answered: one file a split, a row a method and question. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from drllm.core.files import write_bytes
from drllm.runs.shards import encode, read_shard

_TEXT = pa.string()
_ROW = [("method", _TEXT), ("task", _TEXT), ("id", _TEXT), ("route", _TEXT), ("n_passes", pa.float64()), ("correct", pa.bool_())]
ANSWERS = pa.schema([*_ROW, ("f1", pa.float32())])


@dataclass(frozen=True)
class Answers:
    """One method on one task, in the order in which all methods were asked.

    Attributes:
        ids: of the questions.
        routes: `str(route)` of each; empty where the method decides no route.
        passes: block passes of each prompt.
        correct: whether each answer is right.
        f1: SQuAD's F1, 0 to 1, of answers out of passages; empty of all others.
    """

    ids: list[str]
    routes: list[str]
    passes: list[Any]
    correct: list[bool]
    f1: list[float] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Question by question: id, route, n_passes, correct."""
        columns = zip(self.ids, self.routes, self.passes, self.correct, strict=True)
        return [dict(zip(("id", "route", "n_passes", "correct"), row, strict=True)) for row in columns]


ByMethod = Mapping[tuple[str, str], Answers]  # by (method, task)


def write_answers(path: Path, answers: ByMethod) -> None:
    """Write a split's answers; those of other methods and tasks that stand there stay."""
    kept = {**read_answers(path), **answers} if path.is_file() else answers
    rows = [row for (method, task), one in sorted(kept.items()) for row in _rows(method, task, one)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode(pa.Table.from_pylist(rows, schema=ANSWERS)))


def _rows(method: str, task: str, answers: Answers) -> list[dict[str, Any]]:
    f1: Sequence[float | None] = answers.f1 or [None] * len(answers.ids)
    return [{"method": method, "task": task, **row, "f1": score} for row, score in zip(answers.rows, f1, strict=True)]


def read_answers(path: Path) -> dict[tuple[str, str], Answers]:
    """By (method, task); `ArtifactError` when the file is corrupt or foreign."""
    found: dict[tuple[str, str], Answers] = {}
    for row in read_shard(path, ANSWERS).to_pylist():
        one = found.setdefault((row["method"], row["task"]), Answers([], [], [], []))
        passes = row["n_passes"]
        for column, value in ((one.ids, row["id"]), (one.routes, row["route"]), (one.correct, row["correct"])):
            column.append(value)
        one.passes.append(int(passes) if passes == int(passes) else passes)
        one.f1.extend([] if row["f1"] is None else [row["f1"]])
    return found
