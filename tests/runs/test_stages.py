"""Finished work is found again under its key; a stage's seconds hold those of attempts that were killed: a real `kill -9`."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from drllm.core.errors import ArtifactError
from drllm.runs.layout import RunFolder
from drllm.runs.stages import Memo, Stages, read_kept, stage_clock

ATTEMPT = """
import sys, time
from pathlib import Path
from drllm.runs.stages import stage_clock
with stage_clock(Path(sys.argv[1]), "k", beat=0.05):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_killed_attempt_counts(tmp_path):
    note = tmp_path / "run" / "under-way.json"
    noted = 0.0
    for _ in range(2):
        attempt = subprocess.Popen([sys.executable, "-c", ATTEMPT, str(note)], stdout=subprocess.PIPE)
        assert attempt.stdout is not None
        attempt.stdout.readline()
        while not note.is_file() or json.loads(note.read_text())["seconds"] <= noted + 0.2:
            time.sleep(0.02)
        attempt.kill()
        attempt.communicate()
        noted = json.loads(note.read_text())["seconds"]
    text = note.read_text()
    with stage_clock(note, "k") as spent:
        assert spent() >= noted > 0.4
    assert not note.exists()
    note.write_text(text.replace(str(noted), "1000.0"))
    with stage_clock(note, "another") as spent:
        assert spent() < 1000, "another stage's attempt does not count"


def test_a_stage_that_fails_is_noted_and_resumed(tmp_path):
    run = RunFolder(tmp_path)

    def fail():
        raise KeyboardInterrupt

    stages = Stages(run, (), "start")
    with pytest.raises(KeyboardInterrupt):
        stages.then("list", {}, [], fail)
    noted = json.loads(run.under_way.read_text())
    assert noted.keys() == {"key", "seconds"}
    run.under_way.write_text(json.dumps(noted | {"seconds": 500.0}))
    again = Stages(run, (), "start")
    again.then("list", {}, [], lambda: None)
    assert again.seconds == again.took["list"] >= 500
    assert not run.under_way.exists()
    third = Stages(run, (), "start")
    third.then("list", {}, [], fail)
    assert third.took["list"] >= 500, "what it took is remembered"


def test_a_stage_is_done_once_and_again_where_its_files_changed(tmp_path, capfd):
    shard = tmp_path / "search" / "t" / "shard-00000.parquet"
    shard.parent.mkdir(parents=True)
    done = []

    def search():
        shard.write_bytes(b"records")
        done.append("search")
        return "there"

    def stages():
        return Stages(RunFolder(tmp_path), (), ["f00d", "torch.float32", ["t"], None])

    assert stages().then("search", {"a": [2], "b": 1}, [tmp_path / "search"], search) == "there"
    again = stages()
    assert again.then("search", {"b": 1, "a": [2]}, [tmp_path / "search"], search) == "there"
    assert (again.skipped, done) == (["search"], ["search"])
    shard.write_bytes(b"others")
    again = stages()
    assert again.then("search", {"a": [2], "b": 1}, [tmp_path / "search"], search) == "there"
    assert (again.skipped, done) == ([], ["search"] * 2)


def test_work_is_found_under_its_key_alone(tmp_path):
    memo = Memo(tmp_path / "new" / "a.json")
    assert memo.find("one", "k") is None
    assert "one" not in memo
    memo.keep("one", "k", seconds=1.5, result=[1])
    memo.keep("two", "q", result=None)
    again = Memo(tmp_path / "new" / "a.json")
    assert again.find("one", "k") == {"key": "k", "seconds": 1.5, "result": [1]}
    assert again.find("one", "q") is None
    assert "one" in again
    memo.keep("one", "q", result=2)
    assert again.find("one", "k") is None
    assert json.loads(memo.path.read_text()) == {"one": {"key": "q", "result": 2}, "two": {"key": "q", "result": None}}


@pytest.mark.parametrize("content", ["{", "[]", '{"one": 1}'])
def test_a_corrupt_file_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"a\.json .*: delete it, finished work is found again"):
        Memo(tmp_path / "a.json").find("one", "k")


def test_a_file_of_one_piece_of_work(tmp_path):
    path = tmp_path / "results.json"
    assert read_kept(path, "k", "again") is None
    path.write_text('{"drllm_key": "k", "x": 1}')
    assert read_kept(path, "k", "again", "drllm_key") == {"drllm_key": "k", "x": 1}
    assert read_kept(path, "q", "again", "drllm_key") is None
    assert read_kept(path, "k", "again") is None
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"results\.json is not readable JSON .*: again"):
        read_kept(path, "k", "again")
