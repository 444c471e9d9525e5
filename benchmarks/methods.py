"""Every method under one comparison: train and answer (resumes), then print the tables from what was stored (seconds).

    python benchmarks/methods.py run --run runs/policies --out results/policies-smollm2-135m-q4
    python benchmarks/methods.py table --out results/policies-smollm2-135m-q4 > docs/results.md

`run` needs the dense matrix of `drllm search --paths` in --run. Settings: one task alone, `in-domain` (ARC and OpenBookQA together),
`mixed` (five kinds of traffic, unlabelled). For each, policies go to OUT/<setting>/<method>.<seed>, and their verdicts on tune to
OUT/<setting>/tune/<method>.<seed>.parquet. A verdict depends on the question and the route alone, so that of a route of the matrix is
looked up; others are computed. `table` reads verdicts alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from drllm.evaluation.stats import discordant, mcnemar, paired_bootstrap, wilson

ARC, OBQA = ("arc_easy", "arc_challenge"), ("openbookqa",)
MIXED = (*ARC, *OBQA, "commonsenseqa", "piqa", "boolq")
# setting -> (tasks learned from, tasks asked)
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "arc_easy": (ARC[:1], ARC[:1]),
    "arc": (ARC, ARC),
    "openbookqa": (OBQA, OBQA),
    "commonsenseqa": (("commonsenseqa",), ("commonsenseqa",)),
    "piqa": (("piqa",), ("piqa",)),
    "boolq": (("boolq",), ("boolq",)),
    "in-domain": ((*ARC, *OBQA), (*ARC, *OBQA)),
    "mixed": (MIXED, MIXED),
}
BUDGET = 0.9
# name in the table -> (method, options, whether seeds differ)
ROWS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "static": ("static", {"candidates": 16}, False),
    "codebook": ("codebook", {}, True),
    "polar": ("polar", {}, True),
    "random_codebook": ("random_codebook", {}, True),
    "input_blind": ("input_blind", {}, True),
    "static@0.9": ("static", {"candidates": 16, "budget": BUDGET}, False),
    "codebook@0.9": ("codebook", {"budget": BUDGET}, True),
    "shortgpt@0.9": ("shortgpt", {"budget": BUDGET}, False),
    "early_exit@0.9": ("early_exit", {"budget": BUDGET}, False),
    "random_skip@0.9": ("random_skip", {"budget": BUDGET}, True),
}
SHUFFLED = ("codebook", "polar")


class Tune:
    """Verdicts of any route on the tune questions of a matrix: looked up, or computed once and kept."""

    def __init__(self, material: Any, folder: Path):
        self.matrix, self.material, self.folder = material.matrix("tune"), material, folder
        self.rows = {id: place for place, id in enumerate(zip(self.matrix.tasks, self.matrix.ids, strict=True))}

    def correct(self, routes: Sequence[Any]) -> np.ndarray:
        """(N,) of one route a question."""
        places = {route: place for place, route in enumerate(self.matrix.routes)}
        found = np.zeros(len(self.matrix), dtype=bool)
        for place, route in enumerate(routes):
            if route in places:
                found[place] = self.matrix.correct[place, places[route]]
        for route in {route for route in routes if route not in places}:
            extra = self._computed(route)
            for place, other in enumerate(routes):
                if other == route:
                    found[place] = extra[place]
        return found

    def _computed(self, route: Any) -> np.ndarray:
        path = self.folder / f"{self.matrix.key}-{route}.npy"
        if not path.is_file():
            values = np.zeros(len(self.matrix), dtype=bool)
            for scorer, questions in self.material.tune():
                asked = [question for question in questions if (question.task.name, question.example.id) in self.rows]
                for start in range(0, len(asked), 64):
                    chunk = asked[start : start + 64]
                    scorer.load(chunk)
                    verdicts = scorer.score([(index, route) for index in range(len(chunk))])
                    for question, verdict in zip(chunk, verdicts, strict=True):
                        values[self.rows[question.task.name, question.example.id]] = verdict.correct
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values)
        return np.load(path)


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing, and answer the tune questions."""
    import torch

    from drllm import Route, RoutedModel, train
    from drllm.evaluation.run import control_routes
    from drllm.files import write_json
    from drllm.methods.base import get_method
    from drllm.methods.codebook import read_features, reading_blocks
    from drllm.methods.material import Material
    from drllm.model.artifact import load_policy
    from drllm.model.codebook import Codebook

    torch.set_num_threads(arguments.threads)
    routed = RoutedModel.wrap(arguments.model)
    for setting in arguments.settings.split(","):
        learned, _ = SETTINGS[setting]
        out = arguments.out / setting
        material = Material(routed, arguments.run, learned)
        tune = Tune(material, arguments.run / "computed")
        tasks = np.array(tune.matrix.tasks)
        store(out, "base.0", tune, [tune.matrix.routes[0]] * len(tune.matrix))
        for row, (method, options, differs) in ROWS.items():
            if arguments.methods and row not in arguments.methods.split(","):
                continue
            for seed in range(arguments.seeds if differs else 1):
                name = f"{row.replace('@', '_at_')}.{seed}"
                if not (out / name / "drllm_config.json").is_file():
                    config_class = get_method(method).config
                    seeded = {"draw": 0, "seed": seed} if method == "random_codebook" else {"seed": seed} if differs else {}
                    started = time.perf_counter()
                    routed.policy = train(routed, arguments.run, method, config_class(**options, **seeded), tasks=learned)
                    seconds = time.perf_counter() - started
                    routed.save_pretrained(out / name)
                    routed.policy = None
                    about = {"seconds": seconds, "tasks": list(learned), "options": options | seeded, "questions": len(material.matrix())}
                    write_json(out / name / "training.json", about)
                policy = load_policy(out / name, routed)
                if isinstance(policy, Codebook):
                    blocks = reading_blocks(routed.n_layers)
                    features = read_features(routed, arguments.run / "train", tune.matrix, blocks, "tune")[policy.block]
                    routes = [policy.routes[place] for place in policy.choose(torch.from_numpy(features))]
                else:
                    assert policy.route is not None, f"{name} decides by more than one block's states"
                    routes = [policy.route] * len(tune.matrix)
                store(out, name, tune, routes)
                if row in SHUFFLED:
                    dealt: list[Route] = [Route.full(routed.n_layers)] * len(routes)
                    for task in learned:
                        places = np.flatnonzero(tasks == task)
                        for place, route in zip(
                            places, control_routes("shuffled", [routes[p] for p in places], f"{seed}:{task}"), strict=True
                        ):
                            dealt[place] = route
                    store(out, f"shuffled-{name}", tune, dealt)
                    mixed = control_routes("shuffled", routes, f"{seed}:all")
                    store(out, f"shuffled-over-tasks-{name}", tune, mixed)
                print(f"{setting} {name}: {tune.correct(routes).mean() - tune.matrix.correct[:, 0].mean():+.4f}", flush=True)


