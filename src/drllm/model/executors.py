"""Where work runs: in this process, or in others of this machine."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from drllm.core.config import Resources
from drllm.core.errors import InputError
from drllm.model.process_pool import Processes, processes
from drllm.model.routed import RoutedModel
from drllm.model.threads import torch_threads


def settled(routed: RoutedModel, resources: Resources, scanning: bool = False) -> Resources:
    """The same with an executor, workers and threads named.

    A scan takes a process a core where nothing speaks against it: the model was loaded by its name, for the CPU, no number of threads is
    asked for, and two replicas take no more than half of the machine's memory.
    """
    executor, workers, threads = resources.executor, resources.workers, resources.threads
    fitting = _fitting(routed, resources)
    if executor == "auto":
        executor = "processes" if scanning and not threads and fitting > 1 and routed.by_name and os.name == "posix" else "local"
    threads = threads or (torch.get_num_threads() if executor == "local" else 1)
    return replace(resources, executor=executor, workers=workers or (fitting if executor == "processes" else 1), threads=threads)


def _fitting(routed: RoutedModel, resources: Resources) -> int:
    """How many replicas the machine bears: on the CPU one a core within half of its memory, on another device one."""
    if routed.device.type != "cpu":
        return 1
    n_cores = min(torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    replica = sum(part.numel() * part.element_size() for part in routed.model.parameters()) + resources.cache_bytes
    return max(1, min(n_cores, memory // (2 * replica)))


def threads_here(resources: Resources) -> AbstractContextManager[None]:
    """Torch's threads in this process around stages that may go to workers: those asked for, where they are for this process."""
    return torch_threads(resources.threads if resources.executor in ("auto", "local") else 0)


def opened(routed: RoutedModel, resources: Resources) -> AbstractContextManager[Processes | None]:
    """Where the work of `settled` resources is done while this is open; None: in this process.

    Raises `InputError` before any work where there is no such place, or the model exists in this process only.
    """
    if resources.executor == "local":
        return nullcontext()
    if os.name != "posix":
        raise InputError("--executor processes needs Linux or macOS: take --executor local")
    if not routed.base_id:
        raise InputError("the model exists in this process only, other processes cannot load it: wrap it by its id, folder or file")
    return processes()
