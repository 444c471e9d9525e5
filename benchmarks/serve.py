"""What routes cost and save on vLLM: `make bench-serve`, in the serving environment (`make serve-env`).

    .venv-serve/bin/python benchmarks/serve.py [--batches 1,32] [--rounds 20] [--new 32] [--out FILE.json]

Every engine is a process of its own with one thread; all are started first, then in each round every arm decodes the same prompts once, in
an order drawn anew, and the processor time is read: tokens a CPU-second, SmolLM2-135M in bf16. Ratios are of one round; their median stands
with its 95 % interval by order statistics. Arms: stock vLLM, compiled and eager; a static route of 24 of 30 blocks, compiled; the identity
along the routed machinery, compiled and eager; one common route, four nested routes and as many routes as rows, eager and beside a
compiled base. The limit of nested routes is `t_other(B) + sum over blocks of t_block(rows executing it)`, clocked around the blocks of the
stock eager engine between the rounds. The front selector is timed on the same prompts in this process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from drllm import Route, RoutedModel
from drllm.files import write_json
from drllm.model.codebook import Codebook, Point
from drllm.provenance import hardware, versions
from drllm.serving.launch import cache_folder, checkpoint_of
from drllm.tasks import load_task
from generate import COMMON, MODEL, NESTED, different_routes, median_interval

FULL = "1" * 30


class Engine:
    """A `serve_engine.py` process."""

    def __init__(self, model: str, spec: dict[str, Any] | None, eager: bool):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serve_engine.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.tell({"model": model, "spec": spec, "eager": eager})

    def tell(self, told: dict[str, Any]) -> None:
        """One line to the engine."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Its answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with status {self.process.wait()}: run benchmarks/serve_engine.py by hand to see why")
        return json.loads(line)

    def run(self, prompts: list[list[int]], routes: Sequence[str] | None, new: int, **more: Any) -> dict[str, Any]:
        """One batch."""
        self.tell({"prompts": prompts, "routes": None if routes is None else list(routes), "new": new} | more)
        return self.hear()


def arms_of(batch: int) -> dict[str, tuple[str, list[str] | None]]:
    """Each arm: its engine, and the route of each row."""
    nested = [NESTED[row % 4] for row in range(batch)]
    different = [str(route) for route in different_routes(batch, 30)]
    arms: dict[str, tuple[str, list[str] | None]] = {
        "stock, compiled": ("stock compiled", None), "static 24 of 30, compiled": ("static compiled", None),
        "identity, compiled": ("rows compiled", [FULL] * batch), "stock, eager": ("stock eager", None),
        "identity, eager": ("rows eager", [FULL] * batch), "one common route, eager": ("rows eager", [COMMON] * batch),
        "one common route, beside a compiled base": ("rows compiled", [COMMON] * batch),
    }  # fmt: skip
    if batch > 1:
        arms |= {
            "4 nested routes, eager": ("rows eager", nested), "4 nested routes, beside a compiled base": ("rows compiled", nested),
            f"{batch} routes, eager": ("rows eager", different),
        }  # fmt: skip
    return arms


def measure(engines: dict[str, Engine], prompts: list[list[int]], batch: int, rounds: int, new: int, seed: int) -> dict[str, Any]:
    """All arms at one batch size."""
    arms = arms_of(batch)
    nested = [Route.parse(NESTED[row % 4]) for row in range(batch)]
    needed = sorted({sum(route[block] > 0 for route in nested) for block in range(30)} | {batch}) if batch > 1 else []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    limits: list[float] = []
    rng = random.Random(seed)
    for round_ in range(-1, rounds):  # the first warms up
        rows = [prompts[(max(round_, 0) * batch + row) % len(prompts)] for row in range(batch)]
        order = list(arms)
        rng.shuffle(order)
        for name in order:
            engine, routes = arms[name]
            done = engines[engine].run(rows, routes, new)
            found[name] += [done] if round_ >= 0 else []
        if round_ >= 0 and needed and round_ % 4 == 0:
            clocks = {n: engines["stock eager"].run(rows[:n], None, new, clocked=True) for n in needed}
            passes = [sum(route[block] > 0 for route in nested) for block in range(30)]
            at_best = clocks[batch]["beside"] + sum(clocks[n]["blocks"] / 30 for n in passes if n)
            limits.append(at_best / (clocks[batch]["beside"] + clocks[batch]["blocks"]))
    speeds = {name: [one["tokens"] / one["decode"] for one in runs] for name, runs in found.items()}
    base = {name: f"stock, {'eager' if name.endswith('eager') else 'compiled'}" for name in arms}
    result: dict[str, Any] = {"batch": batch, "rounds": rounds, "new": new, "arms": {}}
    for name, values in speeds.items():
        ratios = [mine / stock for mine, stock in zip(values, speeds[base[name]], strict=True)]
        prefill = [mine["prefill"] / stock["prefill"] for mine, stock in zip(found[name], found[base[name]], strict=True)]
        result["arms"][name] = {
            "tokens_a_cpu_second": statistics.median(values), "against": base[name], "ratio": median_interval(ratios),
            "prefill_ratio": median_interval(prefill),
        }  # fmt: skip
    if limits:
        best = statistics.median(limits)
        mine = result["arms"]["4 nested routes, eager"]["ratio"]
        result["limit"] = {"of_stock_seconds": best, "speed": 1 / best, "reached": [value * best for value in mine],
                           "of_the_saving": [(1 - 1 / value) / (1 - best) for value in mine]}  # fmt: skip
    return result


