"""`tools/install.py`, by which make installs: what it counts, says and returns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import install as tool

ROOT = Path(__file__).parents[2]


def test_it_counts_what_is_there_and_says_what_is_left(tmp_path):
    old = tmp_path / "rich-13.0.dist-info"
    old.mkdir()
    os.utime(old, (0, 0))
    counted = tool.Counted(tmp_path)
    for line in ("Collecting rich>=13", "  Downloading rich.whl", "Collecting Foo_Bar"):
        counted.read(line)
    assert counted.text(counted.began + 3).startswith("looking up and fetching packages: 2 so far, 3 s")
    counted.read("Installing collected packages: rich, Foo.Bar, baz, qux")
    assert counted.text(counted.began + 3) == "installing 4 packages: 0/4, 3 s", "what an earlier installation left does not count"
    (tmp_path / "foo_bar-1.0.post1.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info").mkdir()
    assert counted.text(counted.began + 3) == "installing 4 packages: 1/4, 3 s, 9 s left"


def test_what_pip_says_is_shown_where_it_fails_and_its_code_is_returned(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "install.py"), "--no-index", "--target", str(tmp_path), "no-such-package-at-all"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "No matching distribution found for no-such-package-at-all" in done.stderr
    assert subprocess.run([*command[:2], "--help"], capture_output=True).returncode == 0
