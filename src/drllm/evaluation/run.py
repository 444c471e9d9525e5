"""Base, policies and blind baselines on the same held-out questions: what policies decide, then what that answers, and one summary.

Blind baselines (always beside a learned policy): `random-NAME` keeps each prompt's numbers of skips, repeats and loops but moves them to
random blocks; `shuffled-NAME` deals the policy's own routes to other prompts of the task. What a policy gains over its `shuffled` is the
gain from reading the prompt. `random` and `shuffled` alone are the routers'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from drllm.core.config import EvaluateConfig, Resources, to_dict
from drllm.core.errors import InputError
from drllm.core.files import write_json
from drllm.core.progress import say
from drllm.evaluation.baselines import baseline_routes
from drllm.methods.base import method_names
from drllm.model.routed import RoutedModel
from drllm.policies.policy import Policy
from drllm.policies.saved_config import policy_digest
from drllm.runs.answers import Answers, write_answers
from drllm.runs.card_facts import refresh_card
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import data_of, load_unseen, path_manifests, search_manifests
from drllm.runs.names import BASE, check_methods, owner_of
from drllm.runs.provenance import running
from drllm.runs.store import Verdict
from drllm.runs.summary import Summary, rows_of
from drllm.scoring.asking import Ask, Bench, asking
from drllm.scoring.base import Question
from drllm.scoring.scorer import Scorer, askable, said_left_out, scorer_of
from drllm.tasks import LoadedTask, texts_digest


class Evaluator(Protocol):
    """Answers questions by itself and decides no route, so that it can be compared, and nothing else."""

    def evaluate(self, scorer: Scorer, questions: Sequence[Question]) -> tuple[Sequence[Verdict], Sequence[Any]]:
        """Each question's verdict, and what stands where a route would: `n_passes`, and "" as text."""
        ...


