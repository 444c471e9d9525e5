"""A pool of workers, one model replica each: jobs are pulled by whoever is free.

Workers are processes of this machine (`drllm.model.process_pool`). Each writes what it makes to files. A worker gets jobs only once it
runs. A dead worker's unfinished jobs go back to the queue, for whoever is free, and a new worker takes its place; a job that three workers
died of is refused.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError, DrllmError, InputError
from drllm.model.process_pool import Jobs, Processes, Worker, WorkerDied
from drllm.model.routed import RoutedModel
from drllm.policies.adapter import Adapter

MAX_DEATHS = 3  # of workers while they held one job
LOADING = -1  # what a worker without jobs is at
PATIENCE = 60.0  # seconds without any news after which one says what is waited for


@dataclass(frozen=True)
class Base:
    """What a worker needs to load the very model that the work is for."""

    base_id: str
    dtype: torch.dtype
    device: str
    fingerprint: str
    adapters: tuple[Adapter, ...] = ()  # of healed routes

    @classmethod
    def of(cls, routed: RoutedModel) -> Base:
        """The model of this process, as the workers are to load it."""
        return cls(routed.base_id, routed.model.dtype, str(routed.device), routed.fingerprint, tuple(routed.adapters.values()))

    def load(self, threads: int) -> RoutedModel:
        """The model, in a worker, which keeps the last one; `ArtifactError` where its weights are others."""
        torch.set_num_threads(threads)
        if self not in _loaded:
            _loaded.clear()
            routed = RoutedModel.wrap(self.base_id, dtype=self.dtype, device=self.device)
            if routed.fingerprint != self.fingerprint:
                raise ArtifactError(f"a worker loads other weights as {self.base_id!r} than this process: did its files change?")
            for adapter in self.adapters:
                routed.adopt(adapter)
            _loaded[self] = routed
        return _loaded[self]


_loaded: dict[Base, RoutedModel] = {}  # in a worker's own process


@dataclass(frozen=True)
class Work:
    """What the workers' jobs are."""

    is_done: Callable[[int], bool]  # whether a job's file is there, by index
    describe: Callable[[int, Any], str]  # a job in words, for errors
    say: Callable[[str], None]  # is told what is waited for
    at_once: int = 1  # jobs that a worker is given together, at most
    wanted: Callable[[int], bool] = lambda index: True  # whether a job is still to be done, asked before it is given away


def work_on(place: Processes, actor: type, arguments: tuple[Any, ...], todo: Jobs, resources: Resources, work: Work) -> Iterator[int]:
    """Have workers do jobs: the index of each, when its file is written.

    Args:
        place: of `drllm.model.executors.opened`.
        actor: made with `arguments`; `work([(index, job), ...])` does some jobs. Without jobs it loads its model, no more, so that a
            refusal reaches this process as such.
        todo: jobs with their indices.
        resources: how many workers, and what each takes.
        work: how a job is known to be done, and what to call it.

    Raises `DrllmError` for a job that kills its workers, and what a worker refuses.
    """
    pool = _Pool(place, actor, arguments, deque(todo), resources, work)
    ended_well = False
    try:
        for _ in range(min(resources.workers, len(pool.waiting))):
            pool.start_worker()
        # Workers that are still to come up are not waited for when there is nothing left to assign.
        while pool.waiting or any(pool.busy.values()):
            yield from pool.next_done()
            pool.assign()
        ended_well = True
    finally:  # the next task's workers need the room of these
        for worker in pool.free if ended_well else []:
            place.idle.append(worker)
        for worker in [*pool.busy, *([] if ended_well else pool.free)]:
            worker.stop(at_once=True)


class _Pool:
    """Workers, what each is at, and the jobs that wait for one."""

    def __init__(self, place: Processes, actor: type, arguments: tuple[Any, ...], waiting: deque[Any], resources: Resources, work: Work):
        self.place, self.actor, self.arguments = place, actor, arguments
        self.waiting, self.resources, self.work = waiting, resources, work
        self.deaths = Counter[int]()  # of workers while they held a job, by its index
        self.busy: dict[Worker, Jobs] = {}  # no jobs: a worker that is still to come up
        self.free: list[Worker] = []

    def start_worker(self) -> None:
        """A new worker; it is free when it has loaded the model."""
        self._give(self.place.start(self.actor, self.arguments), [])

    def _give(self, worker: Worker, jobs: Jobs) -> None:
        worker.send(jobs)
        self.busy[worker] = jobs

    def assign(self) -> None:
        """The next jobs for each free worker; fewer towards the end, so that none works long after the others."""
        while self.free and self._is_waiting():
            share = -(-len(self.waiting) // (2 * self.resources.workers))
            jobs = [self.waiting.popleft()]
            # A job that was under way when a worker died goes alone: so the one to blame is found, and only that one.
            while len(jobs) < min(self.work.at_once, share) and not any(self.deaths[index] for index, _ in (jobs[0], self.waiting[0])):
                jobs.append(self.waiting.popleft())
            self._give(self.free.pop(), jobs)

    def _is_waiting(self) -> bool:
        """Whether a job is still to be given away; those that are not wanted any more are dropped from the front."""
        while self.waiting and not self.work.wanted(self.waiting[0][0]):
            self.waiting.popleft()
        return bool(self.waiting)

    def next_done(self) -> Iterator[int]:
        """Wait for the next worker that ends its jobs: the indices of those whose files are written. Nothing when none ends for a while."""
        ready = wait([worker.pipe for worker in self.busy], PATIENCE)
        worker = next((worker for worker in self.busy if worker.pipe in ready), None)
        if worker is None:
            if n_coming := sum(not jobs for jobs in self.busy.values()):
                self.work.say(f"waiting for {n_coming} of {self.resources.workers} workers: the model loads slowly")
            return
        try:
            worker.finish()
        except WorkerDied as error:
            jobs = self._replace(worker, str(error))
        else:
            jobs = self.busy.pop(worker)
            self.free.append(worker)
            self.deaths[LOADING] = 0
        for index, job in jobs:
            if not self.work.is_done(index):
                what = self.work.describe(index, job)
                raise InputError(f"a worker wrote {what}, but its file is not in --out: was the folder moved or emptied meanwhile?")
            yield index

    def _replace(self, worker: Worker, why: str) -> Jobs:
        """A new worker for one that died; its unfinished jobs wait again. Returns the finished ones; refuses what ended too many."""
        worker.stop(at_once=True)
        jobs = self.busy.pop(worker)
        lost = [(index, job) for index, job in jobs if not self.work.is_done(index)]
        for index, job in lost if jobs else [(LOADING, None)]:
            self.deaths[index] += 1
            if self.deaths[index] >= MAX_DEATHS:
                what = "loading the model" if index == LOADING else self.work.describe(index, job)
                less = "ask for fewer --workers" if index == LOADING else "a smaller --pool-size"
                raise DrllmError(f"{what} ended {MAX_DEATHS} workers ({why}): give them more memory, or {less}")
        self.waiting.extendleft(reversed(lost))
        self.start_worker()
        gone = {index for index, _ in lost}
        return [(index, job) for index, job in jobs if index not in gone]
