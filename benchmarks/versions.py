"""Two checkouts of drllm in turns: what generation and a search's scorer take, the one's seconds over the other's.

    python benchmarks/versions.py OTHER_CHECKOUT [--rounds 12] [--dtype float32] [--out FILE.json]

Each checkout has a process of its own with one computing thread and SmolLM2-135M in it; they take turns, in an order drawn anew for each
round, so that the machine's drift meets both. A round is eight prompts of ARC-Easy with 8 new tokens, under the base's route, one common
route and eight different ones; 4 questions x 8 routes through the log-likelihood scorer; and two whole calls of `search` on 2 questions x
8 given routes, ARC-Easy by log-likelihood and arithmetic by generated answers. Ratios are of one round, this checkout's over the other's;
their median stands with its 95 % interval by order statistics. CPU seconds of the process, so that another job beside does not count; the
answers of both must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL, N_QUESTIONS, N_ROUTES, N_PROMPTS, N_NEW = "smollm2-135m-q4", 4, 8, 8, 8
SEARCHES = {"matrix": "arc_easy", "decoded": "arith-1"}  # parts and their tasks
ROOT = Path(__file__).resolve().parents[1]


def work(dtype: str) -> None:
    """One checkout's side: a line of JSON for each line of input, which names a part."""
    import torch

    from drllm import Route, RoutedModel
    from drllm.scoring.loglik import LoglikScorer
    from drllm.tasks import load_task

    torch.set_num_threads(1)
    routed = RoutedModel.wrap(MODEL, dtype=dtype)
    task = load_task("arc_easy")
    examples = task.select("fit", N_QUESTIONS)
    draw = random.Random(0)
    routes = [Route(draw.choices((0, 1, 2), (1, 12, 1), k=routed.n_layers)) for _ in range(N_ROUTES)]
    policies = {"base": None, "common": routes[0], "different": routes[:N_PROMPTS]}
    prompts = [example.question for example in task.select("fit", N_PROMPTS)]
    for line in sys.stdin:
        part = line.strip()
        started = time.process_time()
        if part in SEARCHES:
            answer: Any = searched(routed, SEARCHES[part], routes)
        elif part == "scorer":
            scorer = LoglikScorer(routed, 512, packed=True)
            handles = scorer.open([scorer.question(task.task, example) for example in examples])
            verdicts = scorer.score([(handle, route) for handle in handles for route in routes])
            answer = [round(verdict.margin, 4) for verdict in verdicts]
            scorer.close(handles)
        else:
            answer = [out.token_ids for out in routed.generate(prompts, policy=policies[part], max_new_tokens=N_NEW, do_sample=False)]
        sys.stdout.write(json.dumps({"seconds": time.process_time() - started, "answer": answer}) + "\n")
        sys.stdout.flush()


def searched(routed: Any, task: str, routes: Sequence[Any]) -> Any:
    """A dense matrix through `search`, from its start: (question, route, whether it was right), sorted."""
    import pyarrow.parquet as pq

    from drllm import SearchConfig, search

    config = SearchConfig(splits=("fit",), limit=2, verify=False, control=False, max_new_tokens=8)
    with tempfile.TemporaryDirectory() as out:
        search(routed, tasks=[task], config=config, out=out, routes=routes)
        rows = [row for file in sorted(Path(out).rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    if "routes" in rows[0]:  # a row a question, as it was before there was one store
        return sorted((row["id"], route, bool(right)) for row in rows for route, right in zip(row["routes"], row["rewards"], strict=True))
    return sorted((row["id"], row["route"], bool(row["acc_norm"] if row["correct"] is None else row["correct"])) for row in rows)


def start(checkout: Path, dtype: str) -> subprocess.Popen[str]:
    """The process of one checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", "--dtype", dtype]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], part: str) -> dict[str, Any]:
    """One part of a round."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{part}\n")
    process.stdin.flush()
    if not (line := process.stdout.readline()):
        raise SystemExit(f"a checkout's process ended at part {part}: its error stands above")
    return json.loads(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--parts", default="base,common,different,scorer,matrix,decoded")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    if arguments.work:
        work(arguments.dtype)
        return 0
    if arguments.other is None or not (arguments.other / "src" / "drllm").is_dir():
        parser.error(f"{arguments.other} is no checkout of drllm: give the folder that holds its src/")
    from drllm.runs.provenance import commit, hardware
    from timing import check_rounds, median_interval, shown

    check_rounds(parser, arguments.rounds)
    parts, sides = arguments.parts.split(","), {"this": start(ROOT, arguments.dtype), "other": start(arguments.other, arguments.dtype)}
    seconds: dict[str, dict[str, list[float]]] = {part: {side: [] for side in sides} for part in parts}
    draw = random.Random(0)
    for turn in range(arguments.rounds + 1):
        print(f"round {turn} of {arguments.rounds}", file=sys.stderr, flush=True)
        for part in parts:
            answers = {}
            for side in draw.sample(list(sides), 2):
                found = ask(sides[side], part)
                answers[side] = found["answer"]
                if turn:  # the first round warms up
                    seconds[part][side].append(found["seconds"])
            if answers["this"] != answers["other"]:
                raise SystemExit(f"the checkouts answer part {part} differently")
    about = {"this": commit(ROOT), "other": commit(arguments.other), "processor": hardware()["processor"], "threads": 1}
    result: dict[str, Any] = {**about, "rounds": arguments.rounds, "dtype": arguments.dtype, "seconds": seconds, "ratio": {}}
    for part, of_sides in seconds.items():
        result["ratio"][part] = median_interval([a / b for a, b in zip(of_sides["this"], of_sides["other"], strict=True)])
        print(f"{part:10} {shown(result['ratio'][part])} of the other's CPU seconds")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
