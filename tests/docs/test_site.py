"""The site is built, and a link or an anchor that leads nowhere ends the build."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MKDOCS.is_file(), reason="needs the environment that `make docs` makes")]


def built(place: Path) -> subprocess.CompletedProcess[str]:
    command = [str(MKDOCS), "build", "-d", str(place / "site")]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("docs", "src", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_it_is_built_without_a_warning(copied):
    done = built(copied)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (copied / "site" / "retrofit" / "index.html").is_file()


@pytest.mark.parametrize("link", ["policies.md#nothing-here", "nofile.md"])
def test_a_link_that_leads_nowhere_ends_it(link, copied):
    page = copied / "docs" / "demo.md"
    page.write_text(f"{page.read_text()}\n[x]({link})\n")
    done = built(copied)
    assert done.returncode != 0
    assert link in done.stderr
