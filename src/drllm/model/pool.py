"""Where work runs: in this process, or in workers of this machine, one model replica each, which pull jobs and write results to files."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from drllm.core.config import Resources
from drllm.core.errors import ArtifactError, DrllmError, InputError
from drllm.model.onednn import lay_out
from drllm.model.routed import RoutedModel
from drllm.policies.adapter import Adapter

MAX_DEATHS = 3  # of workers while they held one job
LOADING = -1  # what a worker without jobs is at
WATCHES_EVERY_S = 1.0  # for the end of the process that started a worker
ENDS_WITHIN_S = 5.0  # a worker whose pipe is closed, before it is killed
TRACEBACK = "Traceback (most recent call last)"

Jobs = list[tuple[int, Any]]  # (index, job)

# A new interpreter, not `multiprocessing`'s: that would run the caller's script once more in each worker.
_START = "import sys; sys.path[:] = {path!r}; from drllm.model.pool import serve; serve({pipe}, {parent})"


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

    def load(self, threads: int, n_workers: int) -> RoutedModel:
        """The model, in one of some workers, which keeps the last one; `ArtifactError` where its weights are others."""
        torch.set_num_threads(threads)
        if (self, threads) not in _loaded:
            _loaded.clear()
            routed = RoutedModel.wrap(self.base_id, dtype=self.dtype, device=self.device)
            if routed.fingerprint != self.fingerprint:
                raise ArtifactError(f"a worker loads other weights as {self.base_id!r} than this process: did its files change?")
            for adapter in self.adapters:
                routed.adopt(adapter)
            lay_out(routed.model, n_workers)
            _loaded[self, threads] = routed
        return _loaded[self, threads]


_loaded: dict[tuple[Base, int], RoutedModel] = {}  # in a worker's own process


class WorkerDied(Exception):
    """A worker was ended while it was at something; the message says why."""


class Worker:
    """One process, our end of its pipe, and what it wrote to standard error."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        code = _START.format(path=sys.path, pipe=theirs.fileno(), parent=os.getpid())
        null = subprocess.DEVNULL
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(command, stdin=null, stdout=null, stderr=self.errors, pass_fds=[theirs.fileno()])
        theirs.close()

    def send(self, what: Any) -> None:
        """A tuple (actor, its arguments) to be made, or jobs to be done; a worker that is dead already is found when its answer is read."""
        message = pickle.dumps(what)
        with suppress(ConnectionError):
            self.pipe.send_bytes(message)

    def finish(self) -> None:
        """Wait for the end of the jobs; raises what they raised there, or `WorkerDied`."""
        try:
            error = self.pipe.recv()
        except (EOFError, ConnectionError):
            error = self._why_it_ended()
        if error is not None:
            raise error

    def _why_it_ended(self) -> Exception:
        """A signal or its exit status; or the traceback that it left, which another try would leave, too."""
        code = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode(errors="replace").strip()
        found = words.rfind(TRACEBACK)
        if code == 1 and found >= 0:
            return RuntimeError(f"a worker failed:\n{words[found:]}")
        return WorkerDied(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")

    def stop(self, at_once: bool) -> None:
        """End it; at once, or when it is done with what it is at."""
        self.pipe.close()
        if at_once:
            self.process.kill()
        try:
            self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Processes:
    def __init__(self) -> None:
        self.idle: list[Worker] = []

    def start(self, actor: type, arguments: tuple[Any, ...]) -> Worker:
        """An idle worker, else a new one."""
        while self.idle and self.idle[-1].process.poll() is not None:
            self.idle.pop().stop(at_once=True)
        worker = self.idle.pop() if self.idle else Worker()
        worker.send((actor, arguments))
        return worker


_open: list[Processes] = []  # the place that is open, so that work inside of other work finds its processes


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes to work on while this is open: those of the work around it, where there is one."""
    if _open:
        yield _open[-1]
        return
    place = Processes()
    _open.append(place)
    try:
        yield place
    finally:
        _open.remove(place)
        while place.idle:
            place.idle.pop().stop(at_once=False)


@dataclass(frozen=True)
class Work:
    """What the workers' jobs are."""

    is_done: Callable[[int], bool]  # whether a job's file is there, by index
    describe: Callable[[int, Any], str]  # a job in words, for errors
    at_once: int = 1  # jobs that a worker is given together, at most
    wanted: Callable[[int], bool] = lambda index: True  # whether a job is still to be done, asked before it is given away


def work_on(place: Processes, actor: type, arguments: tuple[Any, ...], todo: Jobs, resources: Resources, work: Work) -> Iterator[int]:
    """Have workers do jobs: the index of each, when its file is written.

    `actor` is made with `arguments` in each worker; its `work([(index, job), ...])` does some jobs. Without jobs it loads its model, no
    more, so that a refusal reaches this process as such. Raises `DrllmError` for a job that kills its workers, and what a worker refuses.
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
        if ended_well:
            place.idle += pool.free
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
        """Wait for the next worker that ends its jobs: the indices of those whose files are written."""
        ready = wait([worker.pipe for worker in self.busy])
        worker = next(worker for worker in self.busy if worker.pipe in ready)
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
        done, lost = ([one for one in jobs if self.work.is_done(one[0]) is there] for there in (True, False))
        for index, job in lost if jobs else [(LOADING, None)]:
            self.deaths[index] += 1
            if self.deaths[index] >= MAX_DEATHS:
                what = "loading the model" if index == LOADING else self.work.describe(index, job)
                less = "ask for fewer --workers" if index == LOADING else "a smaller --pool-size"
                raise DrllmError(f"{what} ended {MAX_DEATHS} workers ({why}): give them more memory, or {less}")
        self.waiting.extendleft(reversed(lost))
        self.start_worker()
        return done


def serve(pipe: int, parent: int) -> None:
    """A worker's life: make actors, do their jobs, say how each call ended; until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it, which then ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    link, actor = Connection(pipe), None
    while True:
        try:
            what = link.recv()
        except EOFError:
            return
        if isinstance(what, tuple):
            actor = what[0](*what[1])
            continue
        error: Exception | None = None
        try:
            actor.work(what)  # type: ignore[union-attr]
        except (DrllmError, OSError) as raised:
            error = raised
        link.send(error)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, also in the middle of a job."""
    while os.getppid() == parent:
        time.sleep(WATCHES_EVERY_S)
    os._exit(1)


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Torch with `n` threads while this is open; 0: as many as it has."""
    before = torch.get_num_threads()
    if n:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settled(routed: RoutedModel, resources: Resources, scanning: bool = False) -> Resources:
    """The same with an executor, workers and threads named."""
    executor, workers, threads = resources.executor, resources.workers, resources.threads
    fitting = _fitting(routed, resources)
    if executor == "auto":  # a scan takes a process a core where nothing speaks against it
        executor = "processes" if scanning and not threads and fitting > 1 and routed.by_name and os.name == "posix" else "local"
    threads = threads or (torch.get_num_threads() if executor == "local" else 1)
    return replace(resources, executor=executor, workers=workers or (fitting if executor == "processes" else 1), threads=threads)


def _fitting(routed: RoutedModel, resources: Resources) -> int:
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
    """Where the work of `settled` resources is done while this is open; None: in this process. `InputError` where no other can."""
    if resources.executor == "local":
        return nullcontext()
    if os.name != "posix":
        raise InputError("--executor processes needs Linux or macOS: take --executor local")
    if not routed.base_id:
        raise InputError("the model exists in this process only, other processes cannot load it: wrap it by its id, folder or file")
    return processes()