def front(routed: RoutedModel, checkpoint: str, prompts: list[list[int]]) -> dict[str, float]:
    """The front selector on its own: seconds and memory of the blocks before block 6, against a whole prefill by the same library."""
    from drllm.serving.engine.front import FrontSelector

    size = 2 * routed.hidden_size
    book = Codebook([Route.full(30), Route.parse(COMMON)], 6, torch.zeros(size), torch.ones(size), torch.zeros(size, 1), torch.zeros(1),
                    [Point(0.0)], 0)  # fmt: skip
    selector = FrontSelector(book, checkpoint, torch.bfloat16, "cpu")
    mine, whole = [], []
    for place, ids in enumerate(prompts[:41]):
        started = time.process_time()
        selector.decide(ids)
        middle = time.process_time()
        with torch.no_grad():
            routed.model(torch.tensor([ids]), logits_to_keep=1)
        if place:
            mine.append(middle - started)
            whole.append(time.process_time() - middle)
    return {"seconds": statistics.median(mine), "prefill_seconds": statistics.median(whole), "bytes": selector.n_bytes,
            "tokens": statistics.mean(map(len, prompts[1:41]))}  # fmt: skip


def report(row: dict[str, Any]) -> None:
    """What people read."""
    shown = lambda value: f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"  # noqa: E731
    print(f"\nbatch {row['batch']}, {row['rounds']} rounds, {row['new']} tokens a row")
    for name, arm in row["arms"].items():
        print(f"  {name:42} {arm['tokens_a_cpu_second']:7.1f} tokens a CPU-second, {shown(arm['ratio'])} of {arm['against']}; "
              f"prefill seconds {shown(arm['prefill_ratio'])}")  # fmt: skip
    if "limit" in row:
        limit = row["limit"]
        print(f"  4 nested routes: the limit is {limit['speed']:.3f} times stock; reached {shown(limit['reached'])} of it, "
              f"{shown(limit['of_the_saving'])} of its saving")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default=None, help="folder of JSON-lines files, else the data package or the Hub")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    routed = RoutedModel.wrap(MODEL, dtype="bfloat16")
    checkpoint = checkpoint_of(routed, cache_folder())
    task = load_task("arc_easy", given.data)
    prompts = [routed.tokenizer(f"{example.question}\nAnswer:")["input_ids"] for example in task.select("fit", 512)]
    rows: dict[str, Any] = {"mode": "forced", "n_layers": 30}
    kinds: dict[str, tuple[dict[str, Any] | None, bool]] = {
        "stock compiled": (None, False), "static compiled": ({"mode": "static", "n_layers": 30, "route": COMMON}, False),
        "rows compiled": (rows, False), "stock eager": (None, True), "rows eager": (rows, True),
    }  # fmt: skip
    engines = {}
    for name, (spec, eager) in kinds.items():
        engines[name] = Engine(checkpoint, spec, eager)
        engines[name].hear()
        print(f"started: {name}", file=sys.stderr, flush=True)
    results = []
    for batch in map(int, given.batches.split(",")):
        results.append(measure(engines, prompts, batch, given.rounds, given.new, given.seed))
        report(results[-1])
    selector = front(routed, checkpoint, prompts)
    print(f"\nfront selector, {selector['tokens']:.0f} tokens a prompt: {1000 * selector['seconds']:.1f} ms of processor time, "
          f"{selector['seconds'] / selector['prefill_seconds']:.2f} of a whole prefill, {selector['bytes'] / 1e6:.0f} MB")  # fmt: skip
    if given.out:
        write_json(Path(given.out), {"serve": results, "front": selector, "hardware": hardware(), "versions": versions()})


if __name__ == "__main__":
    main()
