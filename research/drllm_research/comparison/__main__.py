"""Every method under one comparison: train and answer (resumes), time, then write the tables from what was stored (seconds).

    python -m drllm_research.comparison run --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA
    python -m drllm_research.comparison run --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA --settings ood
    python -m drllm_research.comparison time --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA --settings in-domain
    python -m drllm_research.comparison run ... --settings in-domain --split test      # once, after the winner is named in docs/decisions
    make table-methods                                 # docs/results.md and results/policies-*/tables.md, from what was stored

`run` needs the dense matrix of `drllm search --paths` in --run, and for `paper` a tree search with preset paper in --searched. Policies
go to RUN/policies/<setting>/<method>.<seed>, what they answer to OUT (`stored.py`). A verdict that stands in the store of the run is looked
up, others are computed once and kept there.
Settings and rows stand in `rows.py`. `table` reads OUT alone (`table.py`, `pages.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drllm import show_progress
from drllm_research.comparison.asked import SettingQuestions
from drllm_research.comparison.clocked import median_ratio
from drllm_research.comparison.oracle import first_right, oracle_routes
from drllm_research.comparison.rows import ROWS, SETTINGS, SHUFFLED, STATES, TOLD, file_of, wanted_rows
from drllm_research.comparison.stored import Named, Results
from drllm_research.comparison.told import routes_by_task
from drllm_research.rivals.evaluator import EVALUATORS, fit_evaluator, load_evaluator

DEALT = ("shuffled-over-tasks-", "shuffled-")  # blind baselines made of a row's own routes


def folder_of(run: Path, setting: str, name: str, seed: int) -> Path:
    return run / "policies" / (SETTINGS[setting].policies or setting) / file_of(name, seed)


def fit(routed: Any, arguments: argparse.Namespace, setting: str) -> None:
    from drllm import train
    from drllm.methods.base import get_method
    from drllm.methods.training_data import TrainingData

    for name, row, seed in wanted_rows(setting, arguments.methods, arguments.seeds):
        folder = folder_of(arguments.run, setting, name, seed)
        about = ("training", setting, f"{name}.{seed}")
        of = SETTINGS[setting]
        learned, run = (of.searched or of.learned, arguments.searched) if row.searched else (of.learned, arguments.run)
        if run is None:
            raise SystemExit(f"{name} learns from a tree search: give its run folder, with --searched, or leave it out of --methods")
        training_data = TrainingData(routed, run, learned)
        made_of = {"key": training_data.key, "options": row.options}
        before = arguments.results.told(*about) or {}
        is_there = row.method in ("told", "oracle") or (folder / "drllm_config.json").is_file()
        if is_there and {part: before.get(part) for part in made_of} == made_of:
            continue
        seeded = {"draw": seed} if row.method == "random_codebook" else {"seed": seed} if row.seeds else {}
        reads = {"read": "states"} if row.method in STATES else {}
        started = time.perf_counter()
        if row.method == "told":
            made_of |= {"routes": {task: str(route) for task, route in routes_by_task(training_data, **row.options).items()}}
        elif row.method == "oracle":
            made_of |= {"routes": [str(route) for route in oracle_routes(training_data)]}
        elif row.method in EVALUATORS:
            config = EVALUATORS[row.method].config(**row.options)
            fit_evaluator(routed, run, row.method, config, None, learned, folder)
        elif row.method == "longer":
            routed.policy = training_data.constant(best_longer(training_data, **row.options))
        else:
            routed.policy = train(routed, run, row.method, get_method(row.method).config(**reads | row.options | seeded), tasks=learned)
        seconds = time.perf_counter() - started
        if routed.policy is not None:
            routed.save_pretrained(folder)
            routed.policy = None
        used = {split: used_questions(training_data, split, getattr(row, split)) for split in ("fit", "tune")}
        arguments.results.tell(made_of | {"seconds": seconds, "tasks": list(learned), "seed": seed} | used, *about)
        print(f"{setting}: {name} with seed {seed} trained in {seconds:.0f} s", flush=True)


def best_longer(training_data: Any, at_least: float) -> Any:
    """Of the matrix's routes that spend at least a share of the base's passes, the one that `static_tuned` would take."""
    from drllm.methods.static import StaticConfig, best_of_matrix

    weight = StaticConfig().margin_weight
    best = best_of_matrix(training_data, lambda passes: passes >= at_least * passes[0], weight)  # the base's stand first
    if best is None:
        raise SystemExit(f"no route of the matrix spends {at_least} of the base's passes: add longer routes, or leave that row out")
    return best


def used_questions(training_data: Any, split: str, limit: int | None) -> int:
    """Of the records' tasks, at most `limit` of each."""
    if training_data.search_manifests:
        counts = [len(task.records) for task in training_data.tasks] if split == "fit" else [0]
    else:
        tasks = training_data.matrix(split).tasks
        counts = [tasks.count(task) for task in set(tasks)]
    return sum(count if limit is None else min(limit, count) for count in counts)


