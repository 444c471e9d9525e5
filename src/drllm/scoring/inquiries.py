"""Groups of questions through one worker's scorers, several at once, each question told what the store knows before the model is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.route import Route
from drllm.model.load import is_out_of_memory
from drllm.model.pool import Base
from drllm.model.routed import RoutedModel
from drllm.runs.store import Asked, Conditions, Store, Verdict
from drllm.scoring.base import Question
from drllm.scoring.scorer import Scorer, scorer_of
from drllm.tasks import Example, Task

AT_ONCE = 256  # evaluations of one question under way, when no verdict decides what comes next
IN_FLIGHT = 512  # evaluations that keep a replica's steps full
BESIDE_A_STRATEGY = 2  # while a strategy waits for a verdict: the routes that it does not decide keep pace with it


class Wanted(NamedTuple):
    """A question of a group, and the routes it is asked along whatever comes out."""

    split: str
    example: Example
    routes: tuple[Route, ...] = ()


class Ticket(NamedTuple):
    """One group of one job: what a worker is given."""

    job: int  # its place among the jobs
    index: int  # of the group
    group: Sequence[Wanted]
    n_tokens: int = 0  # of its longest question


@dataclass(frozen=True)
class Job(ABC):
    """Asks the questions of one task along routes, in groups; a worker is sent it whole."""

    task: Task
    config: Any  # how answers are judged: reward, metric, max_new_tokens, max_step_tokens
    packed: bool  # how this process packs choices, which every worker must
    shares_across_groups: bool  # whether groups are under way together
    store: Path  # the folder of the shards that its groups write
    conditions: Conditions  # under which routes are asked

    @abstractmethod
    def inquire(self, replica: Replica, question: Question, wanted: Wanted) -> Inquiry:
        """What is asked of one question."""

    @abstractmethod
    def finish(self, replica: Replica, index: int, inquiries: list[Inquiry]) -> None:
        """Write what a group answered."""

    @abstractmethod
    def is_done(self, index: int) -> bool:
        """Whether the file of a group is there."""

    @property
    @abstractmethod
    def most_routes(self) -> int:
        """Routes judged on a question, at most, for who waits."""

    @property
    def in_order(self) -> bool:
        """Whether groups are to be begun in the order in which they are given."""
        return False

    def at_once(self, resources: Resources) -> int:
        """Questions that are under way in one replica."""
        return resources.pool_size

    def do(
        self, replica: Replica, groups: Iterable[tuple[int, Sequence[Wanted]]], tell: Callable[[str], None] = lambda note: None
    ) -> Iterator[int]:
        """Do some groups, each with its index: the index of each that is done and written. `tell` hears how far those under way are."""
        for index, inquiries in _Stream(self, replica).run(groups, tell):
            self.finish(replica, index, inquiries)
            yield index


@dataclass(frozen=True)
class Listed(Job):
    """Routes that are given."""

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


class Replica:
    """One worker: a model, and the scorers of what it was given."""

    def __init__(self, base: Base | RoutedModel, jobs: Sequence[Job], resources: Resources):
        self._base, self._jobs, self.resources = base, jobs, resources
        self._scorers: dict[int, Scorer] = {}
        self.kept: dict[Any, Any] = {}  # what a job keeps from one group to the next

    @property
    def routed(self) -> RoutedModel:
        """Its model, loaded when it is needed."""
        return self._base.load(self.resources.threads, self.resources.workers) if isinstance(self._base, Base) else self._base

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
                for _ in self._jobs[number].do(self, groups):
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


@dataclass
class Inquiry:
    """One question under way.

    A strategy says which route to ask next: `ask()` (None at the end), `tell(route, correct, margin)`, and `evaluated`, those told, the
    base's first.
    """

    question: Question
    asked: Asked
    others: list[Route]  # that no verdict decides, the last one first, still to be asked
    strategy: Any = None
    pending: Route | None = None  # what the strategy waits for; None when it is done, or there is none
    verdicts: dict[Route, Verdict] = field(default_factory=dict)  # those that the store knew among them
    running: set[Route] = field(default_factory=set)
    new: list[Route] = field(default_factory=list)  # those that were computed, in the order in which they came

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


class _Stream:
    def __init__(self, job: Job, replica: Replica):
        self.job, self.replica, self.scorer = job, replica, replica.scorer(job)
        self.n_running = 0

    def run(self, groups: Iterable[tuple[int, Sequence[Wanted]]], tell: Callable[[str], None]) -> Iterator[tuple[int, list[Inquiry]]]:
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
            n, most = sum(len(inquiry.new) for inquiry in running.values()), len(running) * self.job.most_routes
            tell(f"({n:,} of at most {most:,} routes judged on the questions under way)")  # a search may stop early or meet one again
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
        inquiry.running.remove(route)
        self.n_running -= 1
        inquiry.verdicts[route] = verdict
        inquiry.new.append(route)
        inquiry.proceed()
        self._submit(handle, inquiry)


def write_new(store: Store, name: str, conditions: Conditions, inquiries: Sequence[Inquiry]) -> None:
    """Append what a group had to compute, question by question, routes in the order of their text."""
    store.write(name, conditions, [(one.asked, route, one.verdicts[route]) for one in inquiries for route in sorted(one.new, key=str)])
