"""Several runs of `benchmarks/serve.py` together: one run's interval does not know how runs of a shared machine differ.

    python benchmarks/serve_runs.py results/benchmarks/serve-amx*.json

For each batch size and arm that at least two runs have: the speed over stock, as a mean of the runs' medians on the log scale, each
weighing by its own variance (its 95 % interval over 3.92) and the variance between runs (DerSimonian and Laird, "Meta-analysis in clinical
trials", 1986), with its 95 % interval; and each run's median. With few runs the variance between them is known poorly: read the medians,
too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path


def combined(ratios: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(ratio, low, high) of runs given as (median, low, high)."""
    values = [math.log(median) for median, _, _ in ratios]
    own = [(math.log(high / low) / 3.92) ** 2 for _, low, high in ratios]
    weights = [1 / variance for variance in own]
    mean = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    spread = sum(w * (value - mean) ** 2 for w, value in zip(weights, values, strict=True))
    room = sum(weights) - sum(w * w for w in weights) / sum(weights)
    between = max(0.0, (spread - (len(values) - 1)) / room)
    weights = [1 / (variance + between) for variance in own]
    mean = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    half = 1.96 / math.sqrt(sum(weights))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    runs = [json.loads(path.read_text()) for path in parser.parse_args().files]
    found: dict[tuple[int, str], list[list[float]]] = {}
    for run in runs:
        for row in run["serve"]:
            for name, arm in row["arms"].items():
                if not name.startswith("stock"):
                    found.setdefault((row["batch"], name), []).append(arm["ratio"])
    for (batch, name), ratios in sorted(found.items()):
        if len(ratios) > 1:
            ratio, low, high = combined(ratios)
            medians = ", ".join(f"{median:.3f}" for median, _, _ in ratios)
            print(f"batch {batch:2}  {name:34} {ratio:.3f} ({low:.3f} to {high:.3f})   {len(ratios)} runs: {medians}")


if __name__ == "__main__":
    main()
