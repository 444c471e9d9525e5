"""The search on a Ray cluster: one actor a model replica, groups pulled by whoever is free. The only module that imports Ray.

Each actor writes its own shards, so `out` must lie where all nodes see it. A dead actor's unfinished groups go back to the queue and a new
actor takes its place; a group that three actors died of is refused.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drllm.config import Resources
from drllm.errors import ArtifactError, DrllmError, InputError
from drllm.model.routed import RoutedModel
from drllm.records import shard_path, write_shard
from drllm.searching.worker import Job, Worker, questions_at_once
from drllm.tasks import Example

MAX_DEATHS = 3  # of actors while they held one group

Group = Sequence[tuple[str, Example]]


@dataclass(frozen=True)
class _Base:
    """What an actor needs to load the very model that the search was planned for."""

    base_id: str
    dtype: torch.dtype
    device: str
    fingerprint: str


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
        return Worker(routed, self._job, self._resources)

    def search(self, groups: list[tuple[int, Group]]) -> list[int]:
        """Search some groups and write their shards: their indices."""
        if self._worker is None:
            self._worker = self._load()
        done = []
        for index, records in self._worker.search(groups):
            write_shard(self._folder, index, records)
            done.append(index)
        return done


def search_on_ray(routed: RoutedModel, job: Job, resources: Resources, folder: Path, todo: Sequence[tuple[int, Group]]) -> Iterator[int]:
    """Search groups on the actors of a cluster: the index of each, when its shard is written.

    Raises:
        InputError: Ray is not installed, no cluster at the address, or a model that exists in this process only.
        DrllmError: a group that kills its actors.
    """
    try:
        import ray
        from ray.exceptions import RayActorError, RayTaskError
    except ImportError:
        raise InputError("--executor ray needs Ray: pip install drllm[ray]") from None
    if not routed.base_id:
        raise InputError("the model exists in this process only, Ray workers cannot load it: wrap it by its id, folder or file")
    started = not ray.is_initialized()
    n_cpus = max(1, resources.threads)
    if started:
        _connect(ray, resources, n_cpus)
    options = {"num_cpus": n_cpus, "num_gpus": resources.worker_gpus, "max_restarts": 0}
    actor_class = ray.remote(Replica)
    device = "cuda" if resources.worker_gpus else str(routed.device)
    base = _Base(routed.base_id, routed.model.dtype, device, routed.fingerprint)
    arguments = ray.put((base, job, resources, str(folder.resolve())))

    def new_actor() -> Any:
        return actor_class.options(**options).remote(*ray.get(arguments))

    waiting, deaths = deque(todo), Counter[int]()
    at_once = max(1, 2 * questions_at_once(job, resources) // job.config.group_size)
    calls: dict[Any, tuple[Any, list[tuple[int, Group]]]] = {}

    def give(actor: Any) -> None:
        """The next groups for a free actor; fewer towards the end, so that none works long after the others."""
        share = -(-len(waiting) // (2 * resources.workers))
        groups = [waiting.popleft() for _ in range(min(at_once, share, len(waiting)))]
        if groups:
            calls[actor.search.remote(groups)] = (actor, groups)

    try:
        for _ in range(min(resources.workers, len(waiting))):
            give(new_actor())
        while calls:
            (ready,), _ = ray.wait(list(calls), num_returns=1)
            actor, groups = calls.pop(ready)
            try:
                ray.get(ready)
            except RayTaskError as error:
                if isinstance(error.cause, DrllmError):
                    raise error.cause from None
                raise
            except RayActorError as error:
                actor = new_actor()
                lost = [(index, group) for index, group in groups if not shard_path(folder, index).is_file()]
                deaths.update(index for index, _ in lost)
                for index, group in lost:
                    if deaths[index] >= MAX_DEATHS:
                        ids = ", ".join(example.id for _, example in group[:3])
                        raise DrllmError(
                            f"group {index} ({ids}, ...) ended {MAX_DEATHS} workers ({str(error).splitlines()[0][:100]}): "
                            "give them more memory, or a smaller --pool-size"
                        ) from None
                waiting.extendleft(reversed(lost))
                groups = [(index, group) for index, group in groups if (index, group) not in lost]
            for index, _ in groups:
                if not shard_path(folder, index).is_file():
                    raise InputError(f"a worker wrote shard {index}, but not where {folder} is here: give an --out that all nodes share")
                yield index
            give(actor)
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, resources: Resources, n_cpus: int) -> None:
    """Join the cluster at the address, or start one here with room for the workers."""
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    if not resources.address:
        ray.init(num_cpus=n_cpus * resources.workers, num_gpus=None, **quiet)
        return
    try:
        ray.init(address=resources.address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster at {resources.address!r} ({str(error).splitlines()[0][:100]}): "
            "start one with `ray start --head`, or leave --address out"
        ) from None
