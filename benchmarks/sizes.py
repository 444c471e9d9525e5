"""What a plain forward costs by the size of the model, and whether two sizes foretell the third.

    python benchmarks/sizes.py [--rounds 3] [--data FOLDER] [--out FILE]

Core-seconds = passes x tokens x (a + b x weights of a block) + b x weights of the head x tokens scored, weights in billions. Each model is
clocked as searches run it, one thread, on questions of three lengths. For each model in turn a and b are fitted to the two others (least
squares of the logarithm) and its seconds foretold: `off` is the foretold over the measured, less 1.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares

from drllm import EvaluateConfig, Route, RoutedModel
from drllm.runs.provenance import hardware
from drllm.scoring.scorer import askable, scorer_of
from drllm.searching.cost import block_runs
from drllm.tasks import load_task

MODELS = ("smollm2-135m-q4", "gemma3-270m-q4", "qwen2.5-coder-1.5b-q4")
TASKS = ("arc_easy", "commonsenseqa", "boolq")
ASKED = 4  # questions of middling length


def clocked(model: str, data: Path | None, rounds: int) -> list[dict[str, Any]]:
    """A row a task: the seconds of the base and of each route without one block, the least of some rounds, and what they computed."""
    routed = RoutedModel.wrap(model, dtype=torch.bfloat16)
    n_layers = routed.n_layers
    routes = [Route.full(n_layers), *(Route([int(block != at) for block in range(n_layers)]) for at in range(n_layers))]
    block = sum(weight.numel() for weight in routed.blocks.parameters()) / n_layers / 1e9
    head = routed.model.get_output_embeddings().weight.numel() / 1e9
    rows = []
    for name in TASKS:
        loaded = load_task(name, data)
        scorer = scorer_of(routed, loaded.task, EvaluateConfig(reward="loglik"))
        found = sorted(askable(scorer, loaded.task, loaded.select("tune", 101))[0], key=lambda one: one.n_tokens)
        middle = found[len(found) // 2 - ASKED // 2 :][:ASKED]
        scorer.score_all(middle[:1], routes[:1])  # the first warms up
        took = []
        for _ in range(rounds):
            started = time.perf_counter()
            scorer.score_all(middle, routes)
            took.append(time.perf_counter() - started)
        tokens = sum(one.n_tokens for one in middle)
        scored = sum(len(sequence.targets) for one in middle for sequence in one.sequences)
        work = {"passes": block_runs(routes) * tokens, "billions": block_runs(routes) * tokens * block + len(routes) * scored * head}
        rows.append({"model": model, "task": name, "tokens": tokens / len(middle), "seconds": min(took), **work})
        plain_ms = 1e3 * min(took) / len(middle) / block_runs(routes) * n_layers
        print(f"{model}, {name}: {tokens / len(middle):.0f} tokens, {plain_ms:.1f} ms a plain forward")
    return rows


def fitted(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """a and b, in core-seconds a pass and token, and a token and billion weights."""

    def off(logs: np.ndarray) -> np.ndarray:
        return np.log(foretold(rows, *np.exp(logs)) / [row["seconds"] for row in rows])

    a, b = np.exp(least_squares(off, np.log([1e-5, 5e-3])).x)
    return float(a), float(b)


def foretold(rows: list[dict[str, Any]], a: float, b: float) -> np.ndarray:
    return np.array([a * row["passes"] + b * row["billions"] for row in rows])


def said(who: str, rows: list[dict[str, Any]], a: float, b: float) -> dict[str, Any]:
    """What these rows' seconds are foretold by a and b, printed."""
    off = foretold(rows, a, b) / [row["seconds"] for row in rows] - 1
    print(f"{who}: a {a:.2e}, b {b:.2e}, off {', '.join(f'{one:+.0%}' for one in off)}")
    return {"a": a, "b": b, "off": [round(float(one), 3) for one in off]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in MODELS for row in clocked(model, given.data, given.rounds)]
    found: dict[str, Any] = {"hardware": hardware(), "rows": rows}
    for model in MODELS:
        others, own = ([row for row in rows if (row["model"] == model) == mine] for mine in (False, True))
        found[model] = said(f"{model} by the two others", own, *fitted(others))
    found["all"] = said("all by all", rows, *fitted(rows))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
