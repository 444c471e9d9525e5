"""What docs/results.md prints is what the stored verdicts say: generated, never typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "policies-smollm2-135m-q4"


@pytest.mark.slow  # some minutes of bootstrap
def test_the_tables_are_those_of_the_stored_verdicts():
    command = [sys.executable, str(ROOT / "benchmarks" / "methods.py"), "table", "--out", str(RESULTS)]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
