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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from drllm.core.errors import DrllmError

WATCHES_EVERY_S = 1.0  # for the end of the process that started a worker
TRACEBACK = "Traceback (most recent call last)"
ENDS_WITHIN_S = 5.0  # a worker whose pipe is closed, before it is killed

Jobs = list[tuple[int, Any]]  # (index, job)

_START = "import sys; sys.path[:] = {path!r}; from drllm.model.process_pool import serve; serve({pipe}, {parent})"


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
    """Keeps idle workers with the model that they have loaded."""

    def __init__(self) -> None:
        self.idle: list[Worker] = []

    def start(self, actor: type, arguments: tuple[Any, ...]) -> Worker:
        """An idle worker, else a new one."""
        while self.idle and self.idle[-1].process.poll() is not None:
            self.idle.pop().stop(at_once=True)
        worker = self.idle.pop() if self.idle else Worker()
        worker.send((actor, arguments))
        return worker

    def close(self) -> None:
        """End the idle ones."""
        while self.idle:
            self.idle.pop().stop(at_once=False)


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
