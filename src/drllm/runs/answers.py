"""What each method of a comparison decided and answered: one file a split, a row a method and question. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from drllm.core.files import write_bytes
from drllm.runs.shards import encode, read_shard
from drllm.runs.store import Verdict

_TEXT = pa.string()
_ROW = [("method", _TEXT), ("task", _TEXT), ("id", _TEXT), ("route", _TEXT), ("n_passes", pa.float64()), ("correct", pa.bool_())]
_SOME = {"f1": pa.float32(), "strict": pa.bool_(), "lenient": pa.bool_(), "form": _TEXT, "n_new": pa.int32()}  # else null
ANSWERS = pa.schema([*_ROW, *_SOME.items()])


@dataclass(frozen=True)
class Answers:
    """One method on one task, in the order in which all methods were asked."""

    ids: list[str]  # of the questions
    routes: list[str]  # `str(route)` of each; empty where the method decides no route
    passes: list[Any]  # block passes of each prompt
    correct: list[bool]
    f1: list[float] = field(default_factory=list)  # SQuAD's F1, 0 to 1, of answers out of passages; empty of all others
    strict: list[bool] = field(default_factory=list)  # of letters and boxed answers, what the strict reader says
    lenient: list[bool] = field(default_factory=list)  # what the lenient one says
    form: list[str] = field(default_factory=list)  # the answer's form (`drllm.tasks.readers`)
    n_new: list[int] = field(default_factory=list)  # tokens generated for each answer, its end among them; empty for log-likelihoods

    @classmethod
    def of(cls, ids: Sequence[str], routes: Sequence[Any], verdicts: Sequence[Verdict]) -> Answers:
        """What verdicts on these questions say; of each column that only some rewards have, all or nothing."""
        found = cls(list(ids), list(map(str, routes)), [route.n_passes for route in routes], [bool(one.correct) for one in verdicts])
        there = {
            "f1": all(one.f1 == one.f1 for one in verdicts),
            **dict.fromkeys(("strict", "lenient", "form"), all(one.strict is not None for one in verdicts)),
            "n_new": any(one.n_new for one in verdicts),
        }
        return replace(found, **{name: [getattr(one, name) for one in verdicts] for name, is_there in there.items() if is_there})

    @property
    def layers(self) -> list[int]:
        """Block passes of each question over its prompt and all generated tokens, as the paper counts layers: the forward of the prompt
        gives the first token, and each further one takes another. A log-likelihood takes one forward."""
        return [passes * max(1, n_new) for passes, n_new in zip(self.passes, self.n_new or [1] * len(self.ids), strict=True)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Question by question: id, route, n_passes, correct, layers; of letters and boxed answers strict, lenient and form, too."""
        columns = {"id": self.ids, "route": self.routes, "n_passes": self.passes, "correct": self.correct, "layers": self.layers}
        more = {"strict": self.strict, "lenient": self.lenient, "form": self.form}
        columns |= {name: values for name, values in more.items() if values}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


ByMethod = Mapping[tuple[str, str], Answers]  # by (method, task)


def write_answers(path: Path, answers: ByMethod) -> None:
    """Write a split's answers; those of other methods and tasks that stand there stay."""
    kept = {**read_answers(path), **answers} if path.is_file() else answers
    rows = [row for (method, task), one in sorted(kept.items()) for row in _rows(method, task, one)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode(pa.Table.from_pylist(rows, schema=ANSWERS)))


def _rows(method: str, task: str, answers: Answers) -> list[dict[str, Any]]:
    names = ("id", "route", "n_passes", "correct", *_SOME)
    columns = (answers.ids, answers.routes, answers.passes, answers.correct)
    some = (getattr(answers, name) or [None] * len(answers.ids) for name in _SOME)
    return [{"method": method, "task": task, **dict(zip(names, row, strict=True))} for row in zip(*columns, *some, strict=True)]


def read_answers(path: Path) -> dict[tuple[str, str], Answers]:
    """By (method, task); `ArtifactError` when the file is corrupt or foreign."""
    found: dict[tuple[str, str], Answers] = {}
    for row in read_shard(path, ANSWERS).to_pylist():
        one = found.setdefault((row["method"], row["task"]), Answers([], [], [], []))
        passes = row["n_passes"]
        for column, value in ((one.ids, row["id"]), (one.routes, row["route"]), (one.correct, row["correct"])):
            column.append(value)
        one.passes.append(int(passes) if passes == int(passes) else passes)
        for name in _SOME:
            getattr(one, name).extend([] if row[name] is None else [row[name]])
    return found
