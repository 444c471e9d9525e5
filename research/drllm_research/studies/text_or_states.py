"""Routes chosen from a prompt's text beside those chosen from its states, and beside the best route of its task, out of fold.

    python -m drllm_research.studies.text_or_states --model smollm2-135m-q4 --run RUN --tasks arc_easy,piqa --read text,states

RUN holds the dense matrix (`drllm search --paths`). The questions are dealt into parts, stratified by task. Each part is answered along
routes that were learned from the other parts: half of those to fit, half to choose by, as `train --method codebook` does. Points against
the base and against the first of `--read`, with paired 95 % intervals; and what is left where the same routes are dealt to other prompts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from drllm import RoutedModel, show_progress
from drllm.methods.codebook import CodebookConfig, choices, choose, choose_routes, fit_candidates
from drllm.methods.matrix import Matrix
from drllm.methods.prompt_reading import TEXT, Read, Readings, pooled_states, read_text, reading_blocks
from drllm.methods.selector import lengths, moments
from drllm.methods.training_data import TrainingData
from drllm.policies.text_selector import common_grams, grams_in, presence, strangeness
from drllm.stats.paired import paired_bootstrap
from drllm_research.comparison.curve import of_questions


def dealt(tasks: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(N,): a part of each question, as many questions of a task in each."""
    part = np.zeros(len(tasks), dtype=int)
    for task in np.unique(tasks):
        mine = rng.permutation(np.flatnonzero(tasks == task))
        part[mine] = np.arange(len(mine)) % n
    return part


def joined(*parts: Matrix) -> Matrix:
    """The questions of all."""
    names = {name: sum((getattr(part, name) for part in parts), ()) for name in ("tasks", "ids", "prompts")}
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("correct", "margins")}
    return replace(parts[0], **names, **arrays)


def told(fit: Matrix, tune: Matrix, there: Matrix, budget: float) -> np.ndarray:
    """(N,): the route of each question's task that gains most, its price raised until the budget is kept."""
    both = joined(fit, tune)
    gains, tasks = both.mixed_gains(0.5), np.array(both.tasks)
    for price in (0.0, *(0.05 * 2**step for step in range(10))):
        best = {task: int((gains[tasks == task].mean(0) + price * both.saved()).argmax()) for task in np.unique(tasks)}
        if np.mean([both.passes()[best[task]] for task in tasks]) <= budget * both.passes()[0] + 1e-9:
            break
    return np.array([best[task] for task in there.tasks])


def read_of(fit: Matrix, tune: Matrix, there: Matrix, states: dict[int, np.ndarray], places: list[np.ndarray]) -> Readings:
    """What is read of the fit, tune and held-out questions: their text where there are no states."""
    if not states:
        grams = common_grams(fit.prompts)
        away = [strangeness(len(mine), len(mine & grams.keys())) for mine in map(grams_in, there.prompts)]
        return read_text(fit.prompts, tune.prompts) | {"there": {TEXT: Read(presence(there.prompts, grams), np.array(away))}}
    found: Readings = {"fit": {}, "tune": {}, "there": {}}
    for block, values in states.items():
        mean, scale = moments(values[places[0]])
        for name, mine in zip(found, places, strict=True):
            found[name][block] = Read(values[mine], lengths((values[mine] - mean) / scale))
    return found


def report(matrix: Matrix, taken: dict[str, np.ndarray]) -> None:
    """A row a way to choose."""
    each, rng, first = np.arange(len(matrix)), np.random.default_rng(0), next(iter(taken.values()))

    def points(ours: np.ndarray, theirs: np.ndarray) -> str:
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in paired_bootstrap(ours, theirs, strata=matrix.tasks)))

    print(f"| chosen by | less the base | less {next(iter(taken))} | less its routes dealt to others | passes |\n|---|---|---|---|---|")
    for name, route in taken.items():
        right, others = matrix.correct[each, route], np.mean([matrix.correct[each, rng.permutation(route)] for _ in range(100)], axis=0)
        cells = points(right, matrix.correct[:, 0]), points(right, matrix.correct[each, first]), points(right.astype(float), others)
        print(f"| {name} | {' | '.join(cells)} | {matrix.passes()[route].mean():.2f} |")


def main() -> None:
    show_progress()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--read", default="text,states")
    parser.add_argument("--splits", default="fit,tune", help="whose questions; tune is read to choose by")
    parser.add_argument("--targets", default="task", choices=("task", "question"))
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--parts", type=int, default=5)
    given = parser.parse_args()
    routed = RoutedModel.wrap(given.model)
    data = TrainingData(routed, given.run, given.tasks.split(","))
    parts = {split: data.matrix(split) for split in given.splits.split(",")}
    matrix, config = joined(*parts.values()), CodebookConfig(targets=given.targets, budget=given.budget)
    states: dict[str, dict[int, np.ndarray]] = {name: {} for name in given.read.split(",")}
    if "states" in states:
        blocks = reading_blocks(routed.n_layers)
        pooled = [pooled_states(routed, given.run / "train", part, blocks, split) for split, part in parts.items()]
        states["states"] = {block: np.concatenate([one[block] for one in pooled]) for block in blocks}
    rng, tasks = np.random.default_rng(0), np.array(matrix.tasks)
    taken = {name: np.zeros(len(matrix), dtype=int) for name in (*states, "told the task")}
    part = dealt(tasks, given.parts, rng)
    for fold in range(given.parts):
        half = dealt(tasks, 2, rng)
        places: list[Any] = [np.flatnonzero((part != fold) & (half == side)) for side in (0, 1)] + [np.flatnonzero(part == fold)]
        fit, tune, there = (of_questions(matrix, mine) for mine in places)
        taken["told the task"][places[2]] = told(fit, tune, there, given.budget)
        for name, of in states.items():
            readings = read_of(fit, tune, there, of, places)
            best = choose(list(fit_candidates(fit, tune, readings, config, choose_routes)), routed.n_layers, given.budget)
            if best.tune_gain > 0 or given.budget < 1:
                columns = np.array([matrix.routes.index(route) for route in best.routes])
                taken[name][places[2]] = columns[choices(best, readings["there"][best.block])]
    report(matrix, taken)


if __name__ == "__main__":
    main()
