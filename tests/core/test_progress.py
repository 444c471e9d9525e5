"""Progress goes through one reporter, and the library writes to no stream."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drllm.core import progress
from drllm.core.progress import Progress, Reporter, reporting_to, say, set_reporter

SRC = Path(__file__).parents[2] / "src"


class Heard(Reporter):
    """Keeps every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def start(self, job: Progress) -> None:
        self.calls.append(("start", job.label, job.total))

    def resume(self, job: Progress) -> None:
        self.calls.append(("resume", job.done))

    def advance(self, job: Progress) -> None:
        self.calls.append(("advance", job.done, job.note))

    def stop(self, job: Progress) -> None:
        self.calls.append(("stop", job.label))

    def line(self, text: str, job: Progress | None = None) -> None:
        self.calls.append(("line", text, job is not None))


def a_job() -> None:
    say("a stage ...")
    with Progress("work", 4) as job:
        job.resume(1)
        job.advance(1, "near")
        job.print("kept")
        job.advance(2)


def test_a_reporter_of_ones_own_hears_everything_and_only_inside_its_block():
    heard = Heard()
    with reporting_to(heard):
        a_job()
    a_job()
    assert heard.calls == [
        ("line", "a stage ...", False), ("start", "work", 4), ("resume", 1), ("advance", 2, "near"), ("line", "kept", True),
        ("advance", 4, ""), ("stop", "work"),
    ]  # fmt: skip


def test_a_job_that_fails_is_stopped_and_the_reporter_of_before_is_back():
    heard, before = Heard(), set_reporter(Reporter())
    set_reporter(before)
    with pytest.raises(ZeroDivisionError), reporting_to(heard), Progress("work", 1):
        raise ZeroDivisionError
    assert heard.calls[-1] == ("stop", "work")
    assert set_reporter(before) is before


def test_lines_reach_a_configured_logger_and_nothing_else(caplog, capfd, monkeypatch):
    a_job()
    assert not caplog.records
    with caplog.at_level(logging.INFO, "drllm"):
        a_job()
    assert [(record.name, record.levelname) for record in caplog.records] == [("drllm", "INFO")] * 4
    assert caplog.messages[:3] == ["a stage ...", "work: 1 of 4 were done before", "kept"]
    assert re.fullmatch(r"work: 4/4, \d+ s, 0 s left", caplog.messages[3])
    caplog.clear()
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "drllm"):
        a_job()
    assert re.fullmatch(r"work near: 2/4, \d+ s, \d+ s left", caplog.messages[2])
    assert capfd.readouterr() == ("", "")


# A library call of every long job, with the loggers of other packages quiet: what stands on the streams is ours.
LIBRARY = """
import logging, os, sys
from drllm.cli.terminal import quiet_other_packages
quiet_other_packages()
os.environ["HF_HUB_OFFLINE"] = "1"
from drllm import EvaluateConfig, RoutedModel, RoutersConfig, SearchConfig, evaluate, report, search, show_progress, train
import families
from byte_tokens import byte_tokenizer
from drllm.core.progress import Reporter, set_reporter
from runs import questions, write_rows
from pathlib import Path
how, out = sys.argv[1], Path(sys.argv[2])
if how == "logging":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s|%(message)s")
elif how == "shown":
    show_progress()
routed = RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=512), byte_tokenizer())
data = write_rows(out / "sums.jsonl", questions())
run = out / "run"
search(routed, ["arc_easy"], SearchConfig(n_simulations=3, limit=4, group_size=2, sweep_questions=2), run, data)
train(routed, run, config=RoutersConfig(epochs=1, tune_questions=4))
evaluate(routed, ["base", "routers"], ["arc_easy"], run, EvaluateConfig(limit=4, n_resamples=100), data)
"""


def called(how: str, folder: Path) -> tuple[str, str]:
    """What a script that calls the library leaves on its two streams."""
    environment = os.environ | {"PYTHONPATH": f"{SRC}:{Path(__file__).parents[1] / 'support'}"}
    done = subprocess.run([sys.executable, "-c", LIBRARY, how, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_library_call_writes_to_no_stream(tmp_path: Path):
    assert called("silent", tmp_path) == ("", "")


@pytest.mark.parametrize(("how", "stream"), [("logging", 0), ("shown", 1)])
def test_a_caller_who_asks_gets_the_lines(how, stream, tmp_path: Path):
    streams = called(how, tmp_path)
    lines = streams[stream].splitlines()
    assert streams[1 - stream] == ""
    start = "drllm|" if how == "logging" else ""
    for label in ("search arc_easy: 4/4", "train routers: 1/1", "arc_easy"):
        assert any(line.startswith(start) and label in line for line in lines), lines


FORBIDDEN = re.compile(r"sys\.(?:__)?std(?:err|out)|(?<![\w.])(?<!def )print\(|\bargparse\b")


def test_only_the_command_line_parses_arguments_and_writes_to_streams():
    found = [
        f"{path.relative_to(SRC / 'drllm')}:{number}: {line.strip()}"
        for path in sorted((SRC / "drllm").rglob("*.py"))
        if "cli" not in path.relative_to(SRC / "drllm").parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []
