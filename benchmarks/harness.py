"""What lm-evaluation-harness takes with the identity policy against its stock `hf` model: same weights, same requests, equal batch tokens.

    python benchmarks/harness.py [--data ../shared/data] [--limit 64] [--batch-sizes 1,8] [--out FILE.json]

Both models answer the same chunks of documents in turn, the order changing from chunk to chunk, in one process on one thread, float32.
A task's name may end in its number of shots, as in drllm_mmlu:5. Documents of one description (a subject of MMLU, which the harness's own
tasks evaluate one after the other) come in a row.
Prints, for each task and batch size, the stock model's seconds over ours and the largest difference of a log-likelihood.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from drllm import RoutedModel
from drllm.core.files import write_json
from drllm.evaluation.harness import TASKS_FOLDER
from drllm.evaluation.harness.model import RoutedLM
from drllm.runs.provenance import hardware, versions

MODEL = "smollm2-135m-q4"
TASKS = "drllm_arc_easy,drllm_arc_challenge,drllm_openbookqa,drllm_sciq,drllm_mmlu,drllm_mmlu:5,drllm_piqa,drllm_commonsenseqa"
CHUNK = 8  # documents that one model answers before the other


def requests_of(task: Any, limit: int, n_shots: int) -> list[list[Any]]:
    """The task's log-likelihood requests, a list a document."""
    task.set_config(key="num_fewshot", value=n_shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    documents: dict[int, list[Any]] = {}
    for instance in task.instances:
        documents.setdefault(instance.doc_id, []).append(instance)
    return sorted(documents.values(), key=lambda instances: instances[0].doc["description"])[:limit]


def measure(routed: RoutedModel, documents: list[list[Any]], batch_size: int) -> dict[str, Any]:
    """Both models on the same chunks, in turn."""
    stock = HFLM(routed.model, tokenizer=routed.tokenizer, batch_size=batch_size)  # type: ignore[arg-type]
    ours = RoutedLM(routed, batch_size=batch_size)
    seconds: dict[str, list[float]] = {"stock": [], "drllm": []}
    answers: dict[str, list[Any]] = {"stock": [], "drllm": []}
    models = [("stock", stock), ("drllm", ours)]
    for lm in (stock, ours):
        lm.loglikelihood(documents[0], disable_tqdm=True)
    for number, start in enumerate(range(0, len(documents), CHUNK)):
        chunk = [request for document in documents[start : start + CHUNK] for request in document]
        for name, lm in models if number % 2 else models[::-1]:
            started = time.perf_counter()
            answers[name] += lm.loglikelihood(chunk, disable_tqdm=True)
            seconds[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["drllm"], strict=True)]
    differences = [abs(a[0] - b[0]) for a, b in zip(answers["stock"], answers["drllm"], strict=True)]
    return {
        "batch_size": batch_size,
        "documents": len(documents),
        "requests": len(differences),
        "stock_s": sum(seconds["stock"]),
        "drllm_s": sum(seconds["drllm"]),
        "ratio": sum(seconds["stock"]) / sum(seconds["drllm"]),
        "median_ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "largest_difference": max(differences),
        "greedy_equal": all(a[1] == b[1] for a, b in zip(answers["stock"], answers["drllm"], strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="../shared/data" if Path("../shared/data").is_dir() else None)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    routed = RoutedModel.wrap(MODEL, dtype=torch.float32)
    metadata = {"split": "tune"} | ({"data": arguments.data} if arguments.data else {})
    tasks = TaskManager(include_path=str(TASKS_FOLDER), metadata=metadata)
    wanted = [(name.partition(":")[0], int(name.partition(":")[2] or 0)) for name in arguments.tasks.split(",")]
    loaded = tasks.load(sorted({name for name, _ in wanted}))["tasks"]
    rows = []
    heads = ("task", "batch", "docs", "stock s", "drllm s", "ratio", "lowest", "largest d", "greedy equal")
    print("{:20} {:>5} {:>5} {:>8} {:>8} {:>6} {:>7} {:>10}  {}".format(*heads))
    for task_name, n_shots in wanted:
        name = f"{task_name}:{n_shots}" if n_shots else task_name
        documents = requests_of(loaded[task_name], arguments.limit, n_shots)
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            row = {"task": name} | measure(routed, documents, batch_size)
            rows.append(row)
            print(
                f"{name:20} {batch_size:5} {row['documents']:5} {row['stock_s']:8.1f} {row['drllm_s']:8.1f} {row['ratio']:6.2f} "
                f"{row['lowest_ratio']:7.2f} {row['largest_difference']:10.1e}  {'yes' if row['greedy_equal'] else 'NO'}",
                flush=True,
            )
    if arguments.out:
        write_json(
            arguments.out,
            {
                "rows": rows,
                "versions": versions(),
                "hardware": hardware(),
                "arguments": json.loads(json.dumps(vars(arguments), default=str)),
            },
        )


if __name__ == "__main__":
    main()
