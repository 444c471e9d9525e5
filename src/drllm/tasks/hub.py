"""Rows from the Hub through the optional `datasets` library. No torch."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from drllm.core.errors import InputError, network_errors
from drllm.tasks.base import Example, Task
from drllm.tasks.layouts import distractors, goal, gsm8k_answer, lettered, level_of, under_subject, yes_or_no


class HubUnavailable(Exception):
    """The `datasets` library is missing or the Hub does not answer; the message says which."""


@dataclass(frozen=True)
class _Set:
    """A dataset on the Hub, and how its parts become Examples."""

    repo: str
    config: str | None
    read: Callable[[Task, Any, Counter[str]], Iterator[Example]]


def hub_rows(task: Task, dropped: Counter[str]) -> tuple[str, list[Example]]:
    """Label of the source and all labelled rows of the task. Raises HubUnavailable, or InputError for rows of an unexpected layout."""
    wanted = _SETS["dart" if task.level else task.name]
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise HubUnavailable("the datasets library is not installed") from None
    try:
        loaded = datasets.load_dataset(wanted.repo, wanted.config)
    except (*network_errors(), datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        line = (str(error).splitlines() or [""])[0][:200]
        raise HubUnavailable(f"{wanted.repo} could not be loaded: {type(error).__name__}: {line}") from error
    label = wanted.repo if wanted.config is None else f"{wanted.repo} {wanted.config}"
    try:
        rows = list(wanted.read(task, loaded, dropped))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"Hub data set {label} has an unexpected layout ({type(error).__name__}: {error}): give --data FILE.jsonl instead"
        ) from error
    kept = [row for row in rows if row.answer != ""]
    if len(kept) < len(rows):
        dropped["empty answer"] += len(rows) - len(kept)
    return f"Hub {label}", kept


def _arc(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("train", "validation", "test"):
        yield from (lettered(task, row, "question", part) for row in loaded[part])


def _openbookqa(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("train", "validation", "test"):
        yield from (lettered(task, row, "question_stem", part) for row in loaded[part])


def _piqa(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("train", "validation"):  # the test answers are secret
        yield from (goal(task, row, f"piqa-{part}-{number}", part) for number, row in enumerate(loaded[part]))


def _sciq(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("train", "validation", "test"):
        yield from (distractors(task, row, f"sciq-{part}-{number}", part) for number, row in enumerate(loaded[part]))


def _boolq(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("train", "validation"):  # the test answers are secret
        yield from (yes_or_no(task, row, f"boolq-{part}-{number}", part) for number, row in enumerate(loaded[part]))


def _commonsenseqa(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("train", "validation"):  # the test answers are secret
        yield from (lettered(task, row, "question", part) for row in loaded[part])


def _mmlu(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("validation", "test"):
        yield from (under_subject(task, row, f"mmlu-{part}-{number}", part) for number, row in enumerate(loaded[part]))


def _gsm8k(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    for part in ("train", "test"):
        for number, row in enumerate(loaded[part]):
            yield Example(f"gsm8k-{part}-{number}", row["question"], (), gsm8k_answer(row["answer"]), task.name, part=part)


def _dart(task: Task, loaded: Any, dropped: Counter[str]) -> Iterator[Example]:
    """DART-Math's pool holds some 1.6 million sampled answers to about 7,500 questions: each question once, its sampled answers unread."""
    seen: set[str] = set()
    for batch in loaded["train"].select_columns(["query", "gt_ans", "query_metadata"]).iter(batch_size=10_000):
        for query, gold, metadata in zip(batch["query"], batch["gt_ans"], batch["query_metadata"], strict=True):
            if query in seen:
                continue
            seen.add(query)
            level = level_of(metadata["level"])
            if level == task.level:
                yield Example(f"dart-{len(seen) - 1}", query, (), str(gold or "").strip(), task.name, part="train")
            else:
                dropped["no level" if level is None else "other level"] += 1


_SETS = {
    "arc_easy": _Set("allenai/ai2_arc", "ARC-Easy", _arc),
    "arc_challenge": _Set("allenai/ai2_arc", "ARC-Challenge", _arc),
    "openbookqa": _Set("allenai/openbookqa", "main", _openbookqa),
    # ybisk/piqa is a loading script, which datasets 4 refuses; this is lm-eval's parquet mirror.
    "piqa": _Set("baber/piqa", None, _piqa),
    "sciq": _Set("allenai/sciq", None, _sciq),
    "boolq": _Set("google/boolq", None, _boolq),
    "commonsenseqa": _Set("tau/commonsense_qa", None, _commonsenseqa),
    "mmlu": _Set("cais/mmlu", "all", _mmlu),
    "gsm8k": _Set("openai/gsm8k", "main", _gsm8k),
    "dart": _Set("hkust-nlp/dart-math-pool-math", None, _dart),
}
