"""Workers as processes of this machine (`drllm.model.pool`): started once, and kept for the next work until the place is closed.

A worker is a new interpreter, not `multiprocessing`'s: that would run the caller's script once more in each. It ends when its pipe does,
or when the process that started it is gone.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from drllm.core.config import Resources
from drllm.core.errors import DrllmError

WATCHES_EVERY_S = 1.0  # for the end of the process that started a worker
TRACEBACK = "Traceback (most recent call last)"
TELLS_EVERY_S = 1.0  # how far it is, at most
ENDS_WITHIN_S = 5.0  # a worker whose pipe is closed, before it is killed

Jobs = list[tuple[int, Any]]  # (index, job)

_START = "import sys; sys.path[:] = {path!r}; from drllm.model.process_pool import serve; serve({pipe}, {parent})"


class WorkerDied(Exception):
    """A worker was ended while it was at something; the message says why."""


class _Told(NamedTuple):
    """What a worker says while its call goes on."""

    what: Any


class _Process:
    """One worker: its process, our end of its pipe, what it wrote to standard error, and what its last call told and ended with."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        code = _START.format(path=sys.path, pipe=theirs.fileno(), parent=os.getpid())
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.told: Any = None
        self.outcome: Exception | None = None

    def has_ended_call(self) -> bool:
        """Read its next message: what it tells, or how the call ended."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            message = self.ended()
        if isinstance(message, _Told):
            self.told = message.what
            return False
        self.outcome = message
        return True

    def ended(self) -> Exception:
        """Why it ended: a signal or its exit status; or the traceback that it left, which another try would leave, too."""
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
    """Starts worker processes and asks them. Idle ones keep the model that they have loaded."""

    def __init__(self) -> None:
        self.idle: list[_Process] = []

    def start(self, actor: type, arguments: tuple[Any, ...], resources: Resources) -> _Process:
        """A worker: an idle one, else a new one."""
        while self.idle and self.idle[-1].process.poll() is not None:
            self.idle.pop().stop(at_once=True)
        worker = self.idle.pop() if self.idle else _Process()
        _send(worker, (actor, arguments))
        return worker

    def call(self, handle: _Process, jobs: Jobs) -> _Process:
        """Have a worker do `actor.work(jobs)`."""
        handle.told = None
        _send(handle, jobs)
        return handle

    def next_ended(self, calls: list[_Process], seconds: float) -> _Process | None:
        """The next of the calls that ends; None when none does for so long, or one tells something."""
        ready = wait([worker.pipe for worker in calls], seconds)
        return next((worker for worker in calls if worker.pipe in ready and worker.has_ended_call()), None)

    def told(self, calls: list[_Process]) -> list[Any]:
        """What those of the calls that told something told last."""
        return [worker.told for worker in calls if worker.told is not None]

    def result(self, call: _Process) -> None:
        """Nothing, or what the call raised: an error as it was raised there, or `WorkerDied`."""
        if call.outcome is not None:
            raise call.outcome

    def end(self, handle: _Process, broken: bool) -> None:
        """Keep it for the next work, unless it is dead or at something."""
        if broken:
            handle.stop(at_once=True)
        else:
            self.idle.append(handle)

    def close(self) -> None:
        """End the idle ones."""
        while self.idle:
            self.idle.pop().stop(at_once=False)


def _send(worker: _Process, what: Any) -> None:
    """A worker that is dead already is found when its answer is read."""
    message = pickle.dumps(what)
    with suppress(ConnectionError):
        worker.pipe.send_bytes(message)


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
        place.close()


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
            actor.tell = _teller(link)
            continue
        error: Exception | None = None
        try:
            actor.work(what)  # type: ignore[union-attr]
        except (DrllmError, OSError) as raised:
            error = raised
        link.send(error)


def _teller(link: Connection) -> Callable[[Any], None]:
    """What an actor tells goes to the process that started this one, unless that heard something a moment ago."""
    last = time.monotonic()

    def tell(what: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= TELLS_EVERY_S:
            last = time.monotonic()
            link.send(_Told(what))

    return tell


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, also in the middle of a job."""
    while os.getppid() == parent:
        time.sleep(WATCHES_EVERY_S)
    os._exit(1)
