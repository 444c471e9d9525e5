"""A Ray cluster's actors, one a model replica: jobs are pulled by whoever is free. The only module that imports Ray.

Each actor writes what it makes to files, so the run folder must lie where all nodes see it. An actor gets jobs only once it runs, so no
job waits for an actor the cluster cannot place. A dead actor's unfinished jobs go back to the queue, for whoever is free, and a new actor
takes its place; a job that three actors died of is refused.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError, DrllmError, InputError, first_line
from drllm.model.routed import RoutedModel

MAX_DEATHS = 3  # of actors while they held one job
LOADING = -1  # what an actor without jobs is at
PATIENCE = 60.0  # seconds without any news after which one says what is waited for


@dataclass(frozen=True)
class Base:
    """What an actor needs to load the very model that the work is for."""

    base_id: str
    dtype: torch.dtype
    device: str
    fingerprint: str

    @classmethod
    def of(cls, routed: RoutedModel, resources: Resources) -> Base:
        """The model of this process, as the actors are to load it."""
        device = "cuda" if resources.worker_gpus else str(routed.device)
        return cls(routed.base_id, routed.model.dtype, device, routed.fingerprint)

    def load(self, threads: int) -> RoutedModel:
        """The model, in an actor; `ArtifactError` where its weights are others."""
        torch.set_num_threads(threads)
        routed = RoutedModel.wrap(self.base_id, dtype=self.dtype, device=self.device)
        if routed.fingerprint != self.fingerprint:
            raise ArtifactError(f"a worker loads other weights as {self.base_id!r} than this process: give every node the same model")
        return routed


@dataclass(frozen=True)
class Work:
    """What the actors' jobs are."""

    is_done: Callable[[int], bool]  # whether a job's file is there, by index
    describe: Callable[[int, Any], str]  # a job in words, for errors
    say: Callable[[str], None]  # is told what is waited for
    at_once: int = 1  # jobs that an actor is given together, at most


Jobs = list[tuple[int, Any]]  # (index, job)


def work_on_ray(actor: type, arguments: tuple[Any, ...], todo: Jobs, resources: Resources, work: Work) -> Iterator[int]:
    """Have the actors of the `connected` cluster do jobs: the index of each, when its file is written.

    Args:
        todo: jobs with their indices.
        work: how a job is known to be done, and what to call it.
        actor: made with `arguments`; `work([(index, job), ...])` does some jobs. Without jobs it loads its model, no more, so that a
            refusal reaches this process as such.
        resources: how many actors, and what each takes of the cluster.

    Raises `DrllmError` for a job that kills its actors, and what an actor refuses.
    """
    pool = _RayPool(actor, arguments, deque(todo), resources, work)
    try:
        for _ in range(min(resources.workers, len(pool.waiting))):
            pool.start_actor()
        # Actors that are still to come up are not waited for when there is nothing left to assign.
        while pool.waiting or any(jobs for _, jobs in pool.calls.values()):
            yield from pool.next_done()
            pool.assign()
    finally:  # the next task's actors need the room of these
        for actor in [*pool.free, *(actor for actor, _ in pool.calls.values())]:
            pool.ray.kill(actor)


