"""Workers as actors of a Ray cluster (`drllm.model.pool`). The only module that imports Ray."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from drllm.core.config import Resources
from drllm.core.errors import DrllmError, InputError, first_line
from drllm.model.pool import Jobs, WorkerDied
from drllm.model.routed import RoutedModel


class RayActors:
    """Starts actors of the cluster that this process is connected to, and asks them."""

    def __init__(self) -> None:
        self.ray, self.died = _ray()
        self._classes: dict[type, Any] = {}  # as Ray knows them: each is sent to the cluster once

    def start(self, actor: type, arguments: tuple[Any, ...], resources: Resources) -> Any:
        """An actor, wherever the cluster has room for it."""
        options = {"num_cpus": max(1, resources.threads), "num_gpus": resources.worker_gpus, "max_restarts": 0}
        if actor not in self._classes:
            self._classes[actor] = self.ray.remote(actor)
        return self._classes[actor].options(**options).remote(*arguments)

    def call(self, handle: Any, jobs: Jobs) -> Any:
        return handle.work.remote(jobs)

    def next_ended(self, calls: list[Any], seconds: float) -> Any:
        ready, _ = self.ray.wait(calls, num_returns=1, timeout=seconds)
        return ready[0] if ready else None

    def told(self, calls: list[Any]) -> list[Any]:
        return []  # an actor answers when its call is done

    def result(self, call: Any) -> None:
        try:
            self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DrllmError | OSError):
                raise error.cause from None
            raise
        except self.died as error:
            raise WorkerDied(first_line(error)) from None

    def end(self, handle: Any, broken: bool) -> None:
        """Free its room, which the next actors need."""
        self.ray.kill(handle)


@contextmanager
def connected(routed: RoutedModel, resources: Resources) -> Iterator[RayActors]:
    """A cluster to work on while this is open: joined, started here, or the one that this process is connected to already.

    Raises `InputError`, before any work, when Ray is not installed, no cluster is at the address, there is no such GPU, or the model exists
    in this process only.
    """
    ray, _ = _ray()
    if not routed.base_id:
        raise InputError("the model exists in this process only, Ray workers cannot load it: wrap it by its id, folder or file")
    if ray.is_initialized():
        yield RayActors()
        return
    _connect(ray, resources)
    try:
        yield RayActors()
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
