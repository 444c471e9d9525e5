"""What is served in benchmarks: a vLLM server in processes of its own, on loopback, and policies that always take the base's route."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from drllm import Action, RoutedModel
from drllm.policies.codebook import Codebook, Point
from drllm.policies.routers import RouterConfig, Routers
from memory import summed

READY_MINUTES = 40  # compiling a codebook's segments takes a slow machine ten
BOOK_OF_TEXT = "results/policies-smollm2-135m-q4/policies/in-domain/codebook_text_at_0.9.0"
SHOWN = 2000  # characters of what a server said before it died


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    url: str
    process: psutil.Process

    def memory(self) -> float:
        """Resident bytes of its processes, in MB."""
        return summed(self.process, lambda process: process.memory_info().rss) / 1e6

    def cpu_seconds(self) -> float:
        """Processor seconds of its processes since they were started."""
        return summed(self.process, lambda process: sum(process.cpu_times()[:2]))


def book_of_text(folder: Path) -> Codebook:
    """A trained codebook, whose routes are chosen before the engine."""
    book = Codebook.load(folder)
    if book.routes_for([]) is None:
        raise SystemExit(f"{folder} holds a codebook that reads states: give one trained with --read text")
    return book


def never_leaves(book: Codebook) -> Codebook:
    """A book that reads and scores as `book` does, and takes the base's route every time."""
    return Codebook(book.routes, book.selector, [Point(1e9)])


def always_executes(routed: RoutedModel) -> Routers:
    """Routers that read and score as trained ones do, and take the base's route every time."""
    routers = Routers(RouterConfig(routed.n_layers, routed.hidden_size))
    routers.tensors["b2"][:, Action.EXECUTE] = 1e9
    return routers


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, env: dict[str, str] | None = None, minutes: int = READY_MINUTES) -> Iterator[Served]:
    """The server of a command line that listens on `port`, from its first answer at `/health` on; ended with the block."""
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | (env or {}))
        url = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + 60 * minutes
            while True:
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5)
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > end:
                        said.seek(0)
                        last = said.read().decode(errors="replace")[-SHOWN:]
                        state = f"is not ready after {minutes} minutes" if server.poll() is None else f"ended ({server.returncode})"
                        raise SystemExit(f"{last}\nthe server {state}: {' '.join(command)}") from None
                    time.sleep(1)
            yield Served(url, psutil.Process(server.pid))
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGINT)
                try:
                    server.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(server.pid, signal.SIGKILL)
