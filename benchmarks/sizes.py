"""Core-seconds of a matrix (each question along each of many routes) or of a healing, by the size of the model: does a constant serve all?

    python benchmarks/sizes.py matrix|heal [--data FOLDER] [--out FILE.json]

matrix: core-seconds = k x (passes x tokens x weights of a block + tokens scored x weights of the head), weights in billions; passes are
counted after sharing. heal: k x tokens learned x (weights of the blocks + of the head); the base's answers are in it, choosing a route is
not. Processor seconds of `drllm.search` with listed routes, by log-likelihood, and of `drllm.heal`; one thread, bfloat16, without loading;
so another job on the other core slows it little. Each model is foretold by the k of the two others (their geometric mean).
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from drllm import EvaluateConfig, HealConfig, RoutedModel, SearchConfig, heal, search
from drllm.core.config import Resources
from drllm.core.files import write_json
from drllm.core.route import Route
from drllm.runs.provenance import hardware
from drllm.scoring.scorer import askable, scorer_of
from drllm.searching.cost import block_runs
from drllm.searching.runner import read_routes
from drllm.tasks import load_task

RESULTS = Path(__file__).parents[1] / "results"
MODELS = {  # the routes of its matrix, and how many questions of each task
    "smollm2-135m-q4": ("policies-smollm2-135m-q4/routes-arc.txt", 96),
    "gemma3-270m-q4": ("policies-gemma3-270m-q4/routes.txt", 48),
    "qwen2.5-coder-1.5b-q4": ("policies-qwen2.5-coder-1.5b-q4/routes.txt", 16),
}
TASKS = {"arc_easy": 1, "boolq": 3}  # by which the number of questions is divided


def clocked(model: str, data: Path | None) -> list[dict[str, Any]]:
    """A row a task: processor seconds of the matrix, and billions of weights times tokens that it computed."""
    path, n_questions = MODELS[model]
    routed = RoutedModel.wrap(model, dtype=torch.bfloat16)
    routes = read_routes(RESULTS / path)
    block = sum(weight.numel() for weight in routed.blocks.parameters()) / routed.n_layers / 1e9
    head = routed.model.get_output_embeddings().weight.numel() / 1e9
    together = [Route.full(routed.n_layers), *routes]
    rows = []
    for task, share in TASKS.items():
        config = SearchConfig(splits=("fit",), limit=n_questions // share, verify=False)
        with tempfile.TemporaryDirectory() as out:
            started = time.process_time()
            search(routed, [task], config, out, data, routes=routes, resources=Resources(executor="local", threads=1))
            seconds = time.process_time() - started
        loaded = load_task(task, data)
        asked = askable(scorer_of(routed, loaded.task, EvaluateConfig()), loaded.task, loaded.select("fit", config.limit))[0]
        tokens = sum(one.n_tokens for one in asked)
        scored = sum(len(sequence.targets) for one in asked for sequence in one.sequences)
        billions = block_runs(together) * tokens * block + len(together) * scored * head
        rows.append(
            {"model": model, "task": task, "questions": len(asked), "routes": len(together), "seconds": seconds, "billions": billions}
        )
        print(f"{model}, {task}: {len(asked)} questions of {tokens / len(asked):.0f} tokens, {len(together)} routes, {seconds:.1f} s")
    return rows


def healed(model: str, data: Path | None) -> list[dict[str, Any]]:
    """One row: processor seconds of twelve training steps and all that comes before them, and billions of weights times tokens learned."""
    routed = RoutedModel.wrap(model, dtype=torch.bfloat16)
    n = routed.n_layers
    weights = sum(weight.numel() for weight in (*routed.blocks.parameters(), routed.model.get_output_embeddings().weight)) / 1e9
    config = HealConfig(steps=12, held_out=8)
    with tempfile.TemporaryDirectory() as out:
        started = time.process_time()
        [found] = heal(routed, out, Route.full(n).edit(n // 2, *[0] * (n // 10)), ["arc_easy"], data, config=config)[1]
        seconds = time.process_time() - started
    print(f"{model}: {found.n_tokens} tokens, {weights:.3f} billion weights, {seconds:.1f} s, of which {found.seconds}")
    return [{"model": model, "task": "heal", "tokens": found.n_tokens, "seconds": seconds, "billions": weights * found.n_tokens}]


def constant(rows: list[dict[str, Any]]) -> float:
    """k, core-seconds a billion weights and token: the geometric mean of the rows' own."""
    return math.exp(sum(math.log(row["seconds"] / row["billions"]) for row in rows) / len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("matrix", "heal"))
    parser.add_argument("--data", type=Path, help="folder of questions")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measured = {"matrix": clocked, "heal": healed}[given.what]
    rows = [row for model in MODELS for row in measured(model, given.data)]
    print(f"k of all: {constant(rows):.5f}")
    for row in rows:
        row["foretold"] = row["billions"] * constant([one for one in rows if one["model"] != row["model"]])
        print(f"{row['model']}, {row['task']}: foretold by the other models {row['foretold'] / row['seconds'] - 1:+.0%}")
    if given.out:
        write_json(given.out, {"hardware": hardware(), "k": constant(rows), "rows": rows})


if __name__ == "__main__":
    main()
