"""Questions under way: several groups at once through one scorer, each question told what the store knows before the model is asked.

A group may carry a strategy that says which route to ask next (`drllm.searching`): it is told what is known, and asks for the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from drllm.core.route import Route
from drllm.runs.store import Asked, Conditions, Store, Verdict
from drllm.scoring.base import Question
from drllm.scoring.replica import Job, Judged, Replica, Wanted

AT_ONCE = 256  # evaluations of one question under way, when no verdict decides what comes next
BESIDE_A_STRATEGY = 2  # while a strategy waits for a verdict: the routes that it does not decide keep pace with it


class Strategy(Protocol):
    """Says which route of a question to ask next; `evaluated` are those told, the base's first."""

    evaluated: list[Any]

    def ask(self) -> Route | None:
        """The next route; None at the end."""
        ...

    def tell(self, route: Route, correct: bool, margin: float) -> None:
        """The verdict on it."""
        ...


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


def write_new(store: Store, name: str, conditions: Conditions, inquiries: Sequence[Inquiry]) -> None:
    """Append what a group had to compute, question by question, routes in the order of their text."""
    rows = [(one.asked, route, one.verdicts[route]) for one in inquiries for route in sorted(one.new, key=str)]
    store.write(name, conditions, rows)
