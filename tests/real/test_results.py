"""What docs/results.md prints is what the stored verdicts say: generated, never typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = [ROOT / "results" / f"policies-{model}" for model in ("smollm2-135m-q4", "gemma3-270m-q4")]

PAGES = sorted((ROOT / "results").glob("paper-*/page*/report.md"))


@pytest.mark.slow  # some minutes of bootstrap
def test_the_tables_are_those_of_the_stored_verdicts():
    folders = [part for path in RESULTS for part in ("--out", str(path))] + [part for page in PAGES for part in ("--page", str(page))]
    command = [sys.executable, str(ROOT / "benchmarks" / "methods.py"), "table", *folders]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
