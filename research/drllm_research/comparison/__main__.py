"""Every method under one comparison: train and answer (resumes), time, then write the tables from what was stored (seconds).

    python -m drllm_research.comparison run --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA
    python -m drllm_research.comparison run --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA --settings ood
    python -m drllm_research.comparison time --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA --settings in-domain
    python -m drllm_research.comparison run ... --settings in-domain --split test      # once, after the winner is named in docs/decisions
    make table-methods                                 # docs/results.md and results/policies-*/tables.md, from what was stored

`run` needs the dense matrix of `drllm search --paths` in --run, and for `paper` a tree search with preset paper in --searched. Policies
go to RUN/policies/<setting>/<method>.<seed>, verdicts to OUT/<setting>/<split>/<method>.<seed>.parquet. A verdict depends on the question
and the route alone (`docs/decisions/2026-11-25-trie-and-fixed-shapes.md`): that of a route of the matrix is looked up, others are
computed once and kept.
Settings and rows stand in `rows.py`. `table` reads verdicts alone (`table.py`, `pages.py`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from drllm import show_progress
from drllm_research.comparison.asked import Asked
from drllm_research.comparison.rows import ROWS, SETTINGS, SHUFFLED, STATES, TOLD, file_of, wanted_rows
from drllm_research.comparison.told import routes_by_task


def folder_of(run: Path, setting: str, name: str, seed: int) -> Path:
    """Of a trained policy."""
    return run / "policies" / (SETTINGS[setting].policies or setting) / file_of(name, seed)


def fit(routed: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Train what is missing."""
    from drllm import train
    from drllm.core.files import write_json
    from drllm.methods.base import get_method
    from drllm.methods.training_data import TrainingData

    for name, row, seed in wanted_rows(setting, arguments.methods, arguments.seeds):
        folder = folder_of(arguments.run, setting, name, seed)
        about_path = arguments.out / setting / "training" / f"{file_of(name, seed)}.json"
        of = SETTINGS[setting]
        learned, run = (of.searched or of.learned, arguments.searched) if row.searched else (of.learned, arguments.run)
        if run is None:
            raise SystemExit(f"{name} learns from a tree search: give its run folder, with --searched, or leave it out of --methods")
        training_data = TrainingData(routed, run, learned)
        made_of = {"key": training_data.key, "options": row.options}
        if about_path.is_file() and (row.method == "told" or (folder / "drllm_config.json").is_file()):
            before = json.loads(about_path.read_text())
            if {part: before.get(part) for part in made_of} == made_of:
                continue
        seeded = {"draw": seed} if row.method == "random_codebook" else {"seed": seed} if row.seeds else {}
        reads = {"read": "states"} if row.method in STATES else {}
        started = time.perf_counter()
        if row.method == "told":
            made_of |= {"routes": {task: str(route) for task, route in routes_by_task(training_data, **row.options).items()}}
        elif row.method == "longer":
            routed.policy = training_data.constant(best_longer(training_data, **row.options))
        else:
            routed.policy = train(routed, run, row.method, get_method(row.method).config(**reads | row.options | seeded), tasks=learned)
        seconds = time.perf_counter() - started
        if routed.policy is not None:
            routed.save_pretrained(folder)
            routed.policy = None
        used = {split: used_questions(training_data, split, getattr(row, split)) for split in ("fit", "tune")}
        about = made_of | {"seconds": seconds, "tasks": list(learned), "seed": seed} | used
        about_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(about_path, about)
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