class _RayPool:
    """Actors, what each is at, and the jobs that wait for one."""

    def __init__(self, actor: type, arguments: tuple[Any, ...], waiting: deque[tuple[int, Any]], resources: Resources, work: Work):
        self.ray, self.died = _ray()
        options = {"num_cpus": max(1, resources.threads), "num_gpus": resources.worker_gpus, "max_restarts": 0}
        self.actor_class = self.ray.remote(actor).options(**options)
        self.shared = self.ray.put(arguments)
        self.waiting, self.n_workers, self.work = waiting, resources.workers, work
        self.deaths = Counter[int]()  # of actors while they held a job, by its index
        self.calls: dict[Any, tuple[Any, Jobs]] = {}  # (actor, jobs) by call; no jobs: an actor that is still to come up
        self.free: list[Any] = []

    def start_actor(self) -> None:
        """A new actor; its first call ends when it has loaded the model."""
        actor = self.actor_class.remote(*self.ray.get(self.shared))
        self.calls[actor.work.remote([])] = (actor, [])

    def assign(self) -> None:
        """The next jobs for each free actor; fewer towards the end, so that none works long after the others."""
        while self.free and self.waiting:
            actor, share = self.free.pop(), -(-len(self.waiting) // (2 * self.n_workers))
            jobs = [self.waiting.popleft()]
            # A job that was under way when an actor died goes alone: so the one to blame is found, and only that one.
            while len(jobs) < min(self.work.at_once, share) and not any(self.deaths[index] for index, _ in (jobs[0], self.waiting[0])):
                jobs.append(self.waiting.popleft())
            self.calls[actor.work.remote(jobs)] = (actor, jobs)

    def next_done(self) -> Iterator[int]:
        """Wait for the next call that ends: the indices of its jobs whose files are written. Nothing when none ends for a while."""
        ready, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=PATIENCE)
        if not ready:
            if n_coming := sum(not jobs for _, jobs in self.calls.values()):
                self.work.say(f"waiting for {n_coming} of {self.n_workers} workers: the cluster has no room yet, or the model loads slowly")
            return
        actor, jobs = self.calls.pop(ready[0])
        try:
            self.ray.get(ready[0])
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DrllmError | OSError):
                raise error.cause from None
            raise
        except self.died as error:
            jobs = self._replace(actor, jobs, first_line(error))
        else:
            self.free.append(actor)
            self.deaths[LOADING] = 0
        for index, job in jobs:
            if not self.work.is_done(index):
                what = self.work.describe(index, job)
                raise InputError(f"a worker wrote {what}, but not where --out is here: give one that all nodes share")
            yield index

    def _replace(self, actor: Any, jobs: Jobs, why: str) -> Jobs:
        """A new actor for one that died; its unfinished jobs wait again. Returns the finished ones; refuses what ended too many actors."""
        self.ray.kill(actor)
        lost = [(index, job) for index, job in jobs if not self.work.is_done(index)]
        blamed = lost if jobs else [(LOADING, None)]
        self.deaths.update(index for index, _ in blamed)
        for index, job in blamed:
            if self.deaths[index] >= MAX_DEATHS:
                what = "loading the model" if index == LOADING else self.work.describe(index, job)
                raise DrllmError(f"{what} ended {MAX_DEATHS} workers ({why}): give them more memory, or a smaller --pool-size")
        self.waiting.extendleft(reversed(lost))
        self.start_actor()
        gone = {index for index, _ in lost}
        return [(index, job) for index, job in jobs if index not in gone]


@contextmanager
def connected(routed: RoutedModel, resources: Resources) -> Iterator[None]:
    """A cluster to work on while this is open: joined, started here, or the one that this process is connected to already.

    Raises `InputError`, before any work, when Ray is not installed, no cluster is at the address, there is no such GPU, or the model exists
    in this process only.
    """
    ray, _ = _ray()
    if not routed.base_id:
        raise InputError("the model exists in this process only, Ray workers cannot load it: wrap it by its id, folder or file")
    if ray.is_initialized():
        yield
        return
    _connect(ray, resources)
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> tuple[Any, tuple[type[Exception], ...]]:
    """Ray, and what it raises when an actor died."""
    try:  # an extra: the type checker does not find it where only the library itself is installed
        import ray  # pyright: ignore[reportMissingImports]
        from ray import exceptions  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("--executor ray needs Ray: pip install '.[ray]' in a clone of drllm") from None
    died = (exceptions.RayActorError, exceptions.OutOfMemoryError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)
    return ray, died


def _connect(ray: Any, resources: Resources) -> None:
    """Join the cluster at the address, or start one here with room for the workers."""
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    if not resources.address:
        if resources.worker_gpus and not torch.cuda.is_available():
            raise InputError(f"--worker-gpus {resources.worker_gpus:g}: there is no GPU here, leave it out or give a cluster's --address")
        ray.init(num_cpus=max(1, resources.threads) * resources.workers, num_gpus=None, **quiet)
        return
    host, _, port = resources.address.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray itself takes minutes to find that nobody listens
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=resources.address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        why = f"no Ray cluster at {resources.address!r} ({first_line(error)})"
        raise InputError(f"{why}: start one with `ray start --head`, or leave --address out") from None
