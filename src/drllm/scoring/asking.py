"""The one way of asking: `Bench.ensure(questions, routes)` looks verdicts up in the run's store, computes what is missing, and keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from drllm.core.config import Resources
from drllm.core.digest import json_digest
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.model.onednn import laid_out
from drllm.model.pool import Base, Processes, Work, opened, settled, torch_threads, work_on
from drllm.model.routed import RoutedModel
from drllm.policies.policy import RouteSource
from drllm.runs.layout import RunFolder
from drllm.runs.store import Asked, Conditions, Decided, Store, Verdict
from drllm.scoring.base import Question
from drllm.scoring.generated import DECODED_ANSWERS
from drllm.scoring.inquiries import Job, Listed, Replica, Ticket, Wanted, memory_in_one_line
from drllm.scoring.loglik import LoglikScorer
from drllm.scoring.route_prediction import decide_routes, decision_key
from drllm.scoring.scorer import Scorer, asked_how
from drllm.tasks import Task

UNIT = 256  # evaluations of a shard, unless one question has more
DECIDED_TOGETHER = 64  # questions that policies decide between two writes


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


IsWanted = Callable[[Job], bool]
Verdicts = list[dict[Route, Verdict]]  # of each question of an `Ask`


@dataclass
class Bench:
    """A model, the run folder whose store it asks for, and where questions are asked.

    They are asked in groups, each of which ends in one shard that is whole or absent: what is killed loses the groups under way. Several
    are under way at once, so that steps are full; but generated answers round by what is decoded together, so of those one group is.
    """

    routed: RoutedModel
    run: Path
    resources: Resources  # of `drllm.model.pool.settled`
    place: Processes | None = None  # of `opened`; None: this process

    @cached_property
    def weights(self) -> str:
        """The base's fingerprint, once: it reads every tensor."""
        return self.routed.fingerprint

    @cached_property
    def store(self) -> Store:
        store = Store(RunFolder(self.run).verdicts)
        store.shards.clear_partials()
        return store

    @cached_property
    def decided(self) -> Decided:
        decided = Decided(RunFolder(self.run).decided)
        decided.shards.clear_partials()
        return decided

    @property
    def rounds_by_threads(self) -> bool:
        """Whether threads can flip a verdict: matrix products of 16-bit types on the CPU round by how they are shared out."""
        return self.routed.device.type == "cpu" and self.routed.model.dtype.itemsize == 2

    def conditions(self, scorer: Scorer) -> Conditions:
        """All that this scorer's verdicts depend on beside question and route."""
        words = [self.routed.device.type, f"{scorer.max_step_tokens} tokens a step"]
        words += [f"{self.resources.threads} threads"] if self.rounds_by_threads else []
        words += ["packed choices"] if scorer.packed else []
        if not isinstance(scorer, LoglikScorer):
            words += [f"{scorer.max_new_tokens} new tokens", f"{DECODED_ANSWERS} decoded together"]
            words += ["each to its end"] if scorer.to_the_end else []  # else its tokens are not counted
        return Conditions(self.weights, str(self.routed.model.dtype), scorer.reward, asked_how(scorer)[0], ", ".join(words))

    def ensure(self, asks: Sequence[Ask], label: str) -> list[Verdicts]:
        """The verdict of every question along each of its routes: looked up, or computed and kept."""
        jobs: list[Job] = []
        tickets: list[Ticket] = []
        for ask in asks:
            known, conditions, names = self.known(ask), self.conditions(ask.scorer), dict[int, str]()
            for index, unit in enumerate(_units(ask)):
                left = [(one, tuple(route for route in dict.fromkeys(routes) if route not in known[one.digest])) for one, routes in unit]
                if group := [Wanted(ask.split, question.example, routes) for question, routes in left if routes]:
                    names[index] = json_digest([vars(conditions), [(question.digest, list(map(str, routes))) for question, routes in left]])
                    tickets.append(Ticket(len(jobs), index, group, max(question.n_tokens for question, _ in unit)))
            if names:
                most = max(len(set(routes)) for routes in ask.routes)
                made = (ask.task, ask.config, ask.scorer.packed, ask.scorer.shares_across_groups)
                jobs.append(Listed(*made, self.store.shards.folder, conditions, names, most))
        n_questions = sum(len(ask.questions) for ask in asks)
        self.do(jobs, tickets, label, n_questions, n_questions - sum(len(ticket.group) for ticket in tickets))
        found = []
        for ask in asks:
            known = self.known(ask)
            found.append(
                [{route: known[one.digest][route] for route in routes} for one, routes in zip(ask.questions, ask.routes, strict=True)]
            )
        return found

    def known(self, ask: Ask) -> dict[str, dict[Route, Verdict]]:
        """What the store holds of these questions, by digest and route."""
        return self.store.find(self.conditions(ask.scorer), [question.digest for question in ask.questions], ask.counts)

    def decide(self, ask: Ask, policies: Sequence[RouteSource | None], label: str) -> list[list[Route]]:
        """One route a question, by each policy; None is the base. What was decided before is looked up."""
        conditions, digests = self.conditions(ask.scorer), [question.digest for question in ask.questions]
        keys = [decision_key(policy) for policy in policies]
        known = {key: self.decided.find(key, conditions, digests) for key in keys if key}
        open_ = {
            key: policy for key, policy in zip(keys, policies, strict=True) if key and policy is not None and known[key].keys() < {*digests}
        }
        groups = [ask.questions[at : at + DECIDED_TOGETHER] for at in range(0, len(digests), DECIDED_TOGETHER)]
        left = [group for group in groups if any(one.digest not in known[key] for one in group for key in open_)]
        # It is decided here: the cores of the workers are free, unless the number of threads can flip a decision.
        threads = 0 if self.place is None or self.rounds_by_threads else self.resources.workers * self.resources.threads
        if left:
            with Progress(label, len(digests)) as progress, memory_in_one_line(), torch_threads(threads):
                progress.resume(len(digests) - sum(map(len, left)))
                for group in left:
                    asked = [Asked(ask.task.name, ask.split, one.example.id, one.digest) for one in group]
                    prompts = [one.context_ids for one in group]
                    told = decide_routes(self.routed, list(open_.values()), prompts, ask.scorer.max_step_tokens)
                    for key, routes in zip(open_, told, strict=True):
                        self.decided.write(key, conditions, list(zip(asked, routes, strict=True)))
                    progress.advance(len(group))
            known |= {key: self.decided.find(key, conditions, digests) for key in open_}
        prompts = [question.context_ids for question in ask.questions]
        unkept = [None if key else policy for key, policy in zip(keys, policies, strict=True)]
        told = decide_routes(self.routed, unkept, prompts, ask.scorer.max_step_tokens)
        return [[known[key][one] for one in digests] if key else routes for key, routes in zip(keys, told, strict=True)]

    def answers(self, ask: Ask, policies: Sequence[RouteSource | None], label: str) -> list[tuple[list[Verdict], list[Route]]]:
        """(verdicts, routes) of each policy on an ask's questions: what they decide, then what that answers."""
        routes = self.decide(ask, policies, label)
        [found] = self.ensure([replace(ask, routes=list(zip(*routes, strict=True)))], label)
        return [([one[route] for one, route in zip(found, mine, strict=True)], mine) for mine in routes]

    def do(
        self, jobs: Sequence[Job], tickets: Sequence[Ticket], label: str, n_questions: int, n_done: int, wanted: IsWanted = lambda job: True
    ) -> None:
        """Do groups of some jobs, here or by workers, with one bar over the questions of all.

        `wanted` is asked before a group is begun. Raises `DrllmError` for a group that kills its workers, `ArtifactError` for a replica
        that is not the model of this process.
        """
        if not tickets:
            return
        # The longest first: what does not fit memory shows at once, and towards the end no worker is left with a long one.
        if not jobs[0].in_order:
            tickets = sorted(tickets, key=lambda ticket: -ticket.n_tokens)
        with Progress(label, n_questions) as progress:
            progress.resume(n_done)
            if self.place is None:
                self._do_here(jobs, tickets, progress, wanted)
            else:
                self._do_there(self.place, jobs, tickets, progress, wanted)
                self.store.shards.clear_partials()  # what a worker that was killed left half written

    def _do_here(self, jobs: Sequence[Job], tickets: Sequence[Ticket], progress: Progress, is_wanted: IsWanted) -> None:
        with memory_in_one_line(), laid_out(self.routed.model):
            for number, job in enumerate(jobs):
                replica = Replica(self.routed, jobs, self.resources)  # the states that its scorer keeps go with it
                groups = {ticket.index: ticket.group for ticket in tickets if ticket.job == number}
                wanted = takewhile(lambda _, job=job: is_wanted(job), groups.items())
                for index in job.do(replica, wanted, progress.tell):
                    progress.advance(len(groups[index]))

    def _do_there(self, place: Processes, jobs: Sequence[Job], tickets: Sequence[Ticket], progress: Progress, is_wanted: IsWanted) -> None:
        def describe(_: int, ticket: Ticket) -> str:
            names = ", ".join(wanted.example.id for wanted in ticket.group[:3])
            return f"{jobs[ticket.job].task.name}: group {ticket.index} ({names}, ...)"

        enough = set[int]()

        def wanted(number: int) -> bool:
            job = tickets[number].job
            if job not in enough and not is_wanted(jobs[job]):
                enough.add(job)
            return job not in enough

        together = any(job.shares_across_groups for job in jobs)
        most = max(len(ticket.group) for ticket in tickets)
        at_once = max(1, 2 * max(job.at_once(self.resources) for job in jobs) // most) if together else 1
        work = Work(lambda number: jobs[tickets[number].job].is_done(tickets[number].index), describe, at_once, wanted)
        given = (Base.of(self.routed), list(jobs), self.resources)
        for number in work_on(place, Replica, given, list(enumerate(tickets)), self.resources, work):
            progress.advance(len(tickets[number].group))


def _units(ask: Ask) -> Iterator[list[tuple[Question, Sequence[Route]]]]:
    """Questions and routes of each shard, whatever of it is known: as many questions as have `UNIT` evaluations, one at least."""
    unit: list[tuple[Question, Sequence[Route]]] = []
    size = 0
    for question, routes in zip(ask.questions, ask.routes, strict=True):
        if unit and size + len(routes) > UNIT:
            yield unit
            unit, size = [], 0
        unit.append((question, routes))
        size += len(routes)
    if unit:
        yield unit


@contextmanager
def asking(routed: RoutedModel, run: Path, resources: Resources, scanning: bool = False) -> Iterator[Bench]:
    """A bench to ask at while this is open: its workers are started once, and torch's threads are those asked for."""
    resources = settled(routed, resources, scanning)
    with torch_threads(resources.threads), opened(routed, resources) as place:
        yield Bench(routed, run, resources, place)


def asking_here(routed: RoutedModel, run: Path) -> Bench:
    """A bench in this process, with torch's threads as they are."""
    return Bench(routed, run, settled(routed, Resources(executor="local")))
