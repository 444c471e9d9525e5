"""The one way of asking: `Bench.ensure(questions, routes)` looks verdicts up in the run's store, computes what is missing, and keeps it.

Questions are asked in groups, each of which ends in one shard that is whole or absent: what is killed loses the groups under way. Groups go
to workers where there are some, else to this process, and several are under way at once, so that steps are full. A group may also carry a
strategy that says which route to ask next (`drllm.searching`): it is told what the store knows, and asks the model for the rest.

What a verdict is depends on the question, the route and the store's conditions alone (`scoring/prefixes.py`); generated answers round by
what is decoded together, so of those one group is asked at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from drllm.core.config import Resources
from drllm.core.digest import json_digest
from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.progress import Progress, say
from drllm.core.route import Route
from drllm.model.executors import opened, settled
from drllm.model.load import is_out_of_memory
from drllm.model.pool import Base, Work, Workplace, work_on
from drllm.model.routed import RoutedModel
from drllm.model.threads import torch_threads
from drllm.policies.policy import RouteSource
from drllm.runs.layout import RunFolder
from drllm.runs.store import Asked, Conditions, Decided, Store, Verdict
from drllm.scoring.base import Question
from drllm.scoring.generated import DECODED_ANSWERS
from drllm.scoring.loglik import LoglikScorer
from drllm.scoring.route_prediction import decide_routes, decision_key
from drllm.scoring.scorer import Scorer, asked_how, scorer_of
from drllm.tasks import Example, Task

UNIT = 256  # evaluations of a shard, unless one question has more
IN_FLIGHT = 512  # evaluations that keep a replica's steps full
AT_ONCE = 256  # evaluations of one question under way, when no verdict decides what comes next
BESIDE_A_STRATEGY = 2  # while a strategy waits for a verdict: the routes that it does not decide keep pace with it
DECIDED_TOGETHER = 64  # questions that policies decide between two writes


class Strategy(Protocol):
    """Says which route of a question to ask next; `evaluated` are those told, the base's first."""

    evaluated: list[Any]

    def ask(self) -> Route | None:
        """The next route; None at the end."""
        ...

    def tell(self, route: Route, correct: bool, margin: float) -> None:
        """The verdict on it."""
        ...


class Wanted(NamedTuple):
    """A question of a group, and the routes it is asked along whatever comes out."""

    split: str
    example: Example
    routes: tuple[Route, ...] = ()


class Judged(NamedTuple):
    """How far the groups under way are: routes judged, of how many at most (a search may stop early or meet a route again)."""

    n: int
    at_most: int

    @classmethod
    def of_all(cls, several: Iterable[Judged]) -> Judged:
        """Of several workers together."""
        return cls(*map(sum, zip(*several, strict=True)))

    def __str__(self) -> str:
        return f"({self.n:,} of at most {self.at_most:,} routes judged on the questions under way)"


def nobody(judged: Judged) -> None:
    """Who hears of it where nobody asked."""


@dataclass
class Inquiry:
    """One question under way.

    Attributes:
        others: routes that no verdict decides, the last one first, still to be asked.
        pending: the route that the strategy waits for; None when it is done, or there is none.
        verdicts: by route, those that the store knew among them.
        new: those that were computed, in the order in which they came.
    """

    question: Question
    asked: Asked
    others: list[Route]
    strategy: Strategy | None = None
    pending: Route | None = None
    verdicts: dict[Route, Verdict] = field(default_factory=dict)
    running: set[Route] = field(default_factory=set)
    new: list[Route] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.pending is None and not self.others and not self.running

    @property
    def broken(self) -> bool:
        """The base's logits are NaN or infinite, so that its strategy goes no further."""
        told = self.strategy.evaluated if self.strategy is not None else ()
        return bool(told) and self.verdicts[told[0].route].broken

    @property
    def has_begun(self) -> bool:
        """Whether the base has been judged where a strategy waits for it: a broken one costs no more."""
        return self.strategy is None or bool(self.strategy.evaluated)

    def proceed(self) -> None:
        """Give the strategy the verdicts that are known, until it asks for one that is not."""
        while self.strategy is not None and self.pending in self.verdicts:
            verdict = self.verdicts[self.pending]
            self.strategy.tell(self.pending, verdict.correct, verdict.margin)
            self.pending, self.others = (None, []) if self.broken else (self.strategy.ask(), self.others)


