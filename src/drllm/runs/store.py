"""The verdicts of a run folder: what each question answers along each route under which conditions, once, whoever asked. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from drllm.core.digest import json_digest
from drllm.core.route import Route
from drllm.runs.shards import Shards

_TEXT, _FLAG, _MARGIN = pa.string(), pa.bool_(), pa.float32()
_CONDITIONS = [("weights", _TEXT), ("dtype", _TEXT), ("reward", _TEXT), ("prompts", _TEXT), ("settings", _TEXT)]
_QUESTION = [("task", _TEXT), ("split", _TEXT), ("id", _TEXT), ("question", _TEXT)]
_COMPARED = [("acc", _FLAG), ("acc_norm", _FLAG), ("margin_acc", _MARGIN), ("margin_acc_norm", _MARGIN)]
_GENERATED = [("strict", _FLAG), ("lenient", _FLAG), ("form", _TEXT), ("n_new", pa.int32()), ("f1", _MARGIN)]
_ANSWER = [("correct", _FLAG), *_COMPARED, *_GENERATED, ("broken", _FLAG)]
VERDICTS = pa.schema([*_CONDITIONS, *_QUESTION, ("route", _TEXT), ("n_passes", pa.int32()), *_ANSWER])
KEY = [name for name, _ in (*_CONDITIONS, *_QUESTION)] + ["route"]  # of a row, in the order in which rows are sorted
DECIDED = pa.schema([("policy", _TEXT), *_CONDITIONS, *_QUESTION, ("route", _TEXT)])


@dataclass(frozen=True)
class Verdict:
    """What one question answers along one route."""

    correct: bool  # the verdict that counts as the reward
    margin: float = math.nan  # of the gold choice under the metric that counts; nan for generated answers, else as `margin_acc`
    acc: bool | None = None  # by raw log-likelihood; None for generated answers
    acc_norm: bool | None = None  # by log-likelihood a character
    text: str | None = None  # of generated answers, up to where the verdict was settled; not stored
    margin_acc: float = math.nan  # the gold choice's score minus the best other's, in nats, rounded to float32, as it is stored
    margin_acc_norm: float = math.nan  # in nats a character
    f1: float = math.nan  # of answers out of a passage: SQuAD's F1, 0 to 1
    broken: bool = False  # the logits were NaN or infinite; every verdict is then wrong and every margin nan
    strict: bool | None = None  # of a generated letter or boxed answer, by the strict reader; None for others
    lenient: bool | None = None  # by the lenient one
    form: str = ""  # how that answer came: "asked", "unclosed", "other"; "" where it does not apply
    n_new: int = 0  # tokens generated; 0 where they are not counted


@dataclass(frozen=True)
class Conditions:
    """All that a verdict depends on beside question and route."""

    weights: str  # digest of the base's weights
    dtype: str  # their type
    reward: str  # by name, "auto" resolved
    prompts: str = ""  # name of the wording, resolved; "" for the reward's only one
    settings: str = ""  # how it was computed, in words: what can flip a verdict by rounding, and how long an answer may be


class Asked(NamedTuple):
    """A question as the tables name it; `question` is the digest of its text, choices, answer and tokens."""

    task: str
    split: str
    id: str
    question: str


Found = dict[str, dict[Route, Verdict]]  # by question (its digest) and route


class Store:
    """The verdicts below one run folder."""

    def __init__(self, folder: Path):
        self.shards = Shards(folder, VERDICTS)

    def find(self, conditions: Conditions, questions: Collection[str], counts: str = "correct") -> Found:
        """Every verdict on these questions, by their digests, under these conditions.

        `counts` names the column that is the reward: "acc_norm" or "acc" of choices that are compared, "correct" of answers.
        """
        table = _under(self.shards.table(), asdict(conditions), questions)
        found: Found = {question: {} for question in questions}
        for row in table.select(["question", "route", *(name for name, _ in _ANSWER)]).to_pylist():
            found[row["question"]][Route.parse(row["route"])] = _verdict(row, counts)
        return found

    def write(self, name: str, conditions: Conditions, rows: Iterable[tuple[Asked, Route, Verdict]]) -> None:
        """Append a shard, unless one of that name is there."""
        about = asdict(conditions)
        self.shards.write(name, [about | asked._asdict() | _row(route, verdict) for asked, route, verdict in rows])


def _row(route: Route, verdict: Verdict) -> dict[str, Any]:
    values = {name: getattr(verdict, name) for name, _ in _ANSWER}
    values = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
    compared = verdict.acc is not None or verdict.strict is not None  # then `correct` is one of those, by who asked
    return values | {"route": str(route), "n_passes": route.n_passes, "correct": None if compared else verdict.correct}


def _verdict(row: Mapping[str, Any], counts: str) -> Verdict:
    values = {name: row[name] for name, _ in _ANSWER}
    values |= {name: math.nan for name in ("margin_acc", "margin_acc_norm", "f1") if row[name] is None}
    correct = row[counts] if row["correct"] is None else row["correct"]
    return Verdict(**values | {"correct": correct, "margin": values.get(f"margin_{counts}", math.nan)})


class Decided:
    """The routes that policies have decided below one run folder, so that a killed comparison decides nothing twice."""

    def __init__(self, folder: Path):
        self.shards = Shards(folder, DECIDED)

    def find(self, policy: str, conditions: Conditions, questions: Collection[str]) -> dict[str, Route]:
        """By question, what the policy of this digest decided."""
        table = _under(self.shards.table(), {"policy": policy} | asdict(conditions), questions)
        pairs = zip(table["question"].to_pylist(), table["route"].to_pylist(), strict=True)
        return {question: Route.parse(route) for question, route in pairs}

    def name(self, policy: str, conditions: Conditions, questions: Sequence[str]) -> str:
        """Of the shard of what a policy decides upon these questions."""
        return json_digest([policy, asdict(conditions), list(questions)])

    def write(self, policy: str, conditions: Conditions, rows: Sequence[tuple[Asked, Route]]) -> None:
        about = {"policy": policy} | asdict(conditions)
        name = self.name(policy, conditions, [asked.question for asked, _ in rows])
        self.shards.write(name, [about | asked._asdict() | {"route": str(route)} for asked, route in rows])


def _under(table: pa.Table, about: Mapping[str, str], questions: Collection[str]) -> pa.Table:
    """The rows of some questions, under equal conditions."""
    return picked(table, {"question": questions} | {name: [value] for name, value in about.items()})


def picked(table: pa.Table, where: Mapping[str, Collection[str]]) -> pa.Table:
    """The rows whose columns hold one of the given values, in their order."""
    for name, values in where.items():
        options = pc.SetLookupOptions(value_set=pa.array(list(values), _TEXT))
        table = table.filter(pc.call_function("is_in", [table[name]], options))
    return table
