"""`calibrate()`: test a trained policy for a promise on questions that served nothing else."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from drllm.core.config import EvaluateConfig, PromiseConfig, Resources, SearchConfig, Split, to_dict
from drllm.core.digest import json_digest
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import read_json
from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import Policy
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import data_of, load_unseen, path_manifests, search_manifests
from drllm.runs.provenance import read_jobs, running
from drllm.scoring.asking import Ask, Bench, asking
from drllm.scoring.scorer import askable, scorer_of
from drllm.stats.promise import Promise, find_promise, surest_first
from drllm.tasks import LoadedTask, question_key

AskConfig = SearchConfig | EvaluateConfig
TUNE_QUESTIONS = 200  # a task, that order the tests


def calibrate(
    routed: RoutedModel,
    run: Path,
    policy: Policy,
    config: PromiseConfig,
    argv: Sequence[str] | None = None,
    tasks: Sequence[str] = (),
    as_it_is: bool = False,
    resources: Resources | None = None,
) -> tuple[Policy, Promise]:
    """Test a policy's operating points on the calibrate questions of the run's tasks, and take the cheapest that passes, else the base.

    They are tested in the order in which tune questions say that they will pass; a policy with one point needs none.

    Args:
        run: the run folder; its searches and its healing say which tasks, from where, and how their answers are judged.
        policy: what was trained; its points and their order are fixed before a calibrate question is read.
        tasks: those of the run (`asked_tasks`) to promise for; none: all.
        as_it_is: test the one point that the policy stands at, whose gain is then not flattered by a choice.

    Returns:
        The policy at the chosen point (the identity where none passed), with its promise, and the promise.
    """
    if not config.calibrate:
        raise InputError("no split to calibrate on: name it, as in --calibrate calibrate")
    asked = {name: of for name, of in asked_tasks(run).items() if not tasks or name in tasks}
    if not asked:
        raise ArtifactError(f"{run} was neither searched nor healed on a task, so it has none to calibrate on: run `drllm search`")
    routed.as_source(policy)  # its adapters
    points = [policy] if as_it_is else policy.operating_points()
    loaded = load_unseen(run, {name: data for name, (_, data) in asked.items()})
    of_task = {name: (config, loaded[name]) for name, (config, _) in asked.items()}
    seen: set[str] = set()
    with asking(routed, run, resources or Resources()) as bench, running(run, "calibrate", to_dict(config), argv) as entry:
        answers_on = partial(answer_points, bench, of_task, points, seen)
        tuned = answers_on("tune", TUNE_QUESTIONS) if len(points) > 1 else None
        answered = answers_on("calibrate", config.calibrate_limit)
        base, *answers = answered.verdicts
        if not base:
            raise InputError(f"the tasks of {run} have no {config.calibrate} question: search data that has a train part, or give more")
        order: Sequence[int] = ()
        if tuned is not None and tuned.verdicts[0]:
            order = surest_first(tuned.verdicts[0], tuned.verdicts[1:], len(base), config.epsilon, config.delta)
        dtype, judged = str(routed.model.dtype), judged_by(of_task.values())
        promise = Promise(config.epsilon, config.delta, len(base), answered.counts, config.calibrate, dtype=dtype, judged=judged)
        passes = [float(np.mean(values)) for values in answered.passes[1:]]
        found = find_promise(promise, base, answers, passes, routed.n_layers, order)
        entry["answers"] = json_digest([answers, passes])  # of every point, whatever is promised
        found = replace(found, earlier=earlier_tries(run, found, entry["answers"], str(Route.full(routed.n_layers))))
        entry["promise"], entry["left_out"] = found.to_json(), dict(answered.left_out)
    chosen = RoutePolicy(Route.full(routed.n_layers)) if found.point is None else points[found.point]
    chosen.promise = found.to_json()
    chosen.prompt_format = policy.prompt_format if found.point is not None else None
    return chosen, found


def asked_tasks(run: Path) -> dict[str, tuple[AskConfig, str | Path | None]]:
    """Each task that a run was searched, scanned or healed on: how its questions are asked and judged, and where they lie."""
    found: dict[str, tuple[AskConfig, str | Path | None]] = {}
    healing = RunFolder(run).healing.settings
    if healing.is_file():
        of = read_json(healing, "heal again", dict)
        config = EvaluateConfig(reward=of["reward"], prompts=of["wording"], max_step_tokens=of["max_step_tokens"])
        found |= {name: (config, data_of(run, of["data"])) for name in of["tasks"]}
    manifests = (search_manifests(run) | path_manifests(run)).values()
    return found | {manifest.task: (manifest.search_config, data_of(run, manifest.data)) for manifest in manifests}


@dataclass
class PointAnswers:
    """Of the base and of each point on all questions."""

    verdicts: list[list[bool]]
    passes: list[list[int]]
    counts: dict[str, int] = field(default_factory=dict)  # questions a task
    left_out: Counter[str] = field(default_factory=Counter)  # why


def answer_points(
    bench: Bench, tasks: dict[str, tuple[AskConfig, LoadedTask]], points: Sequence[Policy], seen: set[str], split: Split, limit: int
) -> PointAnswers:
    """Answer a split's questions with the base and each point; no question in `seen`, which grows, is answered again."""
    found = PointAnswers([[] for _ in (None, *points)], [[] for _ in (None, *points)])
    for name, (config, loaded) in tasks.items():
        scorer = scorer_of(bench.routed, loaded.task, config)
        new = []
        for example in loaded.select(split, limit):
            key = question_key(example.question)
            if key in seen:
                found.left_out["asked by another task, too"] += 1
                continue
            seen.add(key)
            new.append(example)
        questions, reasons = askable(scorer, loaded.task, new)
        found.left_out.update(reasons.values())
        questions.sort(key=lambda question: (question.n_tokens, question.example.id))
        found.counts[name] = len(questions)
        ask = Ask(scorer, loaded.task, config, split, questions, ())
        for place, (verdicts, routes) in enumerate(bench.answers(ask, [None, *points], f"{split} questions of {name}")):
            found.verdicts[place] += [verdict.correct for verdict in verdicts]
            found.passes[place] += [route.n_passes for route in routes]
    return found


def judged_by(asked: Iterable[tuple[AskConfig, LoadedTask]]) -> str:
    """What makes an answer of these tasks right: the reward, and the metric where choices are compared."""
    names = set()
    for config, loaded in asked:
        reward, metric = loaded.task.reward_named(config.reward), "acc" if loaded.task.only_acc else config.metric
        names.add(f"{reward}, {metric}" if reward == "loglik" else reward)
    return " and ".join(sorted(names))


def earlier_tries(run: Path, found: Promise, answers: str, base: str) -> int:
    """How many policies the run has tried on questions of the same split and of any of these tasks.

    Calibrations with other answers than these, of which `answers` is a digest, and routes of lists that were answered on it.
    """
    tried = [(job, job["promise"]) for job in read_jobs(run) if job["job"] == "calibrate" and "promise" in job]
    others = [each for each in tried if each[1]["split"] == found.split and set(each[1]["tasks"]) & set(found.tasks)]
    results = {job["answers"] for job, _ in others}
    lists = [each for each in path_manifests(run).values() if found.split in each.config["splits"] and each.task in found.tasks]
    routes = {route for manifest in lists for route in manifest.paths or ()} - {base}
    return len(results - {answers}) + len(routes)
