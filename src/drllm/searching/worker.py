"""Search groups of questions with one model replica: many trees at once through one scorer, then the blind baseline, then the checks.

A question's record depends on the question, the model, the configuration and the prior alone: with `loglik` no verdict depends on the other
questions (`scoring/prefixes.py`), and generated answers are searched one group at a time. So one process, many workers, an interrupted
search and a resumed one all write the same records.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from drllm.core.config import Resources, SearchConfig
from drllm.core.digest import number_of
from drllm.core.errors import InputError, first_line
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.model.load import is_out_of_memory
from drllm.model.routed import RoutedModel
from drllm.runs.records import FINITE, Check, RouteRecord
from drllm.scoring.scorer import Scorer, scorer_of
from drllm.scoring.verdict import Verdict
from drllm.searching.presets import make_tree
from drllm.searching.prior import EditPrior, SweepAnswers, fit_prior, sweep_routes
from drllm.searching.tree import FixedRoutes, Strategy
from drllm.searching.verify import Verifier
from drllm.tasks import Example, Task

Group = list[tuple[str, Example]]  # (split, example) of each question

AT_ONCE = 256  # evaluations of one question under way, when no verdict decides what comes next: enough to fill steps
SWEPT_AT_ONCE = 8  # questions on which every single edit is tried together
BESIDE_THE_SEARCH = 2  # while its tree waits for a verdict: the blind baseline keeps pace with it


class Judged(NamedTuple):
    """How far the groups under way are: routes judged, of how many at most (a search may stop early or meet a route again)."""

    n: int
    at_most: int

    @classmethod
    def of_all(cls, several: Iterable["Judged"]) -> "Judged":
        """Of several workers together."""
        return cls(*map(sum, zip(*several, strict=True)))

    def __str__(self) -> str:
        return f"({self.n:,} of at most {self.at_most:,} routes judged on the questions under way)"


def nobody(judged: Judged) -> None:
    """Who hears of it where nobody asked."""


@dataclass(frozen=True)
class Job:
    """What to do with every question of one task."""

    task: Task
    config: SearchConfig
    prior: EditPrior | None = None  # of the edits
    routes: tuple[Route, ...] | None = None  # evaluate these instead of searching (`drllm search --paths`)
    control: tuple[Route, ...] = ()  # routes of the blind baseline

    @property
    def reward(self) -> str:
        """The reward by name, `auto` resolved."""
        return self.task.reward_named(self.config.reward)

    @property
    def most_routes(self) -> int:
        """Routes judged on a question, at most: the base, and those given; or those of the simulations and of the blind baseline."""
        return 1 + (self.config.n_simulations + len(self.control) if self.routes is None else len(self.routes))


@dataclass
class _Search:
    """One question under way."""

    question: Any
    split: str
    strategy: Strategy  # says which routes to evaluate, one after the other
    pending: Route | None  # the route whose verdict it waits for; None when the search is over
    others: list[Route]  # routes that no verdict decides, the last one first, still to be submitted
    verdicts: dict[Route, Verdict] = field(default_factory=dict)
    running: set[Route] = field(default_factory=set)  # submitted and not judged yet

    @property
    def done(self) -> bool:
        return self.pending is None and not self.others and not self.running

    @property
    def broken(self) -> bool:
        """The base's logits are NaN or infinite."""
        return bool(self.strategy.evaluated) and self.verdicts[self.strategy.evaluated[0].route].broken

    def proceed(self) -> None:
        """Give the strategy the verdicts that are known, until it asks for one that is not."""
        while self.pending in self.verdicts:
            verdict = self.verdicts[self.pending]
            self.strategy.tell(self.pending, verdict.correct, verdict.margin)
            self.pending, self.others = (None, []) if self.broken else (self.strategy.ask(), self.others)


@contextmanager
def memory_in_one_line() -> Iterator[None]:
    """Turn torch's running out of memory into an `InputError`; any other error passes."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = "lower --cache-bytes or --pool-size, which change no record, and run the same command"
        raise InputError(f"out of memory ({first_line(error)}): finished groups are kept; {advice}") from None


def question_seed(seed: int, task: str, example_id: str) -> int:
    """A tree's seed depends on its question alone, not on the group it falls in."""
    return number_of(f"{seed}:{task}:{example_id}")


