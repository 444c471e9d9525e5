"""run.json: a job is recorded however it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata

import pytest

from drllm.core.errors import ArtifactError
from drllm.runs.provenance import PACKAGES, commit, hardware, read_jobs, running, versions


def test_a_finished_job_is_recorded(tmp_path):
    out = tmp_path / "runs" / "new"
    before = datetime.now(UTC).replace(microsecond=0)
    with running(out, "search", {"seed": 3, "nested": {"a": [1, None]}}, argv=["drllm", "search", "--seed", "3"]) as entry:
        assert not (out / "run.json").exists()
        entry["tasks"] = {"arc_easy": 7}
    (job,) = json.loads((out / "run.json").read_text())
    told = {"job": "search", "status": "done", "argv": ["drllm", "search", "--seed", "3"], "tasks": {"arc_easy": 7}}
    assert {name: job[name] for name in (*told, "config")} == {**told, "config": {"seed": 3, "nested": {"a": [1, None]}}}
    assert job["seconds"] >= 0
    assert before <= datetime.fromisoformat(job["date"]) <= datetime.now(UTC)
    assert job["versions"]["torch"] == metadata.version("torch")
    assert job["hardware"]["cores"] >= 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (RuntimeError("broken"), "failed"), (SystemExit(2), "failed"), (ArtifactError("no"), "failed")],
)
def test_a_job_that_ends_otherwise_is_recorded_and_its_error_goes_on(tmp_path, error, status):
    def train():
        with running(tmp_path, "train", {}) as entry:
            entry["epochs"] = 2
            raise error

    with pytest.raises(type(error)) as caught:
        train()
    assert caught.value is error
    (job,) = read_jobs(tmp_path)
    assert (job["status"], job["epochs"], job["argv"]) == (status, 2, sys.argv)


def test_jobs_are_appended_also_those_that_end_inside_another(tmp_path):
    assert read_jobs(tmp_path) == []
    with running(tmp_path, "retrofit", {}):
        for name in ("search", "train"):
            with running(tmp_path, name, {}):
                pass
    assert [job["job"] for job in read_jobs(tmp_path)] == ["search", "train", "retrofit"]


@pytest.mark.parametrize("text", ["[{", "", "{}", "[1]", "\x00"])
def test_a_foreign_run_file_is_refused_before_the_work_and_left_alone(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"run\.json is not") as caught, running(tmp_path, "search", {}):
        pytest.fail("the work began")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run.json").read_text() == text


def test_versions_of_what_is_installed_only():
    found = versions()
    assert found.pop("python") == ".".join(map(str, sys.version_info[:3]))
    assert {"numpy", "torch"} <= found.keys() < set(PACKAGES), "vLLM lives in an environment of its own"
    assert found == {name: metadata.version(name) for name in found}


def test_hardware_is_plain_json():
    found = hardware()
    assert set(found) == {"processor", "cores", "memory_gib", "platform"}
    assert found["memory_gib"] > 0
    assert json.loads(json.dumps(found)) == found


@pytest.fixture
def checkout(tmp_path):
    """A folder that may become a git checkout."""
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "code.py").write_text("# first\n")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path / "checkout"), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return tmp_path / "checkout", git


def test_commit_of_a_checkout(checkout, monkeypatch):
    folder, git = checkout
    assert commit(folder) is None  # no repository yet
    git("init")
    assert commit(folder) is None  # no commit yet
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert commit(folder) == head
    (folder / "notes.txt").write_text("untracked files are no changes")
    assert commit(folder) == head
    (folder / "code.py").write_text("# second\n")
    assert commit(folder) == head + "+changes"
    monkeypatch.setenv("PATH", "")
    assert commit(folder) is None, "no git program is no error"


def test_torch_is_not_imported():
    code = "import sys, importlib.util as u; from drllm.runs import provenance, records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
