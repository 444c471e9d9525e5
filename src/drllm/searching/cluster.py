"""The search on a Ray cluster: one actor a model replica, groups pulled by whoever is free. The only module that imports Ray.

Each actor writes its own shards, so `out` must lie where all nodes see it. An actor gets groups only once it runs, so none waits for one
that finds no room. A dead actor's unfinished groups go back to the queue, for whoever is free, and a new actor takes its place; a group
that three actors died of is refused.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drllm.config import Resources
from drllm.errors import ArtifactError, DrllmError, InputError
from drllm.model.routed import RoutedModel
from drllm.records import shard_path, write_shard
from drllm.searching.worker import Job, Worker, memory_in_one_line, questions_at_once
from drllm.tasks import Example

Group = Sequence[tuple[str, Example]]

MAX_DEATHS = 3  # of actors while they held one group
LOADING: tuple[int, Group] = (-1, ())  # what an actor without groups is at
PATIENCE = 60.0  # seconds without any news after which a search says what it waits for


@dataclass(frozen=True)
class _Base:
    """What an actor needs to load the very model that the search was planned for."""

    base_id: str
    dtype: torch.dtype
    device: str
    fingerprint: str
    packed: bool


class Replica:
    """One actor: a model and a worker around it, loaded with the first groups, so that a refusal reaches the driver as such."""

    def __init__(self, base: _Base, job: Job, resources: Resources, folder: str):
        self._base, self._job, self._resources, self._folder = base, job, resources, Path(folder)
        self._worker: Worker | None = None

    def _load(self) -> Worker:
        base = self._base
        torch.set_num_threads(self._resources.threads)
        routed = RoutedModel.wrap(base.base_id, dtype=base.dtype, device=base.device)
        if routed.fingerprint != base.fingerprint:
            raise ArtifactError(f"a worker loads other weights as {base.base_id!r} than this process: give every node the same model")
        worker = Worker(routed, self._job, self._resources)
        if worker.scorer.packed != base.packed:
            raise ArtifactError(
                f"a worker packs choices into one row: {worker.scorer.packed}, this process: {base.packed}; their attention computes "
                "otherwise, give every node the same software and kind of device"
            )
        return worker

    def search(self, groups: list[tuple[int, Group]]) -> list[int]:
        """Search some groups and write their shards: their indices. Without groups the model is loaded, no more."""
        if self._worker is None:
            self._worker = self._load()
        done = []
        with memory_in_one_line():
            for index, records in self._worker.search(groups):
                write_shard(self._folder, index, records)
                done.append(index)
        return done


def search_on_ray(
    routed: RoutedModel,
    job: Job,
    resources: Resources,
    folder: Path,
    todo: Sequence[tuple[int, Group]],
    packed: bool,
    say: Callable[[str], None],
) -> Iterator[int]:
    """Search groups on the actors of the `connected` cluster: the index of each, when its shard is written.

    `packed` is how the plan says that questions become rows; `say` is told what the search waits for. Raises `DrllmError` for a group that
    kills its actors, `ArtifactError` for a replica that is not the planned model.
    """
    ray, died = _ray()
    n_cpus = max(1, resources.threads)
    options = {"num_cpus": n_cpus, "num_gpus": resources.worker_gpus, "max_restarts": 0}
    actor_class = ray.remote(Replica)
    device = "cuda" if resources.worker_gpus else str(routed.device)
    base = _Base(routed.base_id, routed.model.dtype, device, routed.fingerprint, packed)
    arguments = ray.put((base, job, resources, str(folder.resolve())))

    waiting, deaths = deque(todo), Counter[int]()
    at_once = max(1, 2 * questions_at_once(job, resources) // job.config.group_size)
    calls: dict[Any, tuple[Any, list[tuple[int, Group]]]] = {}  # no groups: an actor that is still to come up
    free: list[Any] = []

    def hire() -> None:
        """A new actor; its first call ends when it has loaded the model."""
        actor = actor_class.options(**options).remote(*ray.get(arguments))
        calls[actor.search.remote([])] = (actor, [])

    def give() -> None:
        """The next groups for each free actor; fewer towards the end, so that none works long after the others."""
        while free and waiting:
            actor, share = free.pop(), -(-len(waiting) // (2 * resources.workers))
            groups = [waiting.popleft()]
            # A group that was under way when an actor died goes alone: so the one to blame is found, and only that one.
            while len(groups) < min(at_once, share) and not any(deaths[index] for index, _ in (groups[0], waiting[0])):
                groups.append(waiting.popleft())
            calls[actor.search.remote(groups)] = (actor, groups)

    def count_deaths(of: Sequence[tuple[int, Group]], why: str) -> None:
        """Refuse what has ended too many actors."""
        deaths.update(index for index, _ in of)
        for index, group in of:
            if deaths[index] >= MAX_DEATHS:
                what = f"group {index} ({', '.join(example.id for _, example in group[:3])}, ...)" if group else "loading the model"
                raise DrllmError(f"{what} ended {MAX_DEATHS} workers ({why}): give them more memory, or a smaller --pool-size")

    try:
        for _ in range(min(resources.workers, len(waiting))):
            hire()
        # Actors that are still to come up are not waited for when there is nothing left to give them.
        while waiting or any(groups for _, groups in calls.values()):
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=PATIENCE)
            if not ready:
                if n_coming := sum(not groups for _, groups in calls.values()):
                    say(f"waiting for {n_coming} of {resources.workers} workers: the cluster has no room yet, or the model loads slowly")
                continue
            actor, groups = calls.pop(ready[0])
            try:
                ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DrllmError | OSError):
                    raise error.cause from None
                raise
            except died as error:
                ray.kill(actor)
                lost = [(index, group) for index, group in groups if not shard_path(folder, index).is_file()]
                count_deaths(lost if groups else [LOADING], str(error).splitlines()[0][:100])
                waiting.extendleft(reversed(lost))
                groups = [(index, group) for index, group in groups if (index, group) not in lost]
                hire()
            else:
                free.append(actor)
                deaths[LOADING[0]] = 0
            for index, _ in groups:
                if not shard_path(folder, index).is_file():
                    raise InputError(f"a worker wrote shard {index}, but not where {folder} is here: give an --out that all nodes share")
                yield index
            give()
    finally:
        for actor in [*free, *(actor for actor, _ in calls.values())]:
            ray.kill(actor)  # the next task's replicas need its room


@contextmanager
def connected(routed: RoutedModel, resources: Resources) -> Iterator[None]:
    """A cluster to search on while this is open: joined, started here, or the one that this process is connected to already.

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
        raise InputError("--executor ray needs Ray: pip install drllm[ray]") from None
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
