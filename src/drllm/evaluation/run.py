"""Base, policies and controls on the same held-out questions: one parquet file a method and task, one summary.

Controls (always beside a learned policy): `random-NAME` keeps each prompt's numbers of skips and repeats but moves them to random blocks;
`shuffled-NAME` deals the policy's own routes to other prompts of the task. What a policy gains over its `shuffled` is what looking at the
prompt was worth. `random` and `shuffled` alone are the routers'.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drllm.config import EvaluateConfig, to_dict
from drllm.errors import ArtifactError, InputError
from drllm.evaluation.names import BASE, check_methods, owner_of
from drllm.evaluation.sources import run_sources
from drllm.evaluation.stats import mcnemar, paired_bootstrap, wilson
from drllm.files import write_bytes, write_json
from drllm.model import artifact
from drllm.model.policy import EvaluateOnlyPolicy, Policy, RowRoutes
from drllm.model.routed import RoutedModel
from drllm.plans import path_plans, search_plans
from drllm.progress import Progress
from drllm.provenance import running
from drllm.routes import PartialDepth, Route
from drllm.scoring import Scorer, make_scorer, questions_digest
from drllm.tasks import LoadedTask, drop_overlaps, load_task, texts_digest

CHUNK = 64  # questions between two steps of the progress bar


@dataclass(frozen=True)
class Answered:
    """One method's verdicts on one task's questions, all in the same order."""

    ids: list[str]
    correct: list[bool]
    acc: list[bool | None]
    acc_norm: list[bool | None]
    margin: list[float]
    routes: list[Any]  # a Route each, or a PartialDepth
    seconds: float


def evaluate(
    routed: RoutedModel,
    methods: Sequence[str],
    tasks: Sequence[str],
    out: str | Path,
    config: EvaluateConfig | None = None,
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Answer the same questions with every method and compare each with the base.

    Args:
        routed: the model; trained policies are loaded from `out/<method>/`, and its own policy is left as it is.
        methods: "base" (always added), saved policies of the run by their folder's name, such as "static", "routers" or "codebook", and
            controls of them, such as "shuffled-codebook" ("random", "shuffled": of the routers), whose policies are added.
        tasks: task names.
        out: the run folder.
        config: split, reward, sizes; default `EvaluateConfig()`.
        data: a JSONL file to read the questions from; default where the search of that task read them.

    Returns:
        The summary, also written to `out/evaluate/<split>/summary.json` (`<split>-first-<limit>` with a limit): a row for each method and
        task, differences as fractions, paired 95 % bootstrap intervals (stratified by task in the pooled rows), McNemar's exact p.
    """
    config = config or EvaluateConfig()
    out = Path(out)
    check_methods(methods, out)
    controls = [name for name in dict.fromkeys(methods) if owner_of(name)]
    trained = list(dict.fromkeys([name for name in methods if name != BASE and not owner_of(name)] + [owner_of(name) for name in controls]))
    # The base, then policies, then the controls, which are made from their routes.
    wanted = [BASE, *trained, *controls]
    policies = {name: artifact.load_policy(out / name, routed) for name in trained}
    if fixed := [name for name in controls if policies[owner_of(name)].evaluate_only]:
        raise InputError(f"{fixed[0]}: {owner_of(fixed[0])} decides no route of its own, so there is nothing to deal out: leave it out")
    read_from = _sources(out)
    loaded = _load(tasks, data, out, read_from)

    def scorer_of(task: str) -> Scorer:
        return make_scorer(routed, loaded[task].task, config.reward, config.max_step_tokens, config.metric, config.max_new_tokens)

    for policy in policies.values():
        if isinstance(policy, EvaluateOnlyPolicy):
            for name in tasks:
                policy.answer(scorer_of(name), [])  # asked nothing: refuses a reward it has no answer for before the base is asked
    folder = out / "evaluate" / config.folder
    answers: dict[str, dict[str, Answered]] = {name: {} for name in wanted}
    texts: dict[str, str] = {}
    with running(out, "evaluate", to_dict(config), argv) as entry:
        entry["read_test_split"] = config.split == "test"
        for task_name in tasks:
            task_data = loaded[task_name]
            scorer = scorer_of(task_name)
            examples = task_data.select(config.split, config.limit)
            texts[task_name] = texts_digest(examples)
            questions = sorted((scorer.question(task_data.task, e) for e in examples), key=lambda q: (q.n_tokens, q.example.id))
            for name in wanted:
                policy, routes = policies.get(name), None
                if owner := owner_of(name):
                    routes = answers[owner][task_name].routes
                    policy = RowRoutes(control_routes(name.partition("-")[0], routes, f"{config.seed}:{task_name}"))
                key = _key(name, policy, out, routed, config, questions_digest(questions), routes)
                answers[name][task_name] = _answer(
                    scorer, questions, policy, folder / name / f"{task_name}.parquet", key, f"{name} on {task_name}"
                )
        summary = summarize(answers, config, routed)
        summary["dropped"] = {name: loaded[name].dropped for name in tasks}
        summary["sources"] = {name: loaded[name].source for name in tasks}
        found = {name: data or read_from.get(name) for name in tasks}
        summary["data"] = {name: None if where is None else str(where) for name, where in found.items()}
        summary["texts"] = texts
        summary["policies"] = {name: artifact.digest(out / name) for name in policies}
        write_json(folder / "summary.json", summary)
    for name in policies:
        artifact.write_card(out / name)  # with this command and its figures
    return summary