class Job(ABC):
    """What is done with the questions of one task, in groups; a worker is sent it whole."""

    task: Task
    config: Any  # how answers are judged: reward, metric, max_new_tokens, max_step_tokens
    packed: bool  # how this process packs choices, which every worker must
    shares_across_groups: bool  # whether groups are under way together

    @abstractmethod
    def do(self, replica: Replica, groups: Iterable[tuple[int, Sequence[Wanted]]], tell: Callable[[Judged], None]) -> Iterator[int]:
        """Do some groups, each with its index: the index of each that is done and written."""

    @abstractmethod
    def is_done(self, index: int) -> bool:
        """Whether the file of a group is there."""

    @property
    def in_order(self) -> bool:
        """Whether groups are to be begun in the order in which they are given."""
        return False

    def at_once(self, resources: Resources) -> int:
        """Questions that are under way in one replica."""
        return resources.pool_size


class Asking(Job):
    """Asks questions along routes."""

    @abstractmethod
    def inquire(self, replica: Replica, question: Question, wanted: Wanted) -> Inquiry:
        """What is asked of one question."""

    @abstractmethod
    def finish(self, replica: Replica, index: int, inquiries: list[Inquiry]) -> None:
        """Write what a group answered."""

    @property
    def most_routes(self) -> int:
        """Routes judged on a question, at most, for who waits."""
        return 0

    def do(self, replica: Replica, groups: Iterable[tuple[int, Sequence[Wanted]]], tell: Callable[[Judged], None]) -> Iterator[int]:
        for index, inquiries in _Stream(self, replica).run(groups, tell):
            self.finish(replica, index, inquiries)
            yield index


class _Stream:
    """Groups of questions through one scorer, several at once."""

    def __init__(self, job: Asking, replica: Replica):
        self.job, self.replica, self.scorer = job, replica, replica.scorer(job)
        self.n_running = 0

    def run(self, groups: Iterable[tuple[int, Sequence[Wanted]]], tell: Callable[[Judged], None]) -> Iterator[tuple[int, list[Inquiry]]]:
        """Each group's index and inquiries when it is done; `tell` hears between."""
        waiting = iter(groups)
        running: dict[int, Inquiry] = {}
        members: dict[int, list[int]] = {}  # group -> handles
        at_once = self.job.at_once(self.replica.resources) if self.scorer.shares_across_groups else 1
        while True:
            while sum(not inquiry.done for inquiry in running.values()) < at_once and (group := next(waiting, None)) is not None:
                members[group[0]] = self._open(group[1], running)
            if not members:
                return
            for handle, route, verdict in self.scorer.collect():
                self._take(handle, running[handle], route, verdict)
            tell(Judged(sum(len(inquiry.new) for inquiry in running.values()), len(running) * self.job.most_routes))
            for index in [index for index, handles in members.items() if all(running[handle].done for handle in handles)]:
                handles = members.pop(index)
                inquiries = [running.pop(handle) for handle in handles]
                self.scorer.close(handles)
                yield index, inquiries

    def _open(self, group: Sequence[Wanted], running: dict[int, Inquiry]) -> list[int]:
        questions = [self.scorer.question(self.job.task, wanted.example) for wanted in group]
        handles = self.scorer.open(questions)
        for handle, question, wanted in zip(handles, questions, group, strict=True):
            inquiry = running[handle] = self.job.inquire(self.replica, question, wanted)
            inquiry.proceed()
            self._submit(handle, inquiry)
        return handles

    def _submit(self, handle: int, inquiry: Inquiry) -> None:
        """Ask what the question needs now: the base alone, then its strategy's route and some of the others."""
        if inquiry.pending is not None and inquiry.pending not in inquiry.running:
            self._start(handle, inquiry, inquiry.pending)
        most = BESIDE_A_STRATEGY if inquiry.pending is not None else AT_ONCE
        while inquiry.has_begun and inquiry.others and len(inquiry.running) < most:
            if inquiry.running and self.n_running >= self.scorer.at_once:
                break  # memory is full; the verdicts still to come bring this question back here
            route = inquiry.others.pop()
            if route not in inquiry.verdicts and route not in inquiry.running:
                self._start(handle, inquiry, route)

    def _start(self, handle: int, inquiry: Inquiry, route: Route) -> None:
        inquiry.running.add(route)
        self.n_running += 1
        self.scorer.submit(handle, route)

    def _take(self, handle: int, inquiry: Inquiry, route: Route, verdict: Verdict) -> None:
        """Note a verdict and go on with the question."""
        inquiry.running.remove(route)
        self.n_running -= 1
        inquiry.verdicts[route] = verdict
        inquiry.new.append(route)
        inquiry.proceed()
        self._submit(handle, inquiry)


