"""Candidate routes for a dense (question x route) matrix, from a dense sweep of single edits on fit questions.

    python -m drllm_research.comparison.candidates --singles 30 > singles.txt
    drllm search --paths singles.txt --limit 64 ... --out runs/singles
    python -m drllm_research.comparison.candidates --run runs/singles > routes.txt

The margin gains of two edits nearly add up, so pairs are ranked by the sum of their edits' mean gains. Half of the list are single edits,
half pairs; in each half, every second route has fewer passes than the base, so that cheap routes are among them too.

    python -m drllm_research.comparison.candidates --run runs/singles --mixed > routes.txt

    python -m drllm_research.comparison.candidates --combine runs/policies --tasks arc_easy,arc_challenge,openbookqa -n 14 > combined.txt
    drllm search --paths combined.txt --list combined ... --out runs/policies

From a dense matrix: pairs and triples of its routes that edit different blocks, by the sum of their gains, every third of them within 0.9
of the base's passes.

For traffic of several kinds: the best single edits and pairs over all tasks and of each task, the best that spend at most 0.9 of the base's
passes, and routes drawn blindly, for the blind baseline that a codebook needs.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from drllm import Route, SearchConfig
from drllm.core.span import in_place
from drllm.runs.manifest import path_manifests, read_manifest
from drllm.runs.records import read_matrix
from drllm.searching.edits import EditSpace, random_routes

MAX_SKIP_RUN = 2
CLIP = 0.1  # standard deviations of a task's margins


def gains_by_task(run: Path) -> dict[str, dict[Route, float]]:
    """Mean gain over the base of each route on each task, in spreads of the task's margins; fit questions only."""
    found = {}
    for folder, manifest in path_manifests(run).items():
        records = [record for record in read_matrix(folder, manifest) if record.split == "fit"]
        spread = float(np.std([record.base_margin for record in records]))
        by_route: dict[Route, list[float]] = defaultdict(list)
        for record in records:
            for route, margin in zip(record.routes[1:], record.margins[1:], strict=True):
                by_route[route].append((margin - record.base_margin) / spread)
        found[folder.name] = {route: float(np.mean(values)) for route, values in by_route.items()}
    return found


def gains(run: Path) -> dict[Route, float]:
    """Mean gain over the base of each route, the mean over tasks."""
    tasks = list(gains_by_task(run).values())
    return {route: float(np.mean([gain[route] for gain in tasks])) for route in tasks[0]}


def alternate(ranked: list[Route], n: int) -> list[Route]:
    """The first n, by turns any route and one shorter than the base."""
    short = [route for route in ranked if route.n_passes < len(route)]
    chosen: list[Route] = []
    while len(chosen) < n:
        pool = ranked if len(chosen) % 2 == 0 else short
        chosen.append(next(route for route in [*pool, *ranked] if route not in chosen))
    return chosen