def control_routes(name: str, routes: Sequence[Route], seed: str) -> list[Route]:
    """The routes of a control: the same actions at random blocks, or the same routes at other prompts."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{name}:{seed}".encode()).digest()[:8], "big"))
    if name == "random":
        return [Route(rng.permutation([int(action) for action in route]).tolist()) for route in routes]
    # A random cyclic order deals every route to another prompt.
    order = rng.permutation(len(routes))
    dealt: list[Route] = list(routes)
    for giver, taker in zip(order, np.roll(order, 1), strict=True):
        dealt[int(taker)] = routes[int(giver)]
    return dealt


def summarize(answers: dict[str, dict[str, Answered]], config: EvaluateConfig, routed: RoutedModel) -> dict[str, Any]:
    """Rows of the summary: each method on each task, and on all tasks together when there are several."""
    tasks = list(answers[BASE])
    rows = []
    for method, by_task in answers.items():
        for name in [*tasks, *(["all"] if len(tasks) > 1 else [])]:
            parts = tasks if name == "all" else [name]
            ours = np.concatenate([np.array(by_task[task].correct, dtype=float) for task in parts])
            base = np.concatenate([np.array(answers[BASE][task].correct, dtype=float) for task in parts])
            strata = np.concatenate([np.full(len(by_task[task].ids), index) for index, task in enumerate(parts)])
            passes = [route.n_passes for task in parts for route in by_task[task].routes]
            low, high = wilson(int(ours.sum()), len(ours))
            row: dict[str, Any] = {
                "method": method, "task": name, "n": len(ours), "accuracy": float(ours.mean()), "wilson_low": low, "wilson_high": high,
                "mean_passes": float(np.mean(passes)), "n_layers": routed.n_layers,
                "distinct_routes": len({route for task in parts for route in by_task[task].routes}),
                "identity_share": _identity_share([route for task in parts for route in by_task[task].routes]),
                "seconds": sum(by_task[task].seconds for task in parts),
            }  # fmt: skip
            if method != BASE:
                difference, d_low, d_high = paired_bootstrap(ours, base, config.n_resamples, config.seed, strata)
                row |= {
                    "difference": difference, "difference_low": d_low, "difference_high": d_high, "mcnemar_p": mcnemar(ours, base),
                    "better": int((ours > base).sum()), "worse": int((ours < base).sum()),
                }  # fmt: skip
            rows.append(row)
    return {
        "split": config.folder,
        "reference": BASE,
        "model": routed.base_id,
        "fingerprint": routed.fingerprint,
        "tasks": tasks,
        "rows": rows,
    }


def _identity_share(routes: Sequence[Any]) -> float | None:
    """How many prompts took the base's route; None for what decides no route."""
    return None if any(isinstance(route, PartialDepth) for route in routes) else float(np.mean([route.is_full for route in routes]))


