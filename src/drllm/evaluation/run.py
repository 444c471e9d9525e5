"""Base, policies and controls on the same held-out questions: one parquet file a method and task, one summary.

Controls (always beside a learned policy): `random-NAME` keeps each prompt's numbers of skips and repeats but moves them to random blocks;
`shuffled-NAME` deals the policy's own routes to other prompts of the task. What a policy gains over its `shuffled` is what looking at the
prompt was worth. `random` and `shuffled` alone are the routers'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import EvaluateConfig, Resources, to_dict
from drllm.core.errors import InputError
from drllm.core.files import write_json
from drllm.evaluation.answers import Answered, Asked, answer, control_routes, questions_of, read_answers, scorer_of, told_of
from drllm.evaluation.on_ray import answer_on_ray
from drllm.methods.base import method_names
from drllm.model.ray_pool import connected
from drllm.model.routed import RoutedModel
from drllm.policies import saved as artifact
from drllm.policies.policy import EvaluateOnlyPolicy
from drllm.runs.manifest import path_manifests, search_manifests
from drllm.runs.names import BASE, check_methods, owner_of
from drllm.runs.provenance import running
from drllm.runs.summary import Summary, Verdicts, rows_of
from drllm.runs.training_questions import run_sources
from drllm.tasks import LoadedTask, drop_overlaps, load_task, texts_digest


def evaluate(
    routed: RoutedModel,
    methods: Sequence[str],
    tasks: Sequence[str],
    out: str | Path,
    config: EvaluateConfig | None = None,
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
    resources: Resources | None = None,
) -> Summary:
    """Answer the same questions with every method and compare each with the base.

    Args:
        routed: the model; trained policies are loaded from `out/<method>/`, and its own policy is left as it is.
        methods: "base" (always added), saved policies of the run by their folder's name, such as "static", "routers" or "codebook", and
            controls of them, such as "shuffled-codebook" ("random", "shuffled": of the routers), whose policies are added.
        tasks: task names.
        out: the run folder.
        config: split, reward, sizes; default `EvaluateConfig()`.
        data: a JSONL file to read the questions from; default where the search of that task read them.
        resources: executor, workers and threads; default `Resources()`. On Ray each worker answers one task by one method at a time.

    Returns:
        The summary, also written to `out/evaluate/<split>/summary.json` (`<split>-first-<limit>` with a limit): a row for each method and
        task, differences as fractions, paired 95 % bootstrap intervals (stratified by task in the pooled rows), McNemar's exact p.
    """
    config, resources = config or EvaluateConfig(), resources or Resources()
    out = Path(out)
    check_methods(methods, out, method_names())
    controls = [name for name in dict.fromkeys(methods) if owner_of(name)]
    trained = list(dict.fromkeys([name for name in methods if name != BASE and not owner_of(name)] + [owner_of(name) for name in controls]))
    # The base, then policies, then the controls, which are made from their routes.
    wanted = [BASE, *trained, *controls]
    policies = {name: artifact.load_policy(out / name, routed) for name in trained}
    if fixed := [name for name in controls if policies[owner_of(name)].evaluate_only]:
        raise InputError(f"{fixed[0]}: {owner_of(fixed[0])} decides no route of its own, so there is nothing to deal out: leave it out")
    read_from = _sources(out)
    loaded = _load(tasks, data, out, read_from)
    for policy in policies.values():
        if isinstance(policy, EvaluateOnlyPolicy):
            for name in tasks:
                # Asked nothing: refuses a reward that it has no answer for before the base is asked.
                policy.answer(scorer_of(routed, loaded[name].task, config), [])
    folder = out / "evaluate" / config.folder
    answers: dict[str, dict[str, Answered]] = {name: {} for name in wanted}
    examples = {name: loaded[name].select(config.split, config.limit) for name in tasks}

    def asked(method: str, task: str, questions: Sequence[Any]) -> Asked:
        """The method on the task; a control's owner has been answered."""
        routes, owner = None, owner_of(method)
        if owner:
            routes = control_routes(method.partition("-")[0], answers[owner][task].routes, f"{config.seed}:{task}")
        saved = out / method if method in policies else None
        made = Asked(method, loaded[task].task, examples[task], saved, routes, folder / method / f"{task}.parquet")
        return replace(made, key=made.key_with(routed, config, questions), told=told_of(routed, config, questions, saved))

    def answer_here() -> None:
        if resources.threads:
            torch.set_num_threads(resources.threads)
        for task in tasks:
            scorer = scorer_of(routed, loaded[task].task, config)
            questions = questions_of(scorer, loaded[task].task, examples[task])
            for method in wanted:
                one = asked(method, task, questions)
                answers[method][task] = answer(scorer, questions, policies.get(method) or one.policy(routed), one)

    def answer_there() -> None:
        questions = {task: questions_of(scorer_of(routed, loaded[task].task, config), loaded[task].task, examples[task]) for task in tasks}
        for methods in ([BASE, *trained], controls):  # which take their owners' routes
            todo = [asked(method, task, questions[task]) for task in tasks for method in methods]
            answer_on_ray(routed, config, resources, todo)
            for one in todo:
                found = read_answers(one.path, one.key)
                assert found is not None, "its worker has been asked whether the file is there"
                answers[one.method][one.task.name] = found

    on_ray = resources.executor == "ray"
    with connected(routed, resources) if on_ray else contextlib.nullcontext(), running(out, "evaluate", to_dict(config), argv) as entry:
        entry["read_test_split"] = config.split == "test"
        entry["resources"] = to_dict(resources)
        (answer_there if on_ray else answer_here)()
        found = {name: data or read_from.get(name) for name in tasks}
        summary = summarize(answers, config, routed).changed(
            dropped={name: loaded[name].dropped for name in tasks},
            sources={name: loaded[name].source for name in tasks},
            data={name: None if where is None else str(where) for name, where in found.items()},
            texts={name: texts_digest(examples[name]) for name in tasks},
            policies={name: artifact.digest(out / name) for name in policies},
        )
        write_json(folder / "summary.json", summary.to_json())
    for name in policies:
        artifact.write_card(out / name)  # with this command and its figures
    return summary


def summarize(answers: dict[str, dict[str, Answered]], config: EvaluateConfig, routed: RoutedModel) -> Summary:
    """Rows of the summary: each method on each task, and on all tasks together when there are several."""
    tasks = list(answers[BASE])
    told = {(method, task): _told(answered) for method, by_task in answers.items() for task, answered in by_task.items()}
    return Summary(
        split=config.folder,
        reference=BASE,
        model=routed.base_id,
        fingerprint=routed.fingerprint,
        tasks=tasks,
        rows=rows_of(list(answers), tasks, told, BASE, routed.n_layers, config.n_resamples, config.seed),
    )


def _told(answered: Answered) -> Verdicts:
    routes = [str(route) for route in answered.routes]
    return Verdicts(answered.correct, routes, [route.n_passes for route in answered.routes], answered.seconds)


def _sources(out: Path) -> dict[str, str | None]:
    """Where the search or list of each task read its questions from."""
    return {manifest.task: manifest.data for manifest in (path_manifests(out) | search_manifests(out)).values()}


def _load(tasks: Sequence[str], data: str | Path | None, out: Path, sources: dict[str, str | None]) -> dict[str, LoadedTask]:
    """The tasks' questions, without those that any task was searched on, wherever its search read them from.

    Without `data`, a searched task is read from where its search read it.
    """
    searched = run_sources(out)
    return drop_overlaps({name: load_task(name, data or sources.get(name)) for name in tasks} | searched, searched)