def ranked_pairs(gain: dict[Route, float], n_edits: int = 2) -> dict[Route, float]:
    """Routes of several single edits that do not touch one another, by the sum of the edits' gains; the better third is combined."""
    n_layers = len(next(iter(gain)))
    space = EditSpace(n_layers, MAX_SKIP_RUN)
    code_of = {space.apply(Route.full(n_layers), code): code for code in range(space.n_codes)}
    singles = sorted(gain, key=gain.__getitem__, reverse=True)
    singles = singles[: len(singles) // 3]
    found = dict.fromkeys(singles, 0.0) | {route: gain[route] for route in singles}
    for _ in range(n_edits - 1):
        wider: dict[Route, float] = {}
        for route, value in found.items():
            for edit in singles:
                if (both := space.apply(route, code_of[edit])) is not None and both not in gain:
                    wider[both] = max(wider.get(both, -np.inf), value + gain[edit])
        found = wider
    return found


def mixed(run: Path, budget: float, n_random: int, seed: int, of_task: int) -> list[Route]:
    """The list for several kinds of traffic; `of_task` single edits and as many pairs of each task."""
    tasks = gains_by_task(run)
    # Where a task's base answers one letter or word far too often, every edit that shifts it gains a lot: no task may outweigh the others.
    overall = {
        route: float(np.mean([np.clip(gain[route], -CLIP, CLIP) for gain in tasks.values()])) for route in next(iter(tasks.values()))
    }
    n_layers = len(next(iter(overall)))
    chosen: list[Route] = []

    def take(values: dict[Route, float], n: int) -> None:
        ranked = sorted(values, key=values.__getitem__, reverse=True)
        chosen.extend([route for route in ranked if route not in chosen and route.first_edit() >= n_layers // 10][:n])

    take(overall, 2)
    take(ranked_pairs(overall), 2)
    for gain in tasks.values():
        take(gain, of_task)
        take(ranked_pairs(gain), of_task)
    cheap = {route: value for n in (2, 3) for route, value in ranked_pairs(overall, n).items() if route.n_passes <= budget * n_layers}
    take(cheap, 6)
    blind = random_routes(n_layers, 4 * n_random, SearchConfig(), seed)
    take({route: -float(place) for place, route in enumerate(blind)}, n_random)
    return chosen


def combine(one: Route, other: Route) -> Route | None:
    """The first route with the second's edits added; None where both edit a block, or nothing is added."""
    if other.is_full or edited_blocks(one) & edited_blocks(other):
        return None
    both = zip(one.visits, other.visits, strict=True)
    return Route.of_visits([b if a == in_place(block, 1) else a for block, (a, b) in enumerate(both)])


def edited_blocks(route: Route) -> set[int]:
    """Blocks that do not run once, each at its own place; of a loop, all that it runs and the one that it stands behind."""
    as_base = enumerate(zip(route, route.visits, strict=True))
    return {block for block, (n_passes, visit) in as_base if n_passes != 1 or visit != in_place(block, 1)}


def combined(run: Path, tasks: list[str], n: int, budget: float) -> list[Route]:
    """Pairs and triples of the routes of a dense matrix, by the sum of their gains on the fit questions of some tasks."""
    by_task = []
    for task in tasks:
        folder = run / "paths" / task
        records = [record for record in read_matrix(folder, read_manifest(folder)) if record.split == "fit"]
        margins = np.array([record.margins for record in records])
        spread = np.std(margins[:, 0])
        by_task.append(np.clip((margins - margins[:, :1]) / spread, -1, 1).mean(0))
        routes = records[0].routes
    gain = dict(zip(routes, np.mean(by_task, axis=0).tolist(), strict=True))
    best = sorted((route for route in gain if not route.is_full), key=gain.__getitem__, reverse=True)[:16]
    found: dict[Route, float] = {}
    widest = {route: gain[route] for route in best}
    for _ in range(2):
        widest = {
            both: value + gain[other]
            for route, value in widest.items()
            for other in best
            if (both := combine(route, other)) is not None and both not in gain
        }
        for both, value in widest.items():
            found[both] = max(found.get(both, -np.inf), value)
    ranked = sorted(found, key=lambda route: (-found[route], str(route)))
    short = [route for route in ranked if route.n_passes <= budget * len(route)]
    chosen: list[Route] = []
    while len(chosen) < min(n, len(ranked)):
        pool = short if len(chosen) % 3 == 2 else ranked
        chosen.append(next(route for route in [*pool, *ranked] if route not in chosen))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--singles", type=int, help="blocks: print every single edit")
    parser.add_argument("--run", type=Path, help="run folder of the dense sweep of single edits")
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--mixed", action="store_true", help="a list for traffic of several kinds, from a sweep of several tasks")
    parser.add_argument("--of-task", type=int, default=2, help="with --mixed: single edits, and as many pairs, chosen for each task")
    parser.add_argument("--combine", type=Path, help="run folder of a dense matrix: combinations of its routes")
    parser.add_argument("--tasks", default="", help="with --combine: tasks that they should help")
    arguments = parser.parse_args()
    if arguments.singles:
        print("\n".join(map(str, EditSpace(arguments.singles, MAX_SKIP_RUN).edited(Route.full(arguments.singles)))))
        return
    if arguments.combine:
        print("\n".join(map(str, combined(arguments.combine, arguments.tasks.split(","), arguments.n, 0.9))))
        return
    if arguments.mixed:
        routes = mixed(arguments.run, 0.9, 8, 0, arguments.of_task)
    else:
        gain = gains(arguments.run)
        pairs = ranked_pairs(gain)
        singles, doubles = (sorted(values, key=values.__getitem__, reverse=True) for values in (gain, pairs))
        routes = alternate(singles, arguments.n // 2) + alternate(doubles, arguments.n - arguments.n // 2)
    print("\n".join(map(str, routes)))


if __name__ == "__main__":
    main()
