"""The search by workers: they pull groups of questions, of all tasks together, and write their shards (`drllm.model.pool`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError
from drllm.core.progress import Progress
from drllm.model.pool import Base, Work, Workplace, work_on
from drllm.model.routed import RoutedModel
from drllm.runs.kept import kept_in
from drllm.runs.records import shard_path, write_shard
from drllm.searching.worker import Group, Job, Judged, Worker, memory_in_one_line, nobody, questions_at_once


@dataclass(frozen=True)
class Prepared:
    """What is left to do of one task.

    Attributes:
        job: what is done with each question.
        folder: of the task's shards.
        packed: how the manifest says that questions are packed.
        shares_across_groups: whether questions of several groups are searched together.
        todo: groups without a shard, with their indices, the longest questions first.
        lengths: tokens of the longest question of each group, by its index.
        n_questions, n_done: of the task, and those that earlier calls have done.
        notes: lines for the reader, such as how many questions are left out.
    """

    job: Job
    folder: Path
    packed: bool
    shares_across_groups: bool
    todo: list[tuple[int, Group]]
    lengths: list[int]
    n_questions: int
    n_done: int
    notes: list[str]

    @property
    def is_wanted(self) -> bool:
        """Whether more groups are to be searched: no, where the search keeps a number of questions and has them."""
        config = self.job.config
        return not config.keep or self.job.routes is not None or not kept_in(self.folder, config).is_enough


class Ticket(NamedTuple):
    """One group of one task: what a worker is given."""

    task: int  # its place among the tasks
    index: int  # of the group
    group: Group


class Replica:
    """One worker: a model, and for each task that it was given a group of what searches it. A place that can hear it sets `tell`."""

    tell: Callable[[Judged], None] = staticmethod(nobody)

    def __init__(self, base: Base, tasks: Sequence[Prepared], resources: Resources):
        self._base, self._tasks, self._resources = base, tasks, resources
        self._workers: dict[int, Worker] = {}

    def work(self, jobs: list[tuple[int, Ticket]]) -> None:
        """Search some groups and write their shards. Without groups the model is loaded, no more."""
        if not jobs:
            self._base.load(self._resources.threads)
        for task in dict.fromkeys(ticket.task for _, ticket in jobs):
            groups = [(ticket.index, ticket.group) for _, ticket in jobs if ticket.task == task]
            with memory_in_one_line():
                for index, records in self._worker(task).search(groups, self.tell):
                    write_shard(self._tasks[task].folder, index, records)

    def _worker(self, task: int) -> Worker:
        if task not in self._workers:
            prepared = self._tasks[task]
            worker = Worker(self._base.load(self._resources.threads), prepared.job, self._resources)
            if worker.scorer.packed != prepared.packed:
                found = f"a worker packs choices into one packed prompt: {worker.scorer.packed}, this process: {prepared.packed}"
                advice = "their attention computes otherwise, give every node the same software and kind of device"
                raise ArtifactError(f"{found}; {advice}")
            self._workers[task] = worker
        return self._workers[task]


@contextmanager
def task_progress(tasks: Sequence[Prepared]) -> Iterator[Progress]:
    """A bar over the questions of some tasks."""
    kind = "search" if tasks[0].job.routes is None else "paths"
    names = [task.job.task.name for task in tasks]
    with Progress(f"{kind} {names[0] if len(names) == 1 else f'{len(names)} tasks'}", sum(task.n_questions for task in tasks)) as progress:
        for task in tasks:
            for note in task.notes:
                progress.print(note)
        progress.resume(sum(task.n_done for task in tasks))
        yield progress


def search_on_workers(place: Workplace, routed: RoutedModel, resources: Resources, tasks: Sequence[Prepared]) -> None:
    """Search what is left of some tasks. The longest questions go first, so that towards the end no worker is left with one.

    Raises `DrllmError` for a group that kills its workers, `ArtifactError` for a replica that is not the model of this process.
    """
    # Ray's actors start in another folder; and no worker needs the others' groups.
    sent = [replace(task, folder=task.folder.resolve(), todo=[], notes=[]) for task in tasks]
    tickets = [Ticket(number, index, group) for number, task in enumerate(tasks) for index, group in task.todo]
    if not tasks[0].job.config.keep:  # else in the order in which they are visited
        tickets.sort(key=lambda ticket: -tasks[ticket.task].lengths[ticket.index])

    def describe(_: int, ticket: Ticket) -> str:
        return f"{tasks[ticket.task].job.task.name}: group {ticket.index} ({', '.join(example.id for _, example in ticket.group[:3])}, ...)"

    def is_done(number: int) -> bool:
        return shard_path(tasks[tickets[number].task].folder, tickets[number].index).is_file()

    enough = set[int]()  # tasks that have what they are to keep

    def wanted(number: int) -> bool:
        task = tickets[number].task
        if task not in enough and not tasks[task].is_wanted:
            enough.add(task)
        return task not in enough

    job, together = tasks[0].job, any(task.shares_across_groups for task in tasks)
    at_once = max(1, 2 * questions_at_once(job, resources) // job.config.group_size) if together else 1
    with task_progress(tasks) as progress:
        work = Work(
            is_done, describe, progress.print, at_once, lambda told: progress.tell(str(Judged.of_all(told)) if told else ""), wanted
        )
        for number in work_on(place, Replica, (Base.of(routed, resources), sent, resources), list(enumerate(tickets)), resources, work):
            progress.advance(len(tickets[number].group))