def answer(routed: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Verdicts of every trained policy and its baselines on one split; on test, of each policy once."""
    from drllm import Route
    from drllm.core.files import write_json
    from drllm.evaluation.baselines import baseline_routes
    from drllm_research.methods.oracle_policy import Oracle

    asked = questions_of(routed, arguments, setting, arguments.limit)
    place = arguments.out / setting / arguments.split
    full = Route.full(routed.n_layers)
    chosen: dict[str, list[Any]] = {"base.0": [full] * len(asked.ids)}
    digests = {"base.0": ""}
    for name, row, seed in wanted_rows(setting, arguments.methods, arguments.seeds):
        file = file_of(name, seed)
        policy, policy_digest = trained(routed, arguments, setting, name, seed)
        path = place / f"{file}.parquet"
        is_dealt = name in SHUFFLED and arguments.split != "calibrate"  # where a promise is tested nothing is compared
        owned = (file, *(f"{dealt}-{file}" for dealt in ("shuffled-over-tasks", "shuffled") if is_dealt))
        if arguments.split == "test" and all([read_before(place / f"{one}.parquet", policy_digest) for one in owned]):
            continue
        digests |= dict.fromkeys(owned, policy_digest)
        if row.method == "told":
            chosen[file] = [policy[task] for task in asked.tasks]
            continue
        if isinstance(policy, Oracle):
            chosen[file] = asked.told(policy)
            continue
        if policy.evaluate_only:
            if stored_digest(path) != policy_digest:
                evaluate_only(asked, policy, path, policy_digest)
            continue
        chosen[file] = routes = asked.routes(policy)
        if is_dealt:
            over_tasks = baseline_routes("shuffled", routes, f"{seed}:all")
            chosen[f"shuffled-over-tasks-{file}"] = over_tasks
            chosen[f"shuffled-{file}"] = dealt_within(routes, asked.tasks, seed)
    asked.compute(chosen.values())
    for file, routes in chosen.items():
        asked.store(place / f"{file}.parquet", routes, policy=digests[file])
    scans = [folder.resolve().name for folder in arguments.scan]  # whose questions are left out
    write_json(place / "asked.json", {"most_common": asked.most_common, "without_test_part": asked.without_test_part, "scans": scans})


def trained(routed: Any, arguments: argparse.Namespace, setting: str, name: str, seed: int) -> tuple[Any, str]:
    """What `fit` made and its digest: a policy, or of a row that is told the task, the route of each task."""
    from drllm import Route
    from drllm.core.digest import json_digest
    from drllm.policies.saved_config import policy_digest

    folder, policies = folder_of(arguments.run, setting, name, seed), SETTINGS[setting].policies or setting
    about = arguments.out / policies / "training" / f"{file_of(name, seed)}.json"
    if ROWS[name].method == "told" and about.is_file():
        by_task = json.loads(about.read_text())["routes"]
        return {task: Route.parse(text, routed.n_layers) for task, text in by_task.items()}, json_digest(by_task)
    if not (folder / "drllm_config.json").is_file():
        raise SystemExit(f"{folder} holds no policy: run this setting on tune first, or name others in --methods")
    return routed.load_policy(folder), policy_digest(folder)


def questions_of(routed: Any, arguments: argparse.Namespace, setting: str, limit: int = 0) -> Asked:
    """The questions that a setting asks, of the split in the arguments."""
    from drllm.runs.merge import rows_of

    # Of a scan's folder: all that it asked.
    scanned = {(row["task"], row["id"]) for folder in arguments.scan for row in rows_of(folder).select(["task", "id"]).to_pylist()}
    return Asked(routed, SETTINGS[setting], arguments.split, arguments.run, arguments.data, limit, scanned)


def stored_digest(path: Path) -> str | None:
    """Of the policy whose verdicts stand in a file, if it is there."""
    return pq.read_schema(path).metadata[b"policy"].decode() if path.is_file() else None


def read_before(path: Path, policy_digest: str) -> bool:
    """Whether this policy's test verdicts stand there; another's are refused, so that no policy is chosen by test."""
    stored = stored_digest(path)
    if stored not in (None, policy_digest):
        raise SystemExit(f"{path} holds test verdicts of another policy: test is read once, with the policy chosen before")
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


def evaluate_only(asked: Asked, policy: Any, path: Path, policy_digest: str) -> None:
    """The answers of a policy that decides no route."""
    verdicts, depths = [], []
    for name, scorer, questions in asked.parts:
        for start in range(0, len(questions), 64):
            found, spent = policy.answer(scorer, questions[start : start + 64])
            verdicts += [verdict.correct for verdict in found]
            depths += spent
        print(f"{path.name} {name}: {len(questions)} questions", flush=True)
    asked.store(path, depths, verdicts, policy_digest)


def clock(routed: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Seconds of one prompt's forward under each policy, router included, as a ratio to the base's in the same round.

    A round asks the base and every policy once, in an order drawn anew; a prompt's ratio is the median of `--rounds` rounds.
    """
    import torch

    from drllm.core.files import write_json
    from drllm.core.progress import Progress
    from drllm_research.rivals.gated_blocks import Step

    asked = questions_of(routed, arguments, setting)
    rng = np.random.default_rng(0)
    prompts = [asked.prompts[place] for place in rng.choice(len(asked.prompts), arguments.prompts, replace=False)]
    policies = {}
    for name, _, seed in wanted_rows(setting, arguments.methods, 1):
        folder = folder_of(arguments.run, setting, name, seed)
        if (folder / "drllm_config.json").is_file() and name != "oracle":
            policies[file_of(name, seed)] = routed.load_policy(folder)

    @torch.no_grad()
    def seconds(policy: Any, prompt: Sequence[int]) -> float:
        ids = torch.tensor([prompt])
        started = time.perf_counter()
        if policy is not None and policy.evaluate_only:
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
        middle = [float(np.median(rng.choice(ratios[:, place], len(prompts)))) for _ in range(2000)]
        low, high = np.quantile(middle, [0.025, 0.975])
        about = {"ratio": float(np.median(ratios[:, place])), "low": float(low), "high": float(high), "prompts": len(prompts)}
        print(f"{setting} {file}: {about['ratio']:.3f} ({low:.3f} to {high:.3f}) of the base's seconds", flush=True)
        (arguments.out / setting / "clock").mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / setting / "clock" / f"{file}.json", about)


