"""The search on a Ray cluster: actors pull groups of questions and write their shards (`drllm.model.ray_pool`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError
from drllm.core.progress import Progress
from drllm.model.ray_pool import Base, Work, work_on_ray
from drllm.model.routed import RoutedModel
from drllm.runs.records import shard_path, write_shard
from drllm.searching.worker import Group, Job, Worker, memory_in_one_line, questions_at_once


class Replica:
    """One actor: a model and a worker around it, loaded with the first groups."""

    def __init__(self, base: Base, packed: bool, job: Job, resources: Resources, folder: str):
        self._base, self._packed, self._job, self._resources, self._folder = base, packed, job, resources, Path(folder)
        self._worker: Worker | None = None

    def work(self, groups: list[tuple[int, Group]]) -> None:
        """Search some groups and write their shards. Without groups the model is loaded, no more."""
        if self._worker is None:
            worker = Worker(self._base.load(self._resources.threads), self._job, self._resources)
            if worker.scorer.packed != self._packed:
                found = f"a worker packs choices into one packed prompt: {worker.scorer.packed}, this process: {self._packed}"
                advice = "their attention computes otherwise, give every node the same software and kind of device"
                raise ArtifactError(f"{found}; {advice}")
            self._worker = worker
        with memory_in_one_line():
            for index, records in self._worker.search(groups):
                write_shard(self._folder, index, records)


def search_on_ray(
    routed: RoutedModel, job: Job, resources: Resources, folder: Path, todo: list[tuple[int, Group]], packed: bool, progress: Progress
) -> Iterator[int]:
    """Search groups on the actors of the `connected` cluster: the index of each, when its shard is written.

    `packed` is how the manifest says that questions are packed. Raises `DrllmError` for a group that kills its actors, `ArtifactError` for
    a replica that is not the model of this process.
    """

    def describe(index: int, group: Any) -> str:
        return f"group {index} ({', '.join(example.id for _, example in group[:3])}, ...)"

    at_once = max(1, 2 * questions_at_once(job, resources) // job.config.group_size)
    arguments = (Base.of(routed, resources), packed, job, resources, str(folder.resolve()))
    work = Work(lambda index: shard_path(folder, index).is_file(), describe, progress.print, at_once)
    yield from work_on_ray(Replica, arguments, todo, resources, work)
