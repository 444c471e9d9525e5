"""What docs/results.md and the models' tables say is what the stored verdicts say: generated, never typed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPARED = re.findall(r"^COMPARED := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[0].split()
RESULTS = [ROOT / "results" / f"policies-{model}" for model in COMPARED]
SCANS = sorted(path.parents[1] for path in (ROOT / "results").glob("scan-*/scan/scan.json"))  # those that are finished
PAGES = sorted((ROOT / "results").glob("paper-*/page*/report.md"))
WRITTEN = ["docs/results.md", *(f"results/{folder.name}/tables.md" for folder in RESULTS)]


@pytest.mark.slow  # some minutes of bootstrap
def test_the_tables_are_those_of_the_stored_verdicts(tmp_path):
    given = {"--out": RESULTS, "--scan": SCANS, "--page": PAGES}
    folders = [part for option, paths in given.items() for path in paths for part in (option, str(path))]
    command = [sys.executable, "-m", "drllm_research.comparison", "table", *folders, "--to", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    for path in WRITTEN:
        assert (tmp_path / path).read_text(encoding="utf-8") == (ROOT / path).read_text(encoding="utf-8"), path


def test_every_compared_model_has_its_tables():
    assert {path.parent.name for path in (ROOT / "results").glob("policies-*/tables.md")} == {folder.name for folder in RESULTS}


def test_the_page_of_results_is_short():
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()) <= 300