def main() -> None:
    """Run, time or write the tables."""
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

        write_pages(arguments.to, Stored(arguments.out, arguments.scan, arguments.page), SETTINGS, TOLD)
        return
    if len(arguments.out) > 1 or arguments.run is None:
        parser.error(f"{arguments.job} takes one --out and a --run")
    (arguments.out,) = arguments.out
    for given, names in (("--settings", SETTINGS), ("--methods", ROWS)):
        if unknown := [name for name in getattr(arguments, given[2:]).split(",") if name and name not in names]:
            parser.error(f"{given} holds {unknown[0]!r}, expected of {', '.join(names)}")
    import torch

    from drllm import RoutedModel
    from drllm.runs.alone import alone_in

    torch.set_num_threads(arguments.threads)
    routed = RoutedModel.wrap(arguments.model)
    name_model(arguments.out, arguments.model, routed)
    with alone_in(arguments.run, "comparison"):
        for setting in arguments.settings.split(","):
            if arguments.job == "time":
                clock(routed, arguments, setting)
                continue
            if not SETTINGS[setting].policies and arguments.split == "tune":
                fit(routed, arguments, setting)
            answer(routed, arguments, setting)


def name_model(out: Path, model: str, routed: Any) -> None:
    """Say beside the verdicts which model they are of; a folder of another model's is refused."""
    from drllm.core.files import write_json

    about, path = {"model": model, "blocks": routed.n_layers, "fingerprint": routed.fingerprint}, out / "model.json"
    before = json.loads(path.read_text()) if path.is_file() else about
    if before["fingerprint"] != routed.fingerprint:
        raise SystemExit(f"{out} holds verdicts of {before['model']}, not of {model}: give its --model, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, about)


if __name__ == "__main__":
    main()