@dataclass(frozen=True)
class _Listed(Asking):
    """Routes that are given."""

    task: Task
    config: Any
    packed: bool
    shares_across_groups: bool
    store: Path
    conditions: Conditions
    names: Mapping[int, str]  # of each group's shard
    most: int  # routes of a question

    def inquire(self, replica: Replica, question: Question, wanted: Wanted) -> Inquiry:
        asked = Asked(self.task.name, wanted.split, wanted.example.id, question.digest)
        return Inquiry(question, asked, list(reversed(wanted.routes)))

    def finish(self, replica: Replica, index: int, inquiries: list[Inquiry]) -> None:
        write_new(Store(self.store), self.names[index], self.conditions, inquiries)

    def is_done(self, index: int) -> bool:
        return Store(self.store).shards.has(self.names[index])

    def at_once(self, resources: Resources) -> int:
        """Few where each has many routes: what their routes share is still there when it is needed."""
        return max(2, min(resources.pool_size, IN_FLIGHT // max(1, self.most)))

    @property
    def most_routes(self) -> int:
        return self.most


@dataclass(frozen=True)
class _Deciding(Job):
    """Policies decide their routes."""

    task: Task
    config: Any
    packed: bool
    shares_across_groups: bool
    folder: Path
    conditions: Conditions
    policies: Mapping[str, RouteSource]  # by their keys
    groups: Mapping[int, Sequence[Asked]]  # by index

    def do(self, replica: Replica, groups: Iterable[tuple[int, Sequence[Wanted]]], tell: Callable[[Judged], None]) -> Iterator[int]:
        scorer, decided = replica.scorer(self), Decided(self.folder)
        for index, group in groups:
            prompts = [scorer.question(self.task, wanted.example).context_ids for wanted in group]
            found = decide_routes(scorer.routed, list(self.policies.values()), prompts, scorer.max_step_tokens)
            for key, routes in zip(self.policies, found, strict=True):
                decided.write(key, self.conditions, list(zip(self.groups[index], routes, strict=True)))
            yield index

    def is_done(self, index: int) -> bool:
        decided, questions = Decided(self.folder), [asked.question for asked in self.groups[index]]
        return all(decided.shards.has(decided.name(key, self.conditions, questions)) for key in self.policies)


def write_new(store: Store, name: str, conditions: Conditions, inquiries: Sequence[Inquiry]) -> None:
    """Append what a group had to compute, question by question, routes in the order of their text."""
    rows = [(one.asked, route, one.verdicts[route]) for one in inquiries for route in sorted(one.new, key=str)]
    store.write(name, conditions, rows)


class Ticket(NamedTuple):
    """One group of one job: what a worker is given."""

    job: int  # its place among the jobs
    index: int  # of the group
    group: Sequence[Wanted]
    n_tokens: int = 0  # of its longest question


class Replica:
    """One worker: a model, and the scorers of what it was given. A place that can hear it sets `tell`."""

    tell: Callable[[Judged], None] = staticmethod(nobody)

    def __init__(self, base: Base | RoutedModel, jobs: Sequence[Job], resources: Resources):
        self._base, self._jobs, self.resources = base, jobs, resources
        self._scorers: dict[int, Scorer] = {}
        self.kept: dict[Any, Any] = {}  # what a job keeps from one group to the next

    @property
    def routed(self) -> RoutedModel:
        """Its model, loaded when it is needed."""
        return self._base.load(self.resources.threads) if isinstance(self._base, Base) else self._base

    def scorer(self, job: Job) -> Scorer:
        """The scorer of a job; `ArtifactError` where it would compute otherwise than the process that sent the job."""
        if id(job) not in self._scorers:
            scorer = scorer_of(self.routed, job.task, job.config, self.resources.cache_bytes)
            if scorer.packed != job.packed:
                found = f"a worker packs choices into one packed prompt: {scorer.packed}, this process: {job.packed}"
                advice = "their attention computes otherwise, give every node the same software and kind of device"
                raise ArtifactError(f"{found}; {advice}")
            self._scorers[id(job)] = scorer
        return self._scorers[id(job)]

    def work(self, jobs: list[tuple[int, Ticket]]) -> None:
        """Do some groups. Without any the model is loaded, no more."""
        if not jobs:
            assert self.routed
        for number in dict.fromkeys(ticket.job for _, ticket in jobs):
            groups = [(ticket.index, ticket.group) for _, ticket in jobs if ticket.job == number]
            with memory_in_one_line():
                for _ in self._jobs[number].do(self, groups, self.tell):
                    pass


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


@dataclass(frozen=True)
class Ask:
    """Questions of one task and split, by its scorer, and the routes of each."""

    scorer: Scorer
    task: Task
    config: Any  # that the scorer was made with
    split: str
    questions: Sequence[Question]
    routes: Sequence[Sequence[Route]]

    @property
    def counts(self) -> str:
        """The column of the store that is the reward."""
        if isinstance(self.scorer, LoglikScorer):
            return "acc" if self.task.only_acc else self.scorer.metric
        return self.scorer.reader or "correct"


Verdicts = list[dict[Route, Verdict]]  # of each question of an `Ask`


@dataclass
class Bench:
    """A model, the run folder whose store it asks for, and where questions are asked.

    Attributes:
        resources: of `drllm.model.executors.settled`.
        place: of `opened`; None: this process.
    """

    routed: RoutedModel
    run: Path
    resources: Resources
    place: Workplace | None = None

    @cached_property
    def weights(self) -> str:
        """The base's fingerprint, once: it reads every tensor."""
        return self.routed.fingerprint

    @cached_property
    def store(self) -> Store:
        """The run's verdicts."""
        store = Store(RunFolder(self.run).verdicts.resolve())  # Ray's actors start in another folder
        store.shards.clear_partials()
        return store

    @cached_property
    def decided(self) -> Decided:
        """The run's decisions."""
        return Decided(RunFolder(self.run).decided.resolve())

    def conditions(self, scorer: Scorer) -> Conditions:
        """All that this scorer's verdicts depend on beside question and route."""
        dtype = self.routed.model.dtype
        device = "cuda" if self.resources.executor == "ray" and self.resources.worker_gpus else self.routed.device.type
        words = [device, f"{scorer.max_step_tokens} tokens a step"]
        # Matrix products of 16-bit types on the CPU round by how they are shared out.
        words += [f"{self.resources.threads} threads"] if device == "cpu" and dtype.itemsize == 2 else []
        words += ["packed choices"] if scorer.packed else []
        if not isinstance(scorer, LoglikScorer):
            words += [f"{scorer.max_new_tokens} new tokens", f"{DECODED_ANSWERS} decoded together"]
            words += ["each to its end"] if scorer.to_the_end else []  # else its tokens are not counted
        return Conditions(self.weights, str(dtype), scorer.reward, asked_how(scorer)[0], ", ".join(words))

    def ensure(self, asks: Sequence[Ask], label: str) -> list[Verdicts]:
        """The verdict of every question along each of its routes: looked up, or computed and kept."""
        jobs: list[Job] = []
        tickets: list[Ticket] = []
        n_questions = n_done = 0
        for ask in asks:
            known = self.known(ask)
            names: dict[int, str] = {}
            conditions, n_questions = self.conditions(ask.scorer), n_questions + len(ask.questions)
            for index, places in enumerate(_units(ask)):
                left = [_missing(ask.questions[place], ask.routes[place], known) for place in places]
                if not any(left):
                    n_done += len(places)
                    continue
                group = [
                    Wanted(ask.split, ask.questions[place].example, routes) for place, routes in zip(places, left, strict=True) if routes
                ]
                n_done += len(places) - len(group)
                pairs = [(ask.questions[place].digest, list(map(str, routes))) for place, routes in zip(places, left, strict=True)]
                names[index] = json_digest([vars(conditions), pairs])
                tickets.append(Ticket(len(jobs), index, group, max(ask.questions[place].n_tokens for place in places)))
            if names:
                most = max(len(set(routes)) for routes in ask.routes)
                made = (ask.task, ask.config, ask.scorer.packed, ask.scorer.shares_across_groups)
                jobs.append(_Listed(*made, self.store.shards.folder, conditions, names, most))
        self.do(jobs, tickets, label, n_questions, n_done)
        return [_picked(ask, self.known(ask)) for ask in asks]

    def known(self, ask: Ask) -> dict[str, dict[Route, Verdict]]:
        """What the store holds of these questions, by digest and route."""
        return self.store.find(self.conditions(ask.scorer), [question.digest for question in ask.questions], ask.counts)

    def decide(self, ask: Ask, policies: Sequence[RouteSource | None], label: str) -> list[list[Route]]:
        """One route a question, by each policy; None is the base. What was decided before is looked up."""
        conditions, digests = self.conditions(ask.scorer), [question.digest for question in ask.questions]
        keys = [decision_key(policy, len(digests)) for policy in policies]
        known = {key: self.decided.find(key, conditions, digests) for key in keys if key}
        open_ = {
            key: policy for key, policy in zip(keys, policies, strict=True) if key and policy is not None and known[key].keys() < {*digests}
        }
        if open_:
            parts = range(0, len(digests), DECIDED_TOGETHER)
            groups = {index: ask.questions[at : at + DECIDED_TOGETHER] for index, at in enumerate(parts)}
            left = {index: group for index, group in groups.items() if any(one.digest not in known[key] for one in group for key in open_)}
            asked = {index: [Asked(ask.task.name, ask.split, one.example.id, one.digest) for one in group] for index, group in left.items()}
            made = (ask.task, ask.config, ask.scorer.packed, ask.scorer.shares_across_groups)
            job = _Deciding(*made, self.decided.shards.folder, conditions, open_, asked)
            tickets = [Ticket(0, index, [Wanted(ask.split, one.example) for one in group]) for index, group in left.items()]
            self.do([job], tickets, label, len(digests), len(digests) - sum(map(len, left.values())))
            known |= {key: self.decided.find(key, conditions, digests) for key in open_}
        prompts = [question.context_ids for question in ask.questions]
        unkept = [None if key else policy for key, policy in zip(keys, policies, strict=True)]
        told = decide_routes(self.routed, unkept, prompts, ask.scorer.max_step_tokens)
        return [[known[key][one] for one in digests] if key else routes for key, routes in zip(keys, told, strict=True)]

    def answers(self, ask: Ask, policies: Sequence[RouteSource | None], label: str) -> list[tuple[list[Verdict], list[Route]]]:
        """(verdicts, routes) of each policy on an ask's questions: what they decide, then what that answers."""
        alone = {id(policy): policy for policy in policies if policy is not None and policy.evaluate_only}
        if alone:  # such a policy decides no route, so there is no row to keep
            return [
                alone[id(policy)].answer(ask.scorer, ask.questions) if id(policy) in alone else self.answers(ask, [policy], label)[0]
                for policy in policies
            ]
        routes = self.decide(ask, policies, label)
        [found] = self.ensure([replace(ask, routes=list(zip(*routes, strict=True)))], label)
        return [([one[route] for one, route in zip(found, mine, strict=True)], mine) for mine in routes]

    def do(
        self,
        jobs: Sequence[Job],
        tickets: Sequence[Ticket],
        label: str,
        n_questions: int,
        n_done: int,
        notes: Sequence[str] = (),
        is_wanted: Callable[[Job], bool] = lambda job: True,
    ) -> None:
        """Do groups of some jobs, here or by workers, with one bar over the questions of all.

        `is_wanted` is asked before a group is begun. Raises `DrllmError` for a group that kills its workers, `ArtifactError` for a replica
        that is not the model of this process.
        """
        if not tickets:
            for note in notes:
                say(note)
            return
        # The longest first: what does not fit memory shows at once, and towards the end no worker is left with a long one.
        if not jobs[0].in_order:
            tickets = sorted(tickets, key=lambda ticket: -ticket.n_tokens)
        with Progress(label, n_questions) as progress:
            for note in notes:
                progress.print(note)
            progress.resume(n_done)
            if self.place is None:
                self._do_here(jobs, tickets, progress, is_wanted)
            else:
                self._do_there(self.place, jobs, tickets, progress, is_wanted)

    def _do_here(self, jobs: Sequence[Job], tickets: Sequence[Ticket], progress: Progress, is_wanted: Callable[[Job], bool]) -> None:
        for number, job in enumerate(jobs):
            replica = Replica(self.routed, jobs, self.resources)  # the states that its scorer keeps go with it
            groups = {ticket.index: ticket.group for ticket in tickets if ticket.job == number}
            wanted = takewhile(lambda _, job=job: is_wanted(job), groups.items())
            with memory_in_one_line():
                for index in job.do(replica, wanted, lambda judged: progress.tell(str(judged))):
                    progress.advance(len(groups[index]))

    def _do_there(
        self, place: Workplace, jobs: Sequence[Job], tickets: Sequence[Ticket], progress: Progress, is_wanted: Callable[[Job], bool]
    ) -> None:
        def describe(_: int, ticket: Ticket) -> str:
            names = ", ".join(wanted.example.id for wanted in ticket.group[:3])
            return f"{jobs[ticket.job].task.name}: group {ticket.index} ({names}, ...)"

        def is_done(number: int) -> bool:
            return jobs[tickets[number].job].is_done(tickets[number].index)

        enough = set[int]()

        def wanted(number: int) -> bool:
            job = tickets[number].job
            if job not in enough and not is_wanted(jobs[job]):
                enough.add(job)
            return job not in enough

        together = any(job.shares_across_groups for job in jobs)
        most = max(len(ticket.group) for ticket in tickets)
        at_once = max(1, 2 * max(job.at_once(self.resources) for job in jobs) // most) if together else 1
        work = Work(
            is_done, describe, progress.print, at_once, lambda told: progress.tell(str(Judged.of_all(told)) if told else ""), wanted
        )
        given = (Base.of(self.routed, self.resources), list(jobs), self.resources)
        for number in work_on(place, Replica, given, list(enumerate(tickets)), self.resources, work):
            progress.advance(len(tickets[number].group))


def _units(ask: Ask) -> Iterator[list[int]]:
    """Places of the questions of each shard, whatever of it is known: as many questions as have `UNIT` evaluations, one at least."""
    unit: list[int] = []
    size = 0
    for place, routes in enumerate(ask.routes):
        if unit and size + len(routes) > UNIT:
            yield unit
            unit, size = [], 0
        unit.append(place)
        size += len(routes)
    if unit:
        yield unit


def _missing(question: Question, routes: Sequence[Route], known: Mapping[str, Mapping[Route, Verdict]]) -> tuple[Route, ...]:
    there = known[question.digest]
    return tuple(route for route in dict.fromkeys(routes) if route not in there)


def _picked(ask: Ask, known: Mapping[str, Mapping[Route, Verdict]]) -> Verdicts:
    found = [known[question.digest] for question in ask.questions]
    return [{route: there[route] for route in routes} for there, routes in zip(found, ask.routes, strict=True)]


@contextmanager
def asking(routed: RoutedModel, run: Path, resources: Resources, scanning: bool = False) -> Iterator[Bench]:
    """A bench to ask at while this is open: its workers are started once, and torch's threads are those asked for."""
    resources = settled(routed, resources, scanning)
    with torch_threads(resources.threads), opened(routed, resources) as place:
        yield Bench(routed, run, resources, place)


def asking_here(routed: RoutedModel, run: Path) -> Bench:
    """A bench in this process, with torch's threads as they are."""
    return Bench(routed, run, replace(settled(routed, Resources(executor="local")), executor="local"))
