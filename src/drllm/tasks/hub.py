"""Rows from the Hub through the optional `datasets` library. No torch."""

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError, first_line, network_errors
from drllm.tasks.base import Example, Task
from drllm.tasks.grading import box_content
from drllm.tasks.layouts import LAYOUTS, level_of, of_level

PREFIX = "hub:"  # of --data


class HubUnavailable(Exception):
    """The `datasets` library is missing or the Hub does not answer; the message says which."""


def hub_rows(task: Task, dropped: Counter[str]) -> tuple[str, list[Example]]:
    """Label of the source and all rows; HubUnavailable, or InputError for rows of an unexpected layout."""
    repos, config, parts = (_POOL, None, ()) if task.level else _SETS[task.name]
    loaded = [_loaded(repo, config) for repo in repos.split()]
    tests = [_loaded(_MATH, subject)["test"] for subject in SUBJECTS] if task.level else []
    label = f"{_POOL}, {_MATH}" if task.level else repos if config is None else f"{repos} {config}"
    try:
        rows = list(_levelled(task, loaded[0]["train"], tests, dropped)) if task.level else []
        for part in parts:
            joined = enumerate(row for found in loaded for row in found[part])
            rows += [LAYOUTS[task.name](task, row, f"{task.name}-{part}-{number}", part) for number, row in joined]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"Hub data set {label} has an unexpected layout ({what}): give --data FILE.jsonl instead") from error
    return f"Hub {label}", rows


def _loaded(repo: str, config: str | None) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise HubUnavailable("the datasets library is not installed: pip install datasets") from None
    try:
        return datasets.load_dataset(repo, config)
    except (*network_errors(), datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise HubUnavailable(f"{repo} could not be loaded: {type(error).__name__}: {first_line(error, 200)}") from error


def is_on_hub(data: str | Path) -> bool:
    """Whether `--data` names a data set on the Hub: `hub:OWNER/NAME`, or `hub:OWNER/NAME/CONFIGURATION`."""
    return str(data).startswith(PREFIX)


def named_rows(data: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of every row of a named data set; `InputError` when it cannot be had."""
    owner, _, rest = str(data).removeprefix(PREFIX).partition("/")
    name, _, config = rest.partition("/")
    if not owner or not name:
        raise InputError(f"--data {data} names no data set: write hub:OWNER/NAME, or hub:OWNER/NAME/CONFIGURATION")
    try:
        loaded = _loaded(f"{owner}/{name}", config or None)
    except HubUnavailable as error:
        raise InputError(f"--data {data}: {error}; check its name and the network, or give a file") from error
    for split, rows in loaded.items():
        for row in rows:
            yield split, dict(row)


def _levelled(task: Task, pool: Any, tests: list[Any], dropped: Counter[str]) -> Iterator[Example]:
    """One level of DART-Math's pool (1.6 million answers to 7,500 train questions of MATH, each once), and of MATH's test questions."""
    seen: set[str] = set()
    for batch in pool.select_columns(["query", "gt_ans", "query_metadata"]).iter(batch_size=10_000):
        for query, gold, metadata in zip(batch["query"], batch["gt_ans"], batch["query_metadata"], strict=True):
            if query in seen:
                continue
            seen.add(query)
            if of_level(task, level_of(metadata["level"]), dropped):
                yield Example(f"dart-{len(seen) - 1}", query, (), str(gold or "").strip(), task.name, part="train")
    for number, row in enumerate(row for rows in tests for row in rows):
        if of_level(task, level_of(row["level"]), dropped):
            yield Example(f"math-test-{number}", row["problem"], (), box_content(row["solution"]) or "", task.name, part="test")


_ALL = ("train", "validation", "test")
EXAMS = " ".join(f"hails/agieval-{name}" for name in ["aqua-rat", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math"])
_POOL, _MATH = "hkust-nlp/dart-math-pool-math", "EleutherAI/hendrycks_math"  # a configuration a subject
SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
_SETS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {  # on the Hub: repositories, configuration, parts with public answers
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", _ALL),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", _ALL),
    "openbookqa": ("allenai/openbookqa", "main", _ALL),
    # ybisk/piqa is a loading script, which datasets 4 refuses; this is lm-eval's parquet mirror.
    "piqa": ("baber/piqa", None, ("train", "validation")),
    "sciq": ("allenai/sciq", None, _ALL),
    "boolq": ("google/boolq", None, ("train", "validation")),
    "commonsenseqa": ("tau/commonsense_qa", None, ("train", "validation")),
    "mmlu": ("cais/mmlu", "all", ("validation", "test")),
    "gsm8k": ("openai/gsm8k", "main", ("train", "test")),
    "truthfulqa": ("truthfulqa/truthful_qa", "multiple_choice", ("validation",)),
    "agieval": (EXAMS, None, ("test",)),  # lm-eval's copies; the seven of its English sets whose questions have choices
    "gpqa": ("Idavidrein/gpqa", "gpqa_diamond", ("train",)),
    "squadv2": ("lighteval/squad_v2", None, ("validation",)),
    "aime24": ("Maxwell-Jia/AIME_2024", None, ("train",)),
}