def evaluate(
    routed: RoutedModel,
    methods: Sequence[str],
    tasks: Sequence[str],
    out: str | Path,
    config: EvaluateConfig | None = None,
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
    resources: Resources | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
) -> Summary:
    """Answer the same questions with every method and compare each with the base.

    Args:
        routed: the model; trained policies are loaded from `out/<method>/`, and its own policy is left as it is.
        methods: "base" (always added), saved policies of the run by their folder's name, such as "static", "routers" or "codebook", and
            blind baselines of them, such as "shuffled-codebook" ("random", "shuffled": of the routers), whose policies are added.
        out: the run folder.
        data: a JSONL file to read the questions from; default where the search of that task read them.
        evaluators: what answers questions by itself and decides no route, by its name among `methods`.

    Returns:
        The summary, also written to `out/evaluate/<split>/summary.json` (`<split>-first-<limit>` with a limit): a row for each method and
        task, differences as fractions, paired 95 % bootstrap intervals (stratified by task in the pooled rows), McNemar's exact p.
    """
    config, run, evaluators = config or EvaluateConfig(), RunFolder(Path(out)), evaluators or {}
    check_methods(methods, run.root, (*method_names(), *evaluators))
    baselines = [name for name in dict.fromkeys(methods) if owner_of(name)]
    trained = dict.fromkeys([*(name for name in methods if name != BASE and not owner_of(name)), *map(owner_of, baselines)])
    policies = {name: routed.load_policy(run.policy(name)) for name in trained if name not in evaluators}
    if fixed := [name for name in baselines if owner_of(name) in evaluators]:
        raise InputError(f"{fixed[0]}: {owner_of(fixed[0])} decides no route of its own, so there is nothing to deal out: leave it out")
    read_from = {manifest.task: manifest.data for manifest in (path_manifests(run.root) | search_manifests(run.root)).values()}
    loaded = load_unseen(run.root, {name: data or data_of(run.root, read_from.get(name)) for name in tasks}, config.split)
    read_from = {name: data or read_from.get(name) for name in tasks}
    config = _asked_as_searched(config, run)
    asked = {name: evaluators[name] for name in trained if name in evaluators}
    with asking(routed, run.root, resources or Resources()) as bench, running(run.root, "evaluate", to_dict(config), argv) as entry:
        entry["read_test_split"] = config.split == "test"
        entry["resources"] = to_dict(bench.resources)
        comparison = _Comparison(routed, run, config, loaded, baselines, policies, asked)
        comparison.answer(bench)
        write_answers(run.answers(config.folder), comparison.answers)
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
    evaluators: Mapping[str, Evaluator]
    answers: dict[tuple[str, str], Answers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The base, then policies, then the baselines, which are made from their routes.
        self.methods = (BASE, *self.policies, *self.evaluators, *self.baselines)

        self.scorers = {name: scorer_of(self.routed, loaded.task, self.config) for name, loaded in self.loaded.items()}
        self.questions = {name: self._asked(loaded) for name, loaded in self.loaded.items()}

    def _asked(self, loaded: LoadedTask) -> list[Question]:
        """In the task's order, but for those that the model cannot be asked, which is said."""
        rows = loaded.select(self.config.split, self.config.limit)
        questions, reasons = askable(self.scorers[loaded.task.name], loaded.task, rows)
        for line in said_left_out(loaded.task.name, reasons.values()):
            say(line)
        if rows and len(reasons) == len(rows):
            raise InputError(f"{loaded.task.name} has no {self.config.split} question that can be asked ({next(iter(reasons.values()))})")
        return questions

    def answer(self, bench: Bench) -> None:
        """Every method on every task: routes first, the baselines' from their owners', then all answers together."""
        routes: dict[str, dict[str, list[Any]]] = {}
        asks: list[Ask] = []
        for name, loaded in self.loaded.items():
            # The shortest first, in this order for all methods.
            questions = sorted(self.questions[name], key=lambda question: (question.n_tokens, question.example.id))
            ask = Ask(self.scorers[name], loaded.task, self.config, self.config.split, questions, ())
            routed = {BASE: None, **self.policies}
            mine = dict(zip(routed, bench.decide(ask, list(routed.values()), f"routes on {name}"), strict=True))
            for method in self.baselines:
                mine[method] = baseline_routes(method.partition("-")[0], mine[owner_of(method)], f"{self.config.seed}:{name}")
            routes[name] = mine
            asks.append(replace(ask, routes=list(zip(*mine.values(), strict=True))))
        for ask, found in zip(asks, bench.ensure(asks, f"{len(self.methods)} methods"), strict=True):
            ids = [question.example.id for question in ask.questions]
            for method, mine in routes[ask.task.name].items():
                verdicts = [one[route] for one, route in zip(found, mine, strict=True)]
                self.answers[method, ask.task.name] = Answers.of(ids, mine, verdicts)
            for method, evaluator in self.evaluators.items():
                verdicts, mine = evaluator.evaluate(ask.scorer, ask.questions)
                self.answers[method, ask.task.name] = Answers.of(ids, mine, verdicts)

    def summary(self, read_from: Mapping[str, str | Path | None]) -> Summary:
        config, routed, tasks = self.config, self.routed, list(self.loaded)
        about: dict[str, Any] = {"split": config.folder, "reference": BASE, "model": routed.base_id, "fingerprint": routed.fingerprint}
        rows = rows_of(self.methods, tasks, self.answers, routed.n_layers, config)
        dropped = {name: loaded.dropped for name, loaded in self.loaded.items()}
        sources = {name: loaded.source for name, loaded in self.loaded.items()}
        data = {name: None if where is None else str(where) for name, where in read_from.items()}
        texts = {name: texts_digest([question.example for question in asked]) for name, asked in self.questions.items()}
        policies = {name: policy_digest(self.run.policy(name)) for name in (*self.policies, *self.evaluators)}
        return Summary(**about, tasks=tasks, rows=rows, dropped=dropped, sources=sources, data=data, texts=texts, policies=policies)
