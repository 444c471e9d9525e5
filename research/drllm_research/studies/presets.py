"""The search presets at equal cost: what their labels are worth on the same questions.

    python -m drllm_research.studies.presets [--data ../shared/data] [--limit 128] [--workers 2] [--out runs/presets]

Both presets evaluate the same number of routes a question, early stop off; the sweep behind the prior of `default` is paid out of its own
budget (`--limit` questions share it). Then the same training recipe is fitted on each preset's labels and judged on tune questions. Run
again, it resumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from drllm import EvaluateConfig, Resources, Route, RoutedModel, SearchConfig, evaluate, search, show_progress, train
from drllm.runs.records import RouteRecord, read_records
from drllm.searching.prior import sweep_routes
from drllm.stats.paired import paired_bootstrap, wilson

MODEL = "smollm2-135m-q4"
PRESETS = ("paper", "default")
TEMPLATE_CHECKS = ("template:acc", "template:acc_norm")


def budget(preset: str, arguments: argparse.Namespace, n_layers: int) -> int:
    """Simulations a question, so that sweep and search together cost what `--simulations` cost without a sweep."""
    if preset == "paper":
        return arguments.simulations
    n_swept = min(arguments.sweep, arguments.limit)
    return arguments.simulations - round(n_swept * (1 + len(sweep_routes(n_layers, 2))) / arguments.limit)


def held(record: RouteRecord, names: tuple[str, ...]) -> bool:
    """Whether the kept route is right in each of these checks."""
    if record.chosen is None:
        return False
    verdicts = record.verified(record.chosen)
    return all(verdicts[name] for name in names)


def shown(values: list[bool]) -> str:
    """Share in per cent with its interval."""
    low, high = wilson(sum(values), len(values))
    return f"{100 * sum(values) / len(values):.1f} ({100 * low:.1f} to {100 * high:.1f}), {sum(values)} of {len(values)}"


def forwards(routes: Iterable[Route], n_layers: int) -> float:
    """Block applications of one question's routes, every shared prefix once, in forwards of the base."""
    paths = [route.path for route in routes]
    return len({path[: n + 1] for path in paths for n in range(len(path))}) / n_layers


def labels(task: str, preset: str, records: list[RouteRecord], n_simulations: int, n_swept: int) -> dict[str, Any]:
    """What the labels of one preset are worth, without training."""
    n_layers = len(records[0].routes[0])
    swept = n_swept * forwards([Route.full(n_layers), *sweep_routes(n_layers, 2)], n_layers) / len(records)
    wrong = [record for record in records if not record.base_correct]
    right = [record for record in records if record.base_correct]
    kept = [record for record in records if record.chosen is not None]

    def passes(rows):
        return sum(row.chosen.n_passes for row in rows if row.chosen) / max(len(rows), 1)

    return {
        "task": task,
        "preset": preset,
        "simulations": n_simulations,
        "forwards a question (distinct block applications / blocks; the sweep's share in them)": round(
            sum(forwards(record.routes, n_layers) for record in records) / len(records) + swept, 2
        ),
        "solved of the base's wrong, %": shown([record.improved for record in wrong]),
        "solved and right under another template, %": shown([held(record, TEMPLATE_CHECKS[1:]) for record in wrong]),
        "kept routes right in fp32, %": shown([held(record, ("fp32:acc_norm",)) for record in kept]),
        "kept routes right under another template, %": shown([held(record, TEMPLATE_CHECKS[1:]) for record in kept]),
        "mean passes, base right": round(passes(right), 2),
        "mean passes, solved": round(passes([record for record in wrong if record.chosen]), 2),
    }


def compare(first: list[RouteRecord], second: list[RouteRecord]) -> dict[str, str]:
    """Default minus paper on the same questions, in points with intervals."""
    by_id = {record.id: record for record in second}
    pairs = [(record, by_id[record.id]) for record in first if not record.base_correct]
    found = {}
    for name, of in (
        ("solved", lambda row: row.improved),
        ("solved and right under another template", lambda row: held(row, TEMPLATE_CHECKS[1:])),
    ):
        mean, low, high = paired_bootstrap([of(b) for _, b in pairs], [of(a) for a, _ in pairs], strata=[a.task for a, _ in pairs])
        found[name] = f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return found


def main() -> None:
    """Print the tables, and write them to `<out>/presets.json`."""
    show_progress()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--tasks", default="arc_easy,openbookqa")
    parser.add_argument("--limit", type=int, default=128, help="fit questions a task")
    parser.add_argument("--tune", type=int, default=300, help="tune questions a task")
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--sweep", type=int, default=16, help="questions of the sweep behind the prior")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--workers", type=int, default=1, help="more than one: search on Ray")
    parser.add_argument("--out", type=Path, default=Path("runs/presets"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    resources = Resources(executor="ray" if arguments.workers > 1 else "local", workers=arguments.workers, threads=arguments.threads)
    routed = RoutedModel.wrap(MODEL, dtype=torch.bfloat16)
    tables: dict[str, Any] = {"labels": [], "default minus paper, points": {}, "tune": []}
    for task in arguments.tasks.split(","):
        found = {}
        for preset in PRESETS:
            n_simulations = budget(preset, arguments, routed.n_layers)
            config = SearchConfig(
                preset=preset,
                n_simulations=n_simulations,
                early_stop=False,
                control=preset == "paper",
                limit=arguments.limit,
                sweep_questions=arguments.sweep,
            )
            out = arguments.out / f"{task}-{preset}"
            search(routed, [task], config, out, arguments.data, resources=resources)
            found[preset] = read_records(out / "search")
            tables["labels"].append(labels(task, preset, found[preset], n_simulations, 0 if preset == "paper" else arguments.sweep))
        controlled = [bool(record.control_solved) for record in found["paper"] if not record.base_correct]
        tables["labels"].append({"task": task, "preset": "blind baseline", "solved of the base's wrong, %": shown(controlled)})
        tables["default minus paper, points"][task] = compare(found["paper"], found["default"])
        for preset in PRESETS:
            out = arguments.out / f"{task}-{preset}"
            for method in ("static", "routers"):
                routed.policy = train(routed, out, method)
                routed.save_pretrained(out / method)
                routed.policy = None
            summary = evaluate(
                routed, ["base", "static", "routers", "shuffled"], [task], out, EvaluateConfig(limit=arguments.tune), arguments.data
            )
            for row in summary.rows:
                if row.task == task:
                    wanted = ("method", "n", "accuracy", "mean_passes", "difference", "difference_low", "difference_high")
                    tables["tune"].append(
                        {"task": task, "preset": preset} | {key: value for key, value in row.to_json().items() if key in wanted}
                    )
    (arguments.out / "presets.json").write_text(json.dumps(tables, indent=1) + "\n")
    print(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
