"""Workers of an executor as the system sees them, and marks for the executors that a test is tried with."""

from __future__ import annotations

import importlib.util
import os
import subprocess

import pytest

HAVE_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAVE_RAY, reason="needs Ray (pip install '.[ray]')")
EXECUTORS = [pytest.param("processes", marks=pytest.mark.long), pytest.param("ray", marks=[needs_ray, pytest.mark.slow])]


def replicas(executor: str, driver: int = 0) -> list[int]:
    """Process ids of the workers: of Ray's here, or of a driver's own children (default: of this process)."""
    whose = ["-f", "^ray::Replica"] if executor == "ray" else ["-P", str(driver or os.getpid()), "-f", "drllm.model.process_pool"]
    found = subprocess.run(["pgrep", *whose], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]
