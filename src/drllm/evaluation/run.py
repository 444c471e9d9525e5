"""Base, policies and blind baselines on the same held-out questions: one parquet file a method and task, one summary.

Blind baselines (always beside a learned policy): `random-NAME` keeps each prompt's numbers of skips, repeats and loops but moves them to
random blocks; `shuffled-NAME` deals the policy's own routes to other prompts of the task. What a policy gains over its `shuffled` is the
gain from reading the prompt. `random` and `shuffled` alone are the routers'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from drllm.core.config import EvaluateConfig, Resources, to_dict
from drllm.core.errors import InputError
from drllm.core.files import write_json
from drllm.core.progress import say
from drllm.core.route import Route
from drllm.evaluation.answers import Request, answer, answer_on_workers, baseline_routes, shortest_first
from drllm.methods.base import method_names
from drllm.model.executors import opened, settled
from drllm.model.pool import Workplace
from drllm.model.routed import RoutedModel
from drllm.model.threads import torch_threads
from drllm.policies.policy import Policy
from drllm.policies.saved import load_policy
from drllm.policies.saved_config import policy_digest
from drllm.runs.card_facts import refresh_card
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import data_of, path_manifests, search_manifests
from drllm.runs.names import BASE, check_methods, owner_of
from drllm.runs.provenance import running
from drllm.runs.summary import Summary, rows_of
from drllm.runs.training_questions import load_unseen
from drllm.runs.verdicts import Verdicts
from drllm.scoring.base import Question
from drllm.scoring.scorer import Scorer, askable, said_left_out, scorer_of
from drllm.scoring.verdict import Known
from drllm.tasks import LoadedTask, texts_digest


def evaluate(
    routed: RoutedModel,
    methods: Sequence[str],
    tasks: Sequence[str],
    out: str | Path,
    config: EvaluateConfig | None = None,
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
    resources: Resources | None = None,
    known: dict[str, Known] | None = None,
) -> Summary:
    """Answer the same questions with every method and compare each with the base.

    Args:
        routed: the model; trained policies are loaded from `out/<method>/`, and its own policy is left as it is.
        methods: "base" (always added), saved policies of the run by their folder's name, such as "static", "routers" or "codebook", and
            blind baselines of them, such as "shuffled-codebook" ("random", "shuffled": of the routers), whose policies are added.
        tasks: task names.
        out: the run folder.
        config: split, reward, sizes; default `EvaluateConfig()`.
        data: a JSONL file to read the questions from; default where the search of that task read them.
        resources: executor, workers and threads; default `Resources()`. On Ray each worker answers one task by one method at a time.
        known: verdicts by task that are looked up instead of computed, in this process; those that are computed join them. No seconds are
            stated then.

    Returns:
        The summary, also written to `out/evaluate/<split>/summary.json` (`<split>-first-<limit>` with a limit): a row for each method and
        task, differences as fractions, paired 95 % bootstrap intervals (stratified by task in the pooled rows), McNemar's exact p.
    """
    config, resources, run = config or EvaluateConfig(), resources or Resources(), RunFolder(Path(out))
    check_methods(methods, run.root, method_names())
    baselines = [name for name in dict.fromkeys(methods) if owner_of(name)]
    trained = dict.fromkeys([*(name for name in methods if name != BASE and not owner_of(name)), *map(owner_of, baselines)])
    policies = {name: load_policy(run.policy(name), routed.identity) for name in trained}
    if fixed := [name for name in baselines if policies[owner_of(name)].evaluate_only]:
        raise InputError(f"{fixed[0]}: {owner_of(fixed[0])} decides no route of its own, so there is nothing to deal out: leave it out")
    read_from = {manifest.task: manifest.data for manifest in (path_manifests(run.root) | search_manifests(run.root)).values()}
    loaded = load_unseen(run.root, {name: data or data_of(run.root, read_from.get(name)) for name in tasks}, config.split)
    read_from = {name: data or read_from.get(name) for name in tasks}
    config = _asked_as_searched(config, run)
    comparison = _Comparison(routed, run, config, loaded, baselines, policies, known)
    comparison.check_rewards()
    resources = settled(routed, resources)
    with opened(routed, resources) as place, running(run.root, "evaluate", to_dict(config), argv) as entry:
        entry["read_test_split"] = config.split == "test"
        entry["resources"] = to_dict(resources)
        if place is None:
            with torch_threads(resources.threads):
                comparison.answer_here()
        else:
            comparison.answer_on_workers(place, resources)
        summary = comparison.summary(read_from)
        write_json(run.summary(config.folder), summary.to_json())
    for name in policies:
        refresh_card(run.policy(name))  # with this command and its figures
    return summary


def _asked_as_searched(config: EvaluateConfig, run: RunFolder) -> EvaluateConfig:
    """With `prompts` settled: the wording of the run's searches where they share one, so that policies are asked as they were trained."""
    if config.prompts != "auto":
        return config
    found = {manifest.prompts for manifest in (path_manifests(run.root) | search_manifests(run.root)).values()} - {""}
    if len(found) > 1:
        raise InputError(f"{run.root} was searched in several wordings ({', '.join(sorted(found))}): say which to ask in, with --prompts")
    return replace(config, prompts=found.pop() if found else "auto")


