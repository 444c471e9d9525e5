"""A stage's seconds hold those of attempts that were killed: real processes, a real `kill -9`."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from drllm.retrofitting.stage_clock import stage_clock
from drllm.retrofitting.stages import Stages
from drllm.runs.layout import RunFolder

ATTEMPT = """
import sys, time
from pathlib import Path
from drllm.retrofitting.stage_clock import stage_clock
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
    with stage_clock(note, "k") as spent:
        assert spent() >= noted > 0.4
    assert not note.exists()


def test_another_stage_s_attempt_does_not_count(tmp_path):
    note = tmp_path / "under-way.json"
    note.write_text('{"key": "k", "seconds": 1000.0}')
    with stage_clock(note, "another") as spent:
        assert spent() < 1000


def test_a_stage_that_fails_is_noted_and_resumed(tmp_path):
    run = RunFolder(tmp_path)
    key_and_seconds = {"key": "", "seconds": 0.0}

    def fail():
        raise KeyboardInterrupt

    stages = Stages(run, "start")
    with pytest.raises(KeyboardInterrupt):
        stages.run("list", {}, [], fail)
    key_and_seconds |= json.loads(run.under_way.read_text())
    assert key_and_seconds["key"] == stages.key
    run.under_way.write_text(json.dumps(key_and_seconds | {"seconds": 500.0}))
    again = Stages(run, "start")
    again.run("list", {}, [], lambda: None)
    assert again.took["list"] >= 500
    assert again.seconds >= 500
    assert not run.under_way.exists()
    third = Stages(run, "start")
    third.run("list", {}, [], fail)
    assert third.took["list"] >= 500, "what it took is remembered"