def answer(bench: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Answers of every trained policy and its baselines on one split; on test, of each policy once."""
    from drllm import Route
    from drllm.evaluation.baselines import baseline_routes

    asked, split, results = questions_of(bench, arguments, setting, arguments.limit), arguments.split, arguments.results
    there = results.policies(setting, split)
    full = Route.full(bench.routed.n_layers)
    routes: dict[Named, Sequence[Any]] = {("base", 0): [full] * len(asked.ids)}
    digests = {("base", 0): ""}
    deciding: dict[Named, Any] = {}
    for name, row, seed in wanted_rows(setting, arguments.methods, arguments.seeds):
        policy, digest = trained(bench.routed, arguments, setting, name, seed)
        owned = [(f"{dealt}{name}", seed) for dealt in ("", *(DEALT if is_dealt(name, split) else ()))]
        if split == "test" and all([read_before(there.get(one), digest, one) for one in owned]):
            continue
        digests |= dict.fromkeys(owned, digest)
        if row.method == "told":
            routes[name, seed] = [policy[task] for task in asked.tasks]
        elif row.method == "oracle":
            routes[name, seed] = first_right(policy, asked.answers({route: [route] * len(asked.ids) for route in policy}))
        elif row.method not in EVALUATORS:
            deciding[name, seed] = policy
        elif there.get((name, seed)) != digest:
            evaluate(asked, policy, results, setting, (name, seed), digest)
    for (name, seed), mine in zip(deciding, asked.routes(list(deciding.values())), strict=True):
        routes[name, seed] = mine
        if is_dealt(name, split):
            routes[f"shuffled-over-tasks-{name}", seed] = baseline_routes("shuffled", mine, f"{seed}:all")
            routes[f"shuffled-{name}", seed] = dealt_within(mine, asked.tasks, seed)
    answered = {named: columns(asked, routes[named], right) for named, right in asked.answers(routes).items()}
    results.add(setting, split, answered, digests)
    scans = [folder.resolve().name for folder in arguments.scan]  # whose questions are left out
    told = {"most_common": asked.most_common, "without_test_part": asked.without_test_part, "scans": scans}
    results.tell(told, "asked", setting, split)


def is_dealt(name: str, split: str) -> bool:
    """Whether a row's routes are also dealt to other prompts; where a promise is tested nothing is compared."""
    return name in SHUFFLED and split != "calibrate"


def columns(asked: SettingQuestions, routes: Sequence[Any], right: Sequence[bool]) -> dict[str, Any]:
    """What `Results.add` takes of one method: routes, or depths, and verdicts of all questions."""
    told = {"route": [str(route) for route in routes], "n_passes": [float(route.n_passes) for route in routes]}
    return {"task": asked.tasks, "id": asked.ids, "correct": list(right)} | told


def trained(routed: Any, arguments: argparse.Namespace, setting: str, name: str, seed: int) -> tuple[Any, str]:
    """What `fit` made and its digest: a policy, or of a row that is told the task, the route of each task."""
    from drllm import Route
    from drllm.core.digest import json_digest
    from drllm.policies.saved_config import policy_digest

    folder, policies = folder_of(arguments.run, setting, name, seed), SETTINGS[setting].policies or setting
    about = arguments.results.told("training", policies, f"{name}.{seed}")
    if about is not None and "routes" in about:  # told the task, or every answer
        digest, given = json_digest(about["routes"]), about["routes"]
        if isinstance(given, list):
            return [Route.parse(text, routed.n_layers) for text in given], digest
        return {task: Route.parse(text, routed.n_layers) for task, text in given.items()}, digest
    if not (folder / "drllm_config.json").is_file():
        raise SystemExit(f"{folder} holds no policy: run this setting on tune first, or name others in --methods")
    load = load_evaluator(folder, routed) if ROWS[name].method in EVALUATORS else routed.load_policy(folder)
    return load, policy_digest(folder)


def questions_of(bench: Any, arguments: argparse.Namespace, setting: str, limit: int = 0) -> SettingQuestions:
    from drllm.runs.merge import rows_of

    scanned = {(row["task"], row["id"]) for folder in arguments.scan for row in rows_of(folder).select(["task", "id"]).to_pylist()}
    return SettingQuestions(bench, SETTINGS[setting], arguments.split, arguments.data, limit, scanned)


def read_before(stored: str | None, policy_digest: str, named: Named) -> bool:
    """Whether this policy's test answers are stored; another's are refused, so that no policy is chosen by test."""
    if stored not in (None, policy_digest):
        raise SystemExit(
            f"{'.'.join(map(str, named))} has test answers of another policy: test is read once, with the policy chosen before"
        )
    return stored is not None


def dealt_within(routes: Sequence[Any], tasks: Sequence[str], seed: int) -> list[Any]:
    """A method's own routes, dealt to other prompts of the same task."""
    from drllm.evaluation.baselines import baseline_routes

    dealt, names = list(routes), np.array(tasks)
    for task in dict.fromkeys(tasks):
        places = np.flatnonzero(names == task).tolist()
        for place, route in zip(places, baseline_routes("shuffled", [routes[p] for p in places], f"{seed}:{task}"), strict=True):
            dealt[place] = route
    return dealt


def evaluate(asked: SettingQuestions, evaluator: Any, results: Results, setting: str, named: Named, digest: str) -> None:
    found = [evaluator.evaluate(ask.scorer, ask.questions) for ask in asked.asks]
    depths, right = [depth for _, spent in found for depth in spent], [verdict.correct for verdicts, _ in found for verdict in verdicts]
    results.add(setting, asked.split, {named: columns(asked, depths, right)}, {named: digest})


def clock(bench: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Seconds of one prompt's forward under each policy, router included, as a ratio to the base's in the same round.

    A round asks the base and every policy once, in an order drawn anew; a prompt's ratio is the median of `--rounds` rounds.
    """
    import torch

    from drllm.core.progress import Progress
    from drllm_research.rivals.gated_blocks import Gates, Step

    routed, asked = bench.routed, questions_of(bench, arguments, setting)
    rng = np.random.default_rng(0)
    prompts = [asked.prompts[place] for place in rng.choice(len(asked.prompts), arguments.prompts, replace=False)]
    policies = {}
    for name, _, seed in wanted_rows(setting, arguments.methods, 1):
        folder = folder_of(arguments.run, setting, name, seed)
        if (folder / "drllm_config.json").is_file():
            policies[f"{name}.{seed}"] = trained(routed, arguments, setting, name, seed)[0]

    @torch.no_grad()
    def seconds(policy: Any, prompt: Sequence[int]) -> float:
        ids = torch.tensor([prompt])
        started = time.perf_counter()
        if isinstance(policy, Gates):
            with policy.installed(routed, Step.of(torch.ones_like(ids), torch.ones_like(ids))):
                routed.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        elif policy is None:
            routed.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        else:
            routed(ids, routes=policy, logits_to_keep=1)
        return time.perf_counter() - started

    asking = {"": None, "base_again": None} | policies  # "base_again" says how far two equal things differ here
    spent = np.zeros((len(prompts), arguments.rounds, len(asking)))
    with Progress(f"time {setting}", spent[:, :, 0].size) as progress:
        for at, prompt in enumerate(prompts):
            for one in range(-1, arguments.rounds):  # the first warms up
                for place in rng.permutation(len(asking)):
                    spent[at, one, place] = seconds(list(asking.values())[place], prompt)
                progress.advance(int(one >= 0))
    ratios = np.median(spent / spent[:, :, :1], axis=1)
    for place, file in enumerate(asking):
        if not file:
            continue
        about = median_ratio(ratios[:, place], rng)
        print(f"{setting} {file}: {about['ratio']:.3f} ({about['low']:.3f} to {about['high']:.3f}) of the base's seconds", flush=True)
        arguments.results.tell(about, "clock", setting, file)


def main() -> None:
    show_progress()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("job", choices=("run", "time", "table"))
    parser.add_argument("--out", type=Path, required=True, action="append", help="table: several, one a model")
    parser.add_argument(
        "--scan", type=Path, action="append", default=[], help="run: folder of a scan that found the routes; table: to show"
    )
    parser.add_argument("--page", type=Path, action="append", default=[], help="table: `report.md` of a reproduction, linked")
    parser.add_argument("--to", type=Path, default=Path(), help="table: the folder with docs/ and results/")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--searched", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--methods", default="")
    parser.add_argument("--split", default="tune", choices=("tune", "calibrate", "test"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="questions a task at most, but for tune questions of the matrix; 0: all")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5, help="time: of each prompt")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.job == "table":
        from drllm_research.comparison.pages import Stored, write_pages

        write_pages(arguments.to, Stored([Results(out) for out in arguments.out], arguments.scan, arguments.page), SETTINGS, TOLD)
        return
    if len(arguments.out) > 1 or arguments.run is None:
        parser.error(f"{arguments.job} takes one --out and a --run")
    (arguments.out,) = arguments.out
    for given, names in (("--settings", SETTINGS), ("--methods", ROWS)):
        if unknown := [name for name in getattr(arguments, given[2:]).split(",") if name and name not in names]:
            parser.error(f"{given} holds {unknown[0]!r}, expected of {', '.join(names)}")
    from drllm import RoutedModel
    from drllm.core.config import Resources
    from drllm.runs.provenance import alone_in
    from drllm.scoring.asking import asking

    routed, arguments.results = RoutedModel.wrap(arguments.model), Results(arguments.out)
    name_model(arguments.results, arguments.model, routed)
    resources = Resources(executor="local", threads=arguments.threads)
    with alone_in(arguments.run, "comparison"), asking(routed, arguments.run, resources) as bench:
        for setting in arguments.settings.split(","):
            if arguments.job == "time":
                clock(bench, arguments, setting)
                continue
            if not SETTINGS[setting].policies and arguments.split == "tune":
                fit(routed, arguments, setting)
            answer(bench, arguments, setting)


def name_model(results: Results, model: str, routed: Any) -> None:
    """Say beside the answers which model they are of; a folder of another model's is refused."""
    about = {"model": model, "blocks": routed.n_layers, "fingerprint": routed.fingerprint}
    if results.told("fingerprint") not in (None, routed.fingerprint):
        raise SystemExit(f"{results.folder} holds answers of {results.told('model')}, not of {model}: give its --model, or another --out")
    for key, value in about.items():
        results.tell(value, key)


if __name__ == "__main__":
    main()