@dataclass
class _Comparison:
    """Methods on the same questions; `answers` by (method, task)."""

    routed: RoutedModel
    run: RunFolder
    config: EvaluateConfig
    loaded: dict[str, LoadedTask]
    baselines: list[str]
    policies: dict[str, Policy]
    known: dict[str, Known] | None = None
    answers: dict[tuple[str, str], Verdicts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The base, then policies, then the baselines, which are made from their routes.
        self.methods = (BASE, *self.policies, *self.baselines)

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """By task."""
        return {name: scorer_of(self.routed, loaded.task, self.config) for name, loaded in self.loaded.items()}

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """By task, in its order, but for those that the model cannot be asked, which is said."""
        return {name: self._asked(loaded) for name, loaded in self.loaded.items()}

    def _asked(self, loaded: LoadedTask) -> list[Question]:
        rows = loaded.select(self.config.split, self.config.limit)
        questions, reasons = askable(self.scorers[loaded.task.name], loaded.task, rows)
        for line in said_left_out(loaded.task.name, reasons.values()):
            say(line)
        if rows and len(reasons) == len(rows):
            raise InputError(f"{loaded.task.name} has no {self.config.split} question that can be asked ({next(iter(reasons.values()))})")
        return questions

    def check_rewards(self) -> None:
        """Refuse a reward that a policy has no answer for, before the base answers anything."""
        for policy in self.policies.values():
            if policy.evaluate_only:
                for loaded in self.loaded.values():
                    policy.answer(scorer_of(self.routed, loaded.task, self.config), [])

    def request(self, method: str, task: str, questions: Sequence[Any]) -> Request:
        """The method on the task; a baseline's owner has been answered."""
        routes, owner = None, owner_of(method)
        if owner:
            theirs = [Route.parse(text) for text in self.answers[owner, task].routes]
            routes = baseline_routes(method.partition("-")[0], theirs, f"{self.config.seed}:{task}")
        saved = self.run.policy(method) if method in self.policies else None
        path = self.run.verdicts(self.config.folder, method, task)
        examples = [question.example for question in self.questions[task]]
        made = Request(method, self.loaded[task].task, examples, saved, routes, path)
        return replace(made, metadata=made.described(self.routed, self.config, questions))

    def answer_here(self) -> None:
        """In this process, task by task."""
        for name in self.loaded:
            questions = sorted(self.questions[name], key=shortest_first)
            scorer = self.scorers.pop(name)  # the states that it keeps go with it
            for method in self.methods:
                request = self.request(method, name, questions)
                policy = self.policies.get(method) or request.policy(self.routed)
                known = None if self.known is None else self.known.setdefault(name, Known())
                self.answers[method, name] = answer(scorer, questions, policy, request, known)

    def answer_on_workers(self, place: Workplace, resources: Resources) -> None:
        """By workers: the base and policies, then the baselines, which take their owners' routes."""
        questions = {name: sorted(asked, key=shortest_first) for name, asked in self.questions.items()}
        for methods in ([BASE, *self.policies], self.baselines):
            requests = [self.request(method, task, questions[task]) for task in self.loaded for method in methods]
            answer_on_workers(place, self.routed, self.config, resources, requests)
            for request in requests:
                found = request.done()
                assert found is not None, "the pool checks that the file is there"
                self.answers[request.method, request.task.name] = found

    def summary(self, read_from: Mapping[str, str | Path | None]) -> Summary:
        """The table, and what its questions and policies were."""
        config, routed, tasks = self.config, self.routed, list(self.loaded)
        about: dict[str, Any] = {"split": config.folder, "reference": BASE, "model": routed.base_id, "fingerprint": routed.fingerprint}
        rows = rows_of(self.methods, tasks, self.answers, routed.n_layers, config)
        dropped = {name: loaded.dropped for name, loaded in self.loaded.items()}
        sources = {name: loaded.source for name, loaded in self.loaded.items()}
        data = {name: None if where is None else str(where) for name, where in read_from.items()}
        texts = {name: texts_digest([question.example for question in asked]) for name, asked in self.questions.items()}
        policies = {name: policy_digest(self.run.policy(name)) for name in self.policies}
        return Summary(**about, tasks=tasks, rows=rows, dropped=dropped, sources=sources, data=data, texts=texts, policies=policies)
