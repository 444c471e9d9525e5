"""A Ray cluster's actors, one a model replica: jobs are pulled by whoever is free. The only module that imports Ray.

Each actor writes what it makes to files, so the run folder must lie where all nodes see it. An actor gets jobs only once it runs, so no
job waits for an actor the cluster cannot place. A dead actor's unfinished jobs go back to the queue, for whoever is free, and a new actor
takes its place; a job that three actors died of is refused.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError, DrllmError, InputError
from drllm.model.routed import RoutedModel

MAX_DEATHS = 3  # of actors while they held one job
LOADING = -1  # what an actor without jobs is at
PATIENCE = 60.0  # seconds without any news after which one says what is waited for


@dataclass(frozen=True)
class Base:
    """What an actor needs to load the very model that the work was planned for."""

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


def work_on_ray(
    actor: type,
    arguments: tuple[Any, ...],
    todo: Sequence[tuple[int, Any]],
    resources: Resources,
    at_once: int,
    is_done: Callable[[int], bool],
    describe: Callable[[int, Any], str],
    say: Callable[[str], None],
) -> Iterator[int]:
    """Have the actors of the `connected` cluster do jobs: the index of each, when its file is written.

    Args:
        actor: made with `arguments`; `work([(index, job), ...])` does some jobs. Without jobs it loads its model, no more, so that a
            refusal reaches this process as such.
        todo: (index, job) each.
        at_once: jobs that an actor is given together, at most.
        is_done: whether a job's file is there, by index.
        describe: a job in words, for errors.
        say: is told what is waited for.

    Raises `DrllmError` for a job that kills its actors, and what an actor refuses.
    """
    ray, died = _ray()
    options = {"num_cpus": max(1, resources.threads), "num_gpus": resources.worker_gpus, "max_restarts": 0}
    actor_class = ray.remote(actor)
    shared = ray.put(arguments)
    waiting, deaths = deque(todo), Counter[int]()
    calls: dict[Any, tuple[Any, list[tuple[int, Any]]]] = {}  # no jobs: an actor that is still to come up
    free: list[Any] = []

    def hire() -> None:
        """A new actor; its first call ends when it has loaded the model."""
        one = actor_class.options(**options).remote(*ray.get(shared))
        calls[one.work.remote([])] = (one, [])

    def give() -> None:
        """The next jobs for each free actor; fewer towards the end, so that none works long after the others."""
        while free and waiting:
            one, share = free.pop(), -(-len(waiting) // (2 * resources.workers))
            jobs = [waiting.popleft()]
            # A job that was under way when an actor died goes alone: so the one to blame is found, and only that one.
            while len(jobs) < min(at_once, share) and not any(deaths[index] for index, _ in (jobs[0], waiting[0])):
                jobs.append(waiting.popleft())
            calls[one.work.remote(jobs)] = (one, jobs)

    def count_deaths(of: Sequence[tuple[int, Any]], why: str) -> None:
        """Refuse what has ended too many actors."""
        deaths.update(index for index, _ in of)
        for index, job in of:
            if deaths[index] >= MAX_DEATHS:
                what = "loading the model" if index == LOADING else describe(index, job)
                raise DrllmError(f"{what} ended {MAX_DEATHS} workers ({why}): give them more memory, or a smaller --pool-size")

    try:
        for _ in range(min(resources.workers, len(waiting))):
            hire()
        # Actors that are still to come up are not waited for when there is nothing left to give them.
        while waiting or any(jobs for _, jobs in calls.values()):
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=PATIENCE)
            if not ready:
                if n_coming := sum(not jobs for _, jobs in calls.values()):
                    say(f"waiting for {n_coming} of {resources.workers} workers: the cluster has no room yet, or the model loads slowly")
                continue
            one, jobs = calls.pop(ready[0])
            try:
                ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DrllmError | OSError):
                    raise error.cause from None
                raise
            except died as error:
                ray.kill(one)
                lost = [(index, job) for index, job in jobs if not is_done(index)]
                count_deaths(lost if jobs else [(LOADING, None)], str(error).splitlines()[0][:100])
                waiting.extendleft(reversed(lost))
                gone = {index for index, _ in lost}
                jobs = [(index, job) for index, job in jobs if index not in gone]
                hire()
            else:
                free.append(one)
                deaths[LOADING] = 0
            for index, job in jobs:
                if not is_done(index):
                    raise InputError(f"a worker wrote {describe(index, job)}, but not where --out is here: give one that all nodes share")
                yield index
            give()
    finally:
        for one in [*free, *(one for one, _ in calls.values())]:
            ray.kill(one)  # the next task's replicas need its room


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
    _connect(ray, resources, max(1, resources.threads))
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


def _connect(ray: Any, resources: Resources, n_cpus: int) -> None:
    """Join the cluster at the address, or start one here with room for the workers."""
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    if not resources.address:
        if resources.worker_gpus and not torch.cuda.is_available():
            raise InputError(f"--worker-gpus {resources.worker_gpus:g}: there is no GPU here, leave it out or give a cluster's --address")
        ray.init(num_cpus=n_cpus * resources.workers, num_gpus=None, **quiet)
        return
    host, _, port = resources.address.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray itself takes minutes to find that nobody listens
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=resources.address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster at {resources.address!r} ({str(error).splitlines()[0][:100]}): "
            "start one with `ray start --head`, or leave --address out"
        ) from None
