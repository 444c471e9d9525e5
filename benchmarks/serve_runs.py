"""Several runs of `benchmarks/serve.py` together: one run's interval does not know how runs of a shared machine differ.

    python benchmarks/serve_runs.py results/benchmarks.json:serve-amx results/benchmarks.json:serve-amx-2 runs/bench-serve.json

Runs of one type, one processor, one length of answers, one way of taking turns, the same questions and, where an arm follows a trained
codebook, one codebook; others are refused. For each batch size and arm that at least two runs have: the speed of decoding over stock, and
where the files have them the seconds of prefill, and, in those up to 2026-11-30, of prefill, front selector and answer, over stock's. Each
is a mean of the
runs' medians on the log scale, each weighing by its own variance (its 95 % interval over 3.92) and the variance between runs (DerSimonian
and Laird, "Meta-analysis in clinical trials", 1986), with its 95 % interval and each run's median. The interval is that of Hartung and
Knapp ("A refined method for the meta-analysis of controlled clinical trials with binary outcome", 2001): how far the runs lie apart is
itself known from k runs alone, so its quantile is that of t with k - 1 degrees of freedom. Runs that agree by chance would make it too
narrow: it is never narrower than DerSimonian and Laird's. Two runs leave it so wide that only their medians say anything. Then, for each
arm of nested routes, the limit that each run measured, and what of its saving it reached; older files hold no share of the saving.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

# Of an arm, over stock; and the line above those that are not the speed of decoding.
MEASURED = {"ratio": "", "prefill_ratio": "prefill, seconds over stock's", "with_front": "prefill, front and answer, seconds over stock's"}


def combined(ratios: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(ratio, low, high) of at least two runs given as (median, low, high)."""
    values = [math.log(median) for median, _, _ in ratios]
    own = [(math.log(high / low) / 3.92) ** 2 for _, low, high in ratios]
    weights = [1 / variance for variance in own]
    mean = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    spread = sum(w * (value - mean) ** 2 for w, value in zip(weights, values, strict=True))
    room = sum(weights) - sum(w * w for w in weights) / sum(weights)
    free = len(values) - 1
    between = max(0.0, (spread - free) / room)
    weights = [1 / (variance + between) for variance in own]
    mean = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    spread = sum(w * (value - mean) ** 2 for w, value in zip(weights, values, strict=True))
    by_runs = float(stats.t.ppf(0.975, free)) * math.sqrt(spread / free / sum(weights))
    half = max(by_runs, 1.96 / math.sqrt(sum(weights)))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def conditions(run: dict[str, Any]) -> dict[str, Any]:
    """What runs must have in common; files that say no type are of bfloat16, no model of SmolLM2. None: it does not matter to this run."""
    asked = run.get("asked", {"tasks": "arc_easy", "reward": ""})
    return {
        "model": run.get("model", "smollm2-135m-q4"),
        "dtype": run.get("dtype", "bfloat16"),
        "processor": run["hardware"]["processor"],
        "new tokens": ", ".join(sorted({str(row["new"]) for row in run["serve"]})),
        "turns of": run.get("turns", "answers"),  # whole ones, in older files
        "questions": f"{asked['tasks']} as {asked['reward'] or 'text'}",
        "code book": run.get("book", "not said")
        if any("book" in name or "in the engine" in name for row in run["serve"] for name in row["arms"])
        else None,
    }


def read_run(path: Path) -> dict[str, Any]:
    """What a run measured: of a file, or behind a colon the name of a run in a file of several."""
    file, _, name = str(path).partition(":")
    found = json.loads(Path(file).read_text())
    return found[name] if name else found


def check_alike(paths: Sequence[Path], runs: Sequence[dict[str, Any]]) -> None:
    """End with one line where runs are not of the same conditions."""
    known: dict[str, tuple[Path, Any]] = {}
    for path, run in zip(paths, runs, strict=True):
        for name, value in conditions(run).items():
            if value is None:
                continue
            first, wanted = known.setdefault(name, (path, value))
            if value != wanted:
                raise SystemExit(f"{path} has {name} {value}, {first} has {wanted}: give runs of one {name}")


def limits(run: dict[str, Any], batch: int, name: str) -> tuple[list[float] | None, list[float] | None]:
    """(limit, share of its saving reached) of an arm of nested routes, where a run has them."""
    for row in run["serve"]:
        found = row["limit"].get(name) or (row["limit"].get(name.rsplit(maxsplit=1)[-1]) if name.startswith("4 nested") else None)
        if row["batch"] == batch and found:
            return found["speed"], found.get("saving_reached")
    return None, None


def shown(value: Sequence[float], digits: int = 3) -> str:
    """A median and its interval."""
    return f"{value[0]:.{digits}f} ({value[1]:.{digits}f} to {value[2]:.{digits}f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    paths = parser.parse_args(arguments).files
    runs = [read_run(path) for path in paths]
    check_alike(paths, runs)
    print(", ".join(f"{name} {value}" for name, value in conditions(runs[0]).items() if value is not None))
    found: dict[tuple[str, int, str], list[list[float]]] = {}
    for run in runs:
        for row in run["serve"]:
            for name, arm in row["arms"].items():
                for measured in MEASURED if not name.startswith("stock") else ():
                    if isinstance(value := arm.get(measured), list):  # the oldest files have a median alone for some
                        found.setdefault((measured, row["batch"], name), []).append(value)
    for measured, label in MEASURED.items():
        several = [(batch, name, ratios) for (what, batch, name), ratios in sorted(found.items()) if what == measured and len(ratios) > 1]
        if several and label:
            print(label)
        for batch, name, ratios in several:
            medians = ", ".join(f"{median:.3f}" for median, _, _ in ratios)
            print(f"batch {batch:2}  {name:34} {shown(combined(ratios))}   {len(ratios)} runs: {medians}")
    for batch, name in sorted({(batch, name) for _, batch, name in found}):
        for path, run in zip(paths, runs, strict=True):
            limit, reached = limits(run, batch, name)
            if limit is not None:
                share = "share of its saving not in the file" if reached is None else f"of its saving reached {shown(reached, 2)}"
                print(f"batch {batch:2}  {name:34} limit {shown(limit)}, {share}   {path.name}")


if __name__ == "__main__":
    main()
