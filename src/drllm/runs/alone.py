"""One process at a time writes into a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from drllm.core.errors import ArtifactError


@contextmanager
def alone_in(out: Path, what: str) -> Iterator[None]:
    """One `what`, such as a search, at a time: `ArtifactError` where another process has one at work in this run folder.

    The lock ends with its process, also by `kill -9`; its file stays, empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / f".{what}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ArtifactError(f"another {what} is at work in {out}: wait for it, or give another --out") from None
    try:
        yield
    finally:
        lock.release()
