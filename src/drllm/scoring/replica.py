"""One worker: a model, the jobs it may be given groups of, and their scorers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.route import Route
from drllm.model.load import is_out_of_memory
from drllm.model.pool import Base
from drllm.model.routed import RoutedModel
from drllm.runs.store import Conditions
from drllm.scoring.scorer import Scorer, scorer_of
from drllm.tasks import Example, Task


class Wanted(NamedTuple):
    """A question of a group, and the routes it is asked along whatever comes out."""

    split: str
    example: Example
    routes: tuple[Route, ...] = ()


class Judged(NamedTuple):
    """How far the groups under way are: routes judged, of how many at most (a search may stop early or meet a route again)."""

    n: int
    at_most: int

    def __str__(self) -> str:
        return f"({self.n:,} of at most {self.at_most:,} routes judged on the questions under way)"


def nobody(judged: Judged) -> None:
    """Who hears of it where nobody asked."""


@dataclass(frozen=True)
class Job(ABC):
    """What is done with the questions of one task, in groups; a worker is sent it whole."""

    task: Task
    config: Any  # how answers are judged: reward, metric, max_new_tokens, max_step_tokens
    packed: bool  # how this process packs choices, which every worker must
    shares_across_groups: bool  # whether groups are under way together
    store: Path  # the folder of the shards that its groups write
    conditions: Conditions  # under which routes are asked

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


class Ticket(NamedTuple):
    """One group of one job: what a worker is given."""

    job: int  # its place among the jobs
    index: int  # of the group
    group: Sequence[Wanted]
    n_tokens: int = 0  # of its longest question


class Replica:
    """One worker: a model, and the scorers of what it was given."""

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
                for _ in self._jobs[number].do(self, groups, nobody):
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