def store(out: Path, name: str, tune: Tune, routes: Sequence[Any]) -> None:
    """One method's verdicts, a row a tune question."""
    import pyarrow as pa

    columns = {
        "task": list(tune.matrix.tasks), "id": list(tune.matrix.ids), "correct": tune.correct(routes).tolist(),
        "n_passes": [route.n_passes for route in routes], "route": [str(route) for route in routes],
    }  # fmt: skip
    path = out / "tune" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def read(path: Path, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """One method's verdicts and passes on some tasks, and the task of each question."""
    found = pq.read_table(path).to_pydict()
    names = np.array(found["task"])
    order = np.concatenate([np.flatnonzero(names == task) for task in tasks])
    return {
        "correct": np.array(found["correct"], dtype=float)[order],
        "passes": np.array(found["n_passes"], dtype=float)[order],
        "task": names[order],
    }


def compared(ours: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> str:
    """Paired difference in points, stratified by task."""
    difference, low, high = paired_bootstrap(ours["correct"], other["correct"], strata=ours["task"])
    return f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def per_task_static(out: Path, tasks: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The static route of each task's own setting, told which task it is."""
    parts = []
    for task in tasks:
        path = out / ("arc" if task in ARC else task) / "tune" / "static.0.parquet"
        if not path.is_file():
            return None
        parts.append(read(path, [task]))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def table(out: Path, setting: str) -> Iterator[str]:
    """One setting as Markdown."""
    tasks = SETTINGS[setting][1]
    folder = out / setting / "tune"
    base = read(folder / "base.0.parquet", tasks)
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for path in sorted(folder.glob("*.parquet")):
        name = path.name.split(".")[0].replace("_at_", "@")
        found.setdefault(name, []).append(read(path, tasks))
    if setting == "mixed" and (told := per_task_static(out, tasks)) is not None:
        found["static-per-task (told the task)"] = [told]
    order = ["base", "static", "codebook", "shuffled-codebook", "shuffled-over-tasks-codebook", "polar", "shuffled-polar"]
    names = [*[name for name in order if name in found], *sorted(name for name in found if name not in order)]
    static = found.get("static", [base])[0]
    yield f"### {setting}: {len(base['correct'])} tune questions of {', '.join(tasks)}"
    yield ""
    yield "| method | accuracy, % | vs base, points | McNemar p | vs static, points | better / worse | passes | vs base, other seeds |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in names:
        first, *others = found[name]
        low, high = wilson(int(first["correct"].sum()), len(first["correct"]))
        better, worse = discordant(first["correct"], base["correct"])
        spread = ", ".join(f"{100 * (one['correct'].mean() - base['correct'].mean()):+.1f}" for one in others)
        yield (
            f"| {name} | {100 * first['correct'].mean():.1f} ({100 * low:.1f} to {100 * high:.1f}) | "
            + (" | | | |" if name == "base" else f"{compared(first, base)} | {mcnemar(first['correct'], base['correct']):.3f} | "
               f"{'' if name == 'static' else compared(first, static)} | {better} / {worse} |")
            + f" {first['passes'].mean():.2f} | {spread} |"
        )  # fmt: skip


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("job", choices=("run", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--methods", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.job == "run":
        run(arguments)
        return
    for setting in arguments.settings.split(","):
        if (arguments.out / setting / "tune").is_dir():
            print("\n".join(table(arguments.out, setting)), end="\n\n")
    seconds = [json.loads(path.read_text())["seconds"] for path in arguments.out.glob("*/*/training.json")]
    if seconds:
        print(f"Training took {min(seconds):.0f} to {max(seconds):.0f} s a policy, the median {np.median(seconds):.0f} s.")


if __name__ == "__main__":
    main()
