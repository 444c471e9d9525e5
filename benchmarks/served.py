"""A vLLM server in processes of its own, on loopback, for the benchmarks that ask over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    url: str
    process: psutil.Process

    def processes(self) -> list[psutil.Process]:
        """It and all that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def memory(self) -> float:
        """Resident bytes, in MB."""
        return sum(one.memory_info().rss for one in self.processes()) / 1e6

    def cpu_seconds(self) -> float:
        """Processor seconds since it was started."""
        times = [one.cpu_times() for one in self.processes()]
        return sum(one.user + one.system for one in times)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, env: dict[str, str] | None = None) -> Iterator[Served]:
    """The server of a command line that listens on `port`, from its first answer at `/health` on; ended with the block."""
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ | (env or {})
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with status {server.returncode}: {' '.join(command)}") from None
                time.sleep(1)
        yield Served(url, psutil.Process(server.pid))
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
