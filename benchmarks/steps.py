"""What a search costs by the size of its model steps, and how many of their rows only fill them.

    python benchmarks/steps.py [--model smollm2-135m-q4] [--tasks arc_easy] [--reward letter] [--steps 128,256,512] [--out FILE.json]
    python benchmarks/steps.py --model qwen2.5-coder-1.5b-q4 --steps 128,512 --group-size 4 --simulations 20 --data DATA

Each group of fit questions is searched once with every size, in an order that turns with the group: preset `paper`, its blind baseline
beside it, no checks. CPU seconds, one thread. Ratios are to the largest size, group by group; brackets are 95 % intervals of the median.
A step has one shape, so that a verdict does not depend on what else is asked; where too few sequences wait, rows are filled up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drllm import Resources, RoutedModel, SearchConfig, show_progress
from drllm.core.files import write_json
from drllm.core.progress import Progress
from drllm.core.text import type_name
from drllm.runs.provenance import hardware, versions
from drllm.runs.records import read_records
from drllm.scoring.asking import Ask, asking_here
from drllm.scoring.inquiries import Replica, Wanted
from drllm.scoring.scorer import scorer_of
from drllm.searching.edits import random_routes
from drllm.searching.runner import question_seed
from drllm.searching.worker import Searching
from drllm.tasks import LoadedTask, load_task
from timing import check_rounds, median_interval


@dataclass(frozen=True)
class Searched:
    """One group with one size of steps."""

    seconds: float
    applied: int
    padded: int
    verdicts: dict[tuple[str, str], float]  # by (question, route)


def searched(routed: RoutedModel, task: LoadedTask, group: Sequence[Wanted], config: SearchConfig) -> Searched:
    """Search a group from nothing."""
    control = tuple(random_routes(routed.n_layers, config.n_simulations, config, question_seed(config.seed, task.task.name, "control")))
    with tempfile.TemporaryDirectory() as folder:
        bench, scorer = asking_here(routed, Path(folder)), scorer_of(routed, task.task, config)
        about = (task.task, config, scorer.packed, scorer.shares_across_groups, bench.store.shards.folder, bench.conditions(scorer))
        counts = Ask(scorer, task.task, config, "fit", (), ()).counts
        job = Searching(*about, Path(folder) / "search" / "task", counts, (), control)
        replica = Replica(routed, [job], Resources())
        started = time.process_time()
        assert list(job.do(replica, [(0, group)])) == [0]
        seconds, runner, records = time.process_time() - started, replica.scorer(job).runner, read_records(job.folder)
    verdicts = {(record.id, str(route)): reward for record in records for route, reward in zip(record.routes, record.rewards, strict=True)}
    return Searched(seconds, runner.n_applied, runner.n_padded, verdicts)


def of_size(found: Sequence[Searched], largest: Sequence[Searched], n_questions: int) -> dict[str, Any]:
    """What is said of one size of steps."""
    ratios = [one.seconds / other.seconds for one, other in zip(found, largest, strict=True)]
    padded, applied = sum(one.padded for one in found), sum(one.applied for one in found)
    both = [
        (one.verdicts[key], other.verdicts[key])
        for one, other in zip(found, largest, strict=True)
        for key in one.verdicts
        if key in other.verdicts
    ]
    return {
        "seconds_a_question": sum(one.seconds for one in found) / n_questions,
        "rows_that_fill": padded / (applied + padded),
        "ratio": median_interval(ratios),
        "same_verdicts": [sum(one == other for one, other in both), len(both)],
    }


def main() -> None:
    """Search and print the table."""
    show_progress()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--tasks", default="arc_easy", help="one task")
    parser.add_argument("--reward", default="letter")
    parser.add_argument("--data")
    parser.add_argument("--steps", default="128,256,512", help="tokens of a step, with commas between")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--group-size", type=int, default=6)
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    check_rounds(parser, given.groups)
    torch.set_num_threads(1)
    task, wanted = load_task(given.tasks, given.data), given.groups * given.group_size
    examples = task.select("fit", wanted)
    if len(examples) < wanted:
        parser.error(f"{given.tasks} has {len(examples)} fit questions, {wanted} are needed: give fewer --groups or a smaller --group-size")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)  # before an hour of searching
    routed, sizes = RoutedModel.wrap(given.model), sorted(int(size) for size in given.steps.split(","))
    groups = [
        [Wanted("fit", one) for one in examples[start : start + given.group_size]] for start in range(0, len(examples), given.group_size)
    ]
    found: dict[int, list[Searched]] = {size: [] for size in sizes}
    with Progress("searches", len(groups) * len(sizes)) as progress:
        for turn, group in enumerate(groups):
            for size in sizes[turn % len(sizes) :] + sizes[: turn % len(sizes)]:
                config = SearchConfig(reward=given.reward, n_simulations=given.simulations, verify=False, max_step_tokens=size)
                found[size].append(searched(routed, task, group, config))
                progress.advance(1)
    said = {size: of_size(found[size], found[sizes[-1]], len(examples)) for size in sizes}
    print("| tokens of a step | CPU seconds a question | of the largest | rows that fill | same verdicts |\n|---|---|---|---|---|")
    for size, row in said.items():
        middle, low, high = row["ratio"]
        same, both = row["same_verdicts"]
        cells = (
            f"{row['seconds_a_question']:.2f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{row['rows_that_fill']:.0%}",
            f"{same} of {both}",
        )
        print(f"| {size} | {' | '.join(cells)} |")
    if given.out:
        about = {"model": given.model, "dtype": type_name(routed.model.dtype), "task": given.tasks, "reward": given.reward}
        counts = {"questions": len(examples), "group_size": given.group_size, "simulations": given.simulations}
        write_json(
            given.out,
            about | counts | {"sizes": {str(size): row for size, row in said.items()}, "hardware": hardware(), "versions": versions()},
        )


if __name__ == "__main__":
    main()
