"""How often a verdict flips with the batch's shape and the dtype: the base route, and the routes a search kept.

    python benchmarks/flips.py --run runs/demo

For each fit question of a finished run: bf16 in groups of 32 (as the search scores), bf16 alone, and float32 alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from drllm import Route, RoutedModel
from drllm.methods.base import load_training_data
from drllm.scoring.verdict import Verdict

GROUP = 32


def verdicts(training_data, routes: dict[str, dict[str, Route]], group: int) -> list[Verdict]:
    """The verdict of each question under its route, `group` questions a time."""
    found = []
    for task in training_data.tasks:
        questions = [question for question in task.questions if question.example.id in routes[task.name]]
        for start in range(0, len(questions), group):
            part = questions[start : start + group]
            task.scorer.load(part)
            base = Route.full(task.scorer.routed.n_layers)
            first = task.scorer.score([(index, base) for index in range(len(part))])
            wanted = [(index, routes[task.name][question.example.id]) for index, question in enumerate(part)]
            # The base route comes from the first call itself: scored again it would be the same numbers.
            second = task.scorer.score(wanted) if any(route != base for _, route in wanted) else first
            found += second
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    run = parser.parse_args().run
    rows: dict[str, dict[str, list[Verdict]]] = {"base route": {}, "kept routes": {}}
    for name, dtype, group in (
        ("bf16, 32", torch.bfloat16, GROUP),
        ("bf16, alone", torch.bfloat16, 1),
        ("fp32, alone", torch.float32, 1),
    ):
        routed = RoutedModel.wrap("smollm2-135m-q4", dtype=dtype)
        training_data = load_training_data(routed, run)
        base = Route.full(routed.n_layers)
        every = {task.name: {record.id: base for record in task.records} for task in training_data.tasks}
        kept = {
            task.name: {record.id: record.chosen for record in task.records if record.chosen is not None} for task in training_data.tasks
        }
        rows["base route"][name] = verdicts(training_data, every, group)
        rows["kept routes"][name] = verdicts(training_data, kept, group)
        print(f"{name}: done", flush=True)
    for label, by_way in rows.items():
        for name, found in by_way.items():
            n, right = len(found), sum(verdict.correct for verdict in found)
            line = f"{label:12} {name:12} right {right}/{n}"
            for other, reference in by_way.items():
                if other != name:
                    flips = sum(a.correct != b.correct for a, b in zip(found, reference, strict=True))
                    line += f" | flips against {other}: {flips} ({100 * flips / n:.1f} %)"
            print(line)


if __name__ == "__main__":
    main()
