"""benchmarks/memory.py counts every process below a command, and shared pages once."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HOLDS = "import os, time; {first}held = b'x' * (200 << 20); {then}time.sleep(1.5)"


def peak(code: str) -> tuple[float, int]:
    """MiB that a Python program held at most, and the exit status."""
    command = [sys.executable, str(BENCHMARKS / "memory.py"), "--every", "0.1", "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "at most " in done.stderr, done.stderr
    return float(done.stderr.split("at most ")[1].split()[0]) * 1024, done.returncode


@pytest.mark.skipif(sys.platform != "linux", reason="proportional set sizes are Linux's")
def test_children_count_and_shared_pages_count_once():
    alone, _ = peak(HOLDS.format(first="", then=""))
    shared, _ = peak(HOLDS.format(first="", then="os.fork(); "))  # the child holds the parent's pages
    doubled, _ = peak(HOLDS.format(first="os.fork(); ", then=""))  # both write 200 MiB of their own
    assert 190 < alone < 280
    assert 190 < shared < 280
    assert 390 < doubled < 500


def test_the_commands_exit_status_is_its_own():
    assert peak("import sys, time; time.sleep(0.4); sys.exit(7)")[1] == 7
