"""What drllm costs on a GPU: search, scan, heal and serve of one model, in one file with the card's name. `make bench-gpu` runs it.

    python benchmarks/gpu.py [--model ID] [--tasks arc_easy] [--data FILE] [--parts search,scan,heal,serve] [--out FILE.json]

Unit PF: one plain forward of one question by the base, in batches, as `--dry-run` clocks it. Of search and scan: PF a path that was judged,
wall clock, all of it counted. Memory is torch's most on the card. `serve` runs `serve.py` where a serving environment is (docs/serve.md).
No GPU has run it yet; a test runs it on a tiny model of the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from drllm import HealConfig, RoutedModel, ScanConfig, SearchConfig, heal, scan, search
from drllm.core.files import write_json
from drllm.core.text import type_name
from drllm.evaluation.clock import batched_ms
from drllm.runs.merge import rows_of
from drllm.runs.provenance import hardware, versions

SERVE_PYTHON = Path(os.environ.get("DRLLM_SERVE_PYTHON", Path(__file__).parents[1] / ".venv-serve" / "bin" / "python"))
PARTS = ("search", "scan", "heal", "serve")


@contextmanager
def clocked(found: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Put the seconds of what runs while this is open, and the most memory it took on the card, into `found`."""
    on_card = device.type == "cuda"
    if on_card:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    yield
    if on_card:
        torch.cuda.synchronize(device)
        found["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    found["seconds"] = time.perf_counter() - started


def searched(routed: RoutedModel, given: argparse.Namespace, plain_ms: float, out: Path) -> dict[str, Any]:
    """The search, no early stop, no checks in float32."""
    config = SearchConfig(early_stop=False, verify=False, n_simulations=given.simulations, limit=given.questions)
    found: dict[str, Any] = {}
    with clocked(found, routed.device):
        search(routed, given.tasks, config, out, given.data)
    return found | per_path(found["seconds"], out, plain_ms)


def scanned(routed: RoutedModel, given: argparse.Namespace, plain_ms: float, out: Path) -> dict[str, Any]:
    """Spans of at most three blocks."""
    config = ScanConfig(questions=given.questions, first_questions=min(8, given.questions), fresh=given.questions, max_span=3)
    found: dict[str, Any] = {}
    with clocked(found, routed.device):
        result = scan(routed, given.tasks, config, out, given.data)
    return found | per_path(found["seconds"], out, plain_ms) | {"plain_forwards": result.cost.total}


def healed(routed: RoutedModel, given: argparse.Namespace, plain_ms: float, out: Path) -> dict[str, Any]:
    """A route of nine tenths of the blocks, chosen by KL."""
    config = HealConfig(budget=0.9, steps=given.steps, held_out=given.held_out, choose_on=given.held_out // 2)
    found: dict[str, Any] = {}
    with clocked(found, routed.device):
        _, (done,) = heal(routed, out, tasks=given.tasks, data=given.data, config=config)
    return found | {"stages": done.seconds, "steps": done.steps, "kl": [done.kl_before, done.kl_after]}


def per_path(seconds: float, out: Path, plain_ms: float) -> dict[str, float]:
    """Paths that were judged, and what one cost."""
    n_paths = rows_of(out).num_rows
    return {"paths": n_paths, "pf_a_path": 1000 * seconds / plain_ms / n_paths}


def served(given: argparse.Namespace) -> dict[str, Any]:
    """One route for all beside stock vLLM, compiled: on a GPU with its graphs."""
    if not SERVE_PYTHON.is_file():
        return {"not run": f"no serving environment at {SERVE_PYTHON}: DRLLM_SERVE_PYTHON names one"}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "serve.json"
        program = Path(__file__).with_name("serve.py")
        command = [SERVE_PYTHON, program, "--model", given.model, "--only", "static", "--rounds", "12", "--out", out]
        status = subprocess.run(command, check=False).returncode
        return json.loads(out.read_text(encoding="utf-8")) if not status else {"not run": f"serve.py ended with status {status}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Each part is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-q4")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tasks", default="arc_easy", type=lambda text: text.split(","))
    parser.add_argument("--data", default=None)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100, help="of healing")
    parser.add_argument("--held-out", type=int, default=64, help="prompts of healing")
    parser.add_argument("--parts", default=",".join(PARTS), type=lambda text: text.split(","))
    parser.add_argument("--out", default="runs/bench-gpu.json")
    given = parser.parse_args(arguments)
    if odd := [part for part in given.parts if part not in PARTS]:
        parser.error(f"--parts holds {odd[0]!r}, expected some of {', '.join(PARTS)}")
    routed = RoutedModel.wrap(given.model, dtype=given.dtype, device=given.device)
    plain_ms = batched_ms(routed, given.tasks, SearchConfig(), given.data)
    card = torch.cuda.get_device_name(routed.device) if routed.device.type == "cuda" else ""
    found: dict[str, Any] = {"card": card, "device": str(routed.device), "model": given.model, "dtype": type_name(routed.model.dtype)}
    found |= {"tasks": given.tasks, "plain_ms": plain_ms, "hardware": hardware(), "versions": versions()}
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[..., dict[str, Any]]] = {"search": searched, "scan": scanned, "heal": healed}
    for part in given.parts:
        with tempfile.TemporaryDirectory() as place:
            found[part] = served(given) if part == "serve" else parts[part](routed, given, plain_ms, Path(place) / "run")
        write_json(Path(given.out), found)
        print(f"{part}: {json.dumps(found[part], default=str)[:200]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