def _answer(scorer: Any, questions: Sequence[Any], policy: Policy | None, path: Path, key: str, label: str) -> Answered:
    """Verdicts of one method on one task, read back when the same evaluation has been done before."""
    if (saved := _read(path, key)) is not None:
        return saved
    verdicts, routes = [], []
    started = time.perf_counter()
    with Progress(label, len(questions)) as progress:
        for start in range(0, len(questions), CHUNK):
            chunk = questions[start : start + CHUNK]
            rows = policy.rows(range(start, start + len(chunk))) if isinstance(policy, RowRoutes) else policy
            some_verdicts, some_routes = scorer.score_policy(chunk, rows)
            verdicts += some_verdicts
            routes += some_routes
            progress.advance(len(chunk))
    seconds = time.perf_counter() - started
    answered = Answered(
        [question.example.id for question in questions], [v.correct for v in verdicts], [v.acc for v in verdicts],
        [v.acc_norm for v in verdicts], [v.margin for v in verdicts], routes, seconds,
    )  # fmt: skip
    table = pa.table(
        {
            "id": answered.ids, "correct": answered.correct, "correct_acc": pa.array(answered.acc, pa.bool_()),
            "correct_acc_norm": pa.array(answered.acc_norm, pa.bool_()), "margin": pa.array(answered.margin, pa.float32()),
            "route": [str(route) for route in routes], "n_passes": [route.n_passes for route in routes],
        },
        metadata={"key": key, "seconds": repr(seconds)},
    )  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, sink.getvalue().to_pybytes())
    return answered


def _read(path: Path, key: str) -> Answered | None:
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is corrupt ({str(error).splitlines()[0][:80]}): delete it and evaluate again") from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"key") != key.encode():
        return None
    columns = table.to_pydict()
    margins = [math.nan if value is None else value for value in columns["margin"]]
    routes = [
        Route.parse(text) if text else PartialDepth(passes) for text, passes in zip(columns["route"], columns["n_passes"], strict=True)
    ]
    return Answered(
        columns["id"], columns["correct"], columns["correct_acc"], columns["correct_acc_norm"], margins, routes, float(metadata[b"seconds"])
    )


def _key(
    name: str,
    policy: Policy | None,
    out: Path,
    routed: RoutedModel,
    config: EvaluateConfig,
    questions: str,
    routes: list[Route] | None,
) -> str:
    """Names everything a verdict depends on: weights, dtype, policy files, configuration, questions."""
    digest = hashlib.sha256(json.dumps([name, routed.fingerprint, str(routed.model.dtype), to_dict(config), questions]).encode())
    if policy is not None and not isinstance(policy, RowRoutes):
        digest.update(artifact.digest(out / name).encode())
    if isinstance(policy, RowRoutes) and routes is not None:
        digest.update(" ".join(map(str, routes)).encode())
    return digest.hexdigest()


def _sources(out: Path) -> dict[str, str | None]:
    """Where the search or list of each task read its questions from."""
    return {plan["task"]: plan["data"] for plan in (path_plans(out) | search_plans(out)).values()}


def _load(tasks: Sequence[str], data: str | Path | None, out: Path, sources: dict[str, str | None]) -> dict[str, LoadedTask]:
    """The tasks' questions, without those that any task was searched on, wherever its search read them from.

    Without `data`, a searched task is read from where its search read it.
    """
    searched = run_sources(out)
    return drop_overlaps({name: load_task(name, data or sources.get(name)) for name in tasks} | searched, searched)
