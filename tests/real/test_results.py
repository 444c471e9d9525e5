"""What docs/results.md and the models' tables say is what the stored verdicts say: generated, never typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = [ROOT / "results" / f"policies-{model}" for model in ("smollm2-135m-q4", "gemma3-270m-q4")]
SCANS = sorted(path.parents[1] for path in (ROOT / "results").glob("scan-*/scan/scan.json"))  # those that are finished
PAGES = sorted((ROOT / "results").glob("paper-*/page*/report.md"))
WRITTEN = ["docs/results.md", *(f"results/{folder.name}/tables.md" for folder in RESULTS)]


@pytest.mark.slow  # some minutes of bootstrap
def test_the_tables_are_those_of_the_stored_verdicts(tmp_path):
    given = {"--out": RESULTS, "--scan": SCANS, "--page": PAGES}
    folders = [part for option, paths in given.items() for path in paths for part in (option, str(path))]
    command = [sys.executable, str(ROOT / "benchmarks" / "methods.py"), "table", *folders, "--to", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    for path in WRITTEN:
        assert (tmp_path / path).read_text(encoding="utf-8") == (ROOT / path).read_text(encoding="utf-8"), path


def test_the_page_of_results_is_short():
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()) <= 300
