"""What a dense (question x route) matrix says: the best single route chosen on fit, judged on calibrate, beside an oracle.

    python benchmarks/dense.py results/arc-train-smollm2-135m-q4/records.parquet

A route is chosen on the fit questions, once by accuracy and once by mean margin; its gain over the base is measured on the calibrate
questions, paired. The oracle takes, with the answer in hand, any route that is right: no policy can reach it, and it grows with the number
of routes by luck alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from drllm.runs.manifest import path_manifests
from drllm.runs.records import RouteRecord, read_matrix
from drllm.stats.paired import paired_bootstrap


def matrices(records: list[RouteRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts (bool) and margins in spreads of the base's, questions x routes, the base first."""
    rewards = np.array([record.rewards for record in records]) > 0
    margins = np.array([record.margins for record in records], dtype=np.float64)
    return rewards, margins / margins[:, 0].std()


def interval(ours: np.ndarray, base: np.ndarray, strata: list[str]) -> str:
    """Difference in points, with its interval."""
    mean, low, high = paired_bootstrap(ours, base, strata=strata)
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def show(title: str, records: list[RouteRecord]) -> None:
    """Print what the matrix of these questions says."""
    routes = records[0].routes
    if any(record.routes != routes for record in records):
        raise SystemExit("expected the same routes for every question: give a search made with --paths FILE")
    print(f"\n{title}: {len(records)} questions x {len(routes)} routes, the base's among them")
    fit = [record for record in records if record.split == "fit"]
    held = [record for record in records if record.split == "calibrate"]
    (verdicts, margins), (held_verdicts, _) = matrices(fit), matrices(held)
    strata, base = [record.task for record in held], held_verdicts[:, 0]
    print(f"  base: {100 * verdicts[:, 0].mean():.1f} % of {len(fit)} fit, {100 * base.mean():.1f} % of {len(held)} calibrate questions")
    for name, values in (("accuracy", verdicts), ("mean margin", margins)):
        best = int(values.mean(0).argmax())
        gain = 100 * (verdicts[:, best].mean() - verdicts[:, 0].mean())
        print(
            f"  best on fit by {name}: {routes[best]}, {routes[best].n_passes} passes, {gain:+.1f} points on fit; "
            f"on calibrate {interval(held_verdicts[:, best], base, strata)}"
        )
    wrong = ~base
    solved, blind, broken = held_verdicts[wrong].any(1).mean(), held_verdicts[wrong].mean(), 1 - held_verdicts[base].mean()
    print(f"  oracle on calibrate: {interval(held_verdicts.any(1), base, strata)}")
    print(f"  of what the base has wrong, the oracle solves {100 * solved:.1f} %, a route taken blindly {100 * blind:.1f} %;")
    print(f"  of what it has right, a route taken blindly breaks {100 * broken:.1f} %")


def main() -> None:
    """Print the statistics of each task, and of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="a run folder of `search --paths`")
    manifests = path_manifests(parser.parse_args().source)
    records = [record for folder, manifest in manifests.items() for record in read_matrix(folder, manifest)]
    tasks = sorted({record.task for record in records})
    for task in tasks:
        show(task, [record for record in records if record.task == task])
    if len(tasks) > 1:
        show("all", records)


if __name__ == "__main__":
    main()