def questions_at_once(job: Job, resources: Resources) -> int:
    """Questions under way in a replica: few where all of their routes are known, so that their prefixes are still there when needed."""
    return resources.pool_size if job.routes is None else max(1, resources.pool_size // 4)


def _read(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What the readers of letters and boxed answers say, as a record holds it."""
    if any(verdict.strict is None for verdict in verdicts):
        return {}
    columns = {"strict": "strict", "lenient": "lenient", "forms": "form"}
    return {name: tuple(getattr(verdict, field) for verdict in verdicts) for name, field in columns.items()}


class Worker:
    """One model replica that searches groups of examples of one task."""

    def __init__(self, routed: RoutedModel, job: Job, resources: Resources):
        self.routed, self.job, self.resources = routed, job, resources
        self.scorer: Scorer = scorer_of(routed, job.task, job.config, resources.cache_bytes)
        self.fingerprint = routed.fingerprint
        self._n_running = 0
        self._verifier: Verifier | None = None

    def search(
        self, groups: Iterable[tuple[int, Group]], tell: Callable[[Judged], None] = nobody
    ) -> Iterator[tuple[int, list[RouteRecord]]]:
        """Search groups of (split, example), several at once: each group's index and records when it is done; `tell` hears between."""
        waiting = iter(groups)
        running: dict[int, _Search] = {}
        members: dict[int, list[int]] = {}  # group -> handles
        at_once = questions_at_once(self.job, self.resources) if self.scorer.shares_across_groups else 1
        while True:
            while sum(not search.done for search in running.values()) < at_once and (group := next(waiting, None)) is not None:
                members[group[0]] = self._open(group[1], running)
            if not members:
                return
            for handle, route, verdict in self.scorer.collect():
                self._take(handle, running[handle], route, verdict)
            tell(Judged(sum(len(search.verdicts) for search in running.values()), len(running) * self.job.most_routes))
            for index in [index for index, handles in members.items() if all(running[handle].done for handle in handles)]:
                handles = members.pop(index)
                searches = [running.pop(handle) for handle in handles]
                self.scorer.close(handles)
                yield index, [self._record(search) for search in searches]

    def probe(self, examples: Sequence[Example]) -> None:
        """Refuse a model whose logits are NaN or infinite on all of these questions; a single such question is recorded as broken."""
        if all(verdict.broken for [verdict] in self.scorer.score_all(self._questions(examples), [Route.full(self.routed.n_layers)])):
            found = f"the logits are NaN or infinite on all of {len(examples)} questions ({examples[0].id}, ...)"
            raise InputError(f"{found}: try --dtype bfloat16 or float32, or another model")

    def sweep(self, examples: Sequence[Example], progress: Progress, answered: SweepAnswers) -> EditPrior:
        """A prior over edits from every single edit on a few questions of the task, which `progress` counts.

        Questions that are in `answered` are not asked again; groups are kept whole, so that a resumed sweep finds what another would.
        """
        n_layers, config = self.routed.n_layers, self.job.config
        loops = config.max_loop_span, config.loop_strength
        routes = [Route.full(n_layers), *sweep_routes(n_layers, config.max_skip_run, *loops)]
        for start in range(0, len(examples), SWEPT_AT_ONCE):
            group = examples[start : start + SWEPT_AT_ONCE]
            if all(answered.has(example.id, len(routes)) for example in group):
                progress.resume(len(group))
                continue
            scored = self.scorer.score_all(self._questions(group), routes)
            answered.keep({example.id: verdicts for example, verdicts in zip(group, scored, strict=True)})
            progress.advance(len(group))
        answers = [answered.of(example.id, routes) for example in examples]
        return fit_prior(n_layers, config.max_skip_run, answers, *loops)

    def _questions(self, examples: Iterable[Example]) -> list[Any]:
        return [self.scorer.question(self.job.task, example) for example in examples]

    def _open(self, group: Group, running: dict[int, _Search]) -> list[int]:
        job = self.job
        questions = self._questions(example for _, example in group)
        handles = self.scorer.open(questions)
        for handle, question, (split, example) in zip(handles, questions, group, strict=True):
            seed = question_seed(job.config.seed, job.task.name, example.id)
            if job.routes is None:
                strategy, others = make_tree(self.routed.n_layers, job.config, seed, job.prior), job.control
            else:
                strategy, others = FixedRoutes(job.routes), job.routes
            search = running[handle] = _Search(question, split, strategy, strategy.ask(), list(reversed(others)))
            self._submit(handle, search)
        return handles

    def _submit(self, handle: int, search: _Search) -> None:
        """Submit what the question needs now: the base alone, then its tree's route and some of the others."""
        if search.pending is not None and search.pending not in search.running:
            self._start(handle, search, search.pending)
        searching = search.pending is not None and self.job.routes is None
        most = BESIDE_THE_SEARCH if searching else AT_ONCE
        while search.verdicts and search.others and len(search.running) < most:
            if search.running and self._n_running >= self.scorer.at_once:
                break  # memory is full; the verdicts still to come bring this question back here
            route = search.others.pop()
            if route not in search.verdicts and route not in search.running:
                self._start(handle, search, route)

    def _start(self, handle: int, search: _Search, route: Route) -> None:
        search.running.add(route)
        self._n_running += 1
        self.scorer.submit(handle, route)

    def _take(self, handle: int, search: _Search, route: Route, verdict: Verdict) -> None:
        """Note a verdict and go on with the question."""
        search.running.remove(route)
        self._n_running -= 1
        search.verdicts[route] = verdict
        search.proceed()
        self._submit(handle, search)

    def _record(self, search: _Search) -> RouteRecord:
        job, question, strategy = self.job, search.question, search.strategy
        verdicts = [search.verdicts[evaluation.route] for evaluation in strategy.evaluated]
        control = job.control if all(route in search.verdicts for route in job.control) else ()
        checks: tuple[Check, ...] = ()
        if search.broken:
            checks = (Check(strategy.evaluated[0].route, FINITE, False, verdicts[0].margin),)
        elif job.config.verify and job.routes is None:
            if self._verifier is None:
                self._verifier = Verifier(self.routed, job.task, job.config)
            checks = self._verifier.checks(question.example, [Route.full(self.routed.n_layers), strategy.chosen])
        return RouteRecord(
            task=job.task.name,
            id=question.example.id,
            n_choices=len(question.example.choices),
            base_correct=verdicts[0].correct,
            base_margin=verdicts[0].margin,
            chosen=strategy.chosen,
            routes=tuple(evaluation.route for evaluation in strategy.evaluated),
            rewards=tuple(float(verdict.correct) for verdict in verdicts),
            margins=tuple(verdict.margin for verdict in verdicts),
            acc=tuple(verdict.acc for verdict in verdicts),
            acc_norm=tuple(verdict.acc_norm for verdict in verdicts),
            seed=job.config.seed,
            fingerprint=self.fingerprint,
            reward=job.reward,
            split=search.split,
            control_routes=control,
            control_correct=tuple(search.verdicts[route].correct for route in control),
            control_margins=tuple(search.verdicts[route].margin for route in control),
            checks=checks,
            **_read(verdicts),
        )
