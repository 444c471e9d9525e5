"""Candidate routes for a dense (question x route) matrix, from a dense sweep of single edits on fit questions.

    python benchmarks/candidates.py --singles 30 > singles.txt
    drllm search --paths singles.txt --limit 64 ... --out runs/singles
    python benchmarks/candidates.py --run runs/singles > routes.txt

The margin gains of two edits nearly add up, so pairs are ranked by the sum of their edits' mean gains. Half of the list are single edits,
half pairs; in each half, every second route has fewer passes than the base, so that cheap routes are among them too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from drllm import Route
from drllm.records import read_records
from drllm.searching.edits import EditSpace
from drllm.searching.prior import sweep_routes

MAX_SKIP_RUN = 2


def gains(run: Path) -> dict[Route, float]:
    """Mean gain over the base of each route, in spreads of its task's margins; fit questions only."""
    by_route: dict[Route, list[float]] = defaultdict(list)
    for folder in sorted((run / "paths").iterdir()):
        records = [record for record in read_records(folder) if record.split == "fit"]
        spread = float(np.std([record.base_margin for record in records]))
        for record in records:
            for route, margin in zip(record.routes[1:], record.margins[1:], strict=True):
                by_route[route].append((margin - record.base_margin) / spread)
    return {route: float(np.mean(values)) for route, values in by_route.items()}


def alternate(ranked: list[Route], n: int) -> list[Route]:
    """The first n, by turns any route and one shorter than the base."""
    short = [route for route in ranked if route.n_passes < len(route)]
    chosen: list[Route] = []
    while len(chosen) < n:
        pool = ranked if len(chosen) % 2 == 0 else short
        chosen.append(next(route for route in [*pool, *ranked] if route not in chosen))
    return chosen


def main() -> None:
    """Print one route a line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--singles", type=int, help="blocks: print every single edit")
    parser.add_argument("--run", type=Path, help="run folder of the dense sweep of single edits")
    parser.add_argument("-n", type=int, default=50)
    arguments = parser.parse_args()
    if arguments.singles:
        print("\n".join(map(str, sweep_routes(arguments.singles, MAX_SKIP_RUN))))
        return
    gain = gains(arguments.run)
    n_layers = len(next(iter(gain)))
    space = EditSpace(n_layers, MAX_SKIP_RUN)
    code_of = {space.apply(Route.full(n_layers), code): code for code in range(space.n_codes)}
    singles = sorted(gain, key=gain.__getitem__, reverse=True)
    pairs: dict[Route, float] = {}
    for first, second in combinations(singles[: len(singles) // 3], 2):
        if (both := space.apply(first, code_of[second])) is not None:
            pairs[both] = gain[first] + gain[second]
    ranked = sorted((route for route in pairs if route not in gain), key=pairs.__getitem__, reverse=True)
    print("\n".join(map(str, alternate(singles, arguments.n // 2) + alternate(ranked, arguments.n - arguments.n // 2))))


if __name__ == "__main__":
    main()
