"""Progress goes through one reporter, and the library writes to no stream."""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from drllm.core import progress
from drllm.core.progress import Progress, Reporter, reporting_to, said_if_slow, set_reporter
from runs import a_job

SRC = Path(__file__).parents[2] / "src"


class Heard(Reporter):
    def __init__(self) -> None:
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


def test_what_is_under_way_is_said_before_the_first_unit_is_done(caplog):
    caplog.set_level(logging.INFO, "drllm")
    with Progress("search", 4) as job:
        job.resume(2)
        for step in (lambda: job.tell("(3 of at most 8 routes judged)"), lambda: job.advance(1), lambda: job.tell("(1 of at most 4)")):
            job.reported = -progress.LOG_EVERY_S  # long ago
            step()
    said = [record.message for record in caplog.records]
    assert said == [
        "search: 2 of 4 were done before",
        "search (3 of at most 8 routes judged): 2/4, 0 s",  # nothing is known of the time left
        "search: 3/4, 0 s",
        "search (1 of at most 4): 3/4, 0 s",
    ]


def test_a_reporter_of_ones_own_hears_everything_and_only_inside_its_block():
    heard = Heard()
    with reporting_to(heard):
        a_job()
    a_job()
    assert heard.calls == [
        ("line", "a stage ...", False),
        ("start", "work", 4),
        ("resume", 1),
        ("advance", 2, "near"),
        ("line", "kept", True),
        ("advance", 4, ""),
        ("stop", "work"),
    ]


def test_a_job_that_fails_is_stopped_and_the_reporter_of_before_is_back():
    heard, before = Heard(), set_reporter(Reporter())
    set_reporter(before)
    with pytest.raises(ZeroDivisionError), reporting_to(heard), Progress("work", 1):
        raise ZeroDivisionError
    assert heard.calls[-1] == ("stop", "work")
    assert set_reporter(before) is before


def test_lines_reach_a_configured_logger_and_nothing_else(caplog, capfd):
    a_job()
    assert not caplog.records
    with caplog.at_level(logging.INFO, "drllm"):
        a_job()
    assert [(record.name, record.levelname) for record in caplog.records] == [("drllm", "INFO")] * 4
    assert caplog.messages[:3] == ["a stage ...", "work: 1 of 4 were done before", "kept"]
    assert re.fullmatch(r"work: 4/4, \d+ s, 0 s left", caplog.messages[3])
    caplog.clear()
    with caplog.at_level(logging.INFO, "drllm"), Progress("work", 9) as job:
        job.advance(3)
        job.reported -= progress.LOG_EVERY_S
        job.advance(3)
    assert re.fullmatch(r"work: 6/9, \d+ s, \d+ s left", caplog.messages[0])
    assert capfd.readouterr() == ("", "")


def test_a_step_without_a_count_is_said_once_it_is_slow(monkeypatch):
    heard = Heard()
    with reporting_to(heard), pytest.raises(ZeroDivisionError), said_if_slow("never"):
        raise ZeroDivisionError
    assert not any(isinstance(thread, threading.Timer) and not thread.finished.is_set() for thread in threading.enumerate())
    monkeypatch.setattr(progress, "SLOW_S", 0.01)
    with reporting_to(heard), said_if_slow("loading ..."):
        for _ in range(1000):
            if heard.calls:
                break
            time.sleep(0.01)
    assert heard.calls == [("line", "loading ...", False)]


# Library calls of the long jobs, with the loggers of other packages quiet: what stands on the streams is ours. Three times over: as
# they are, with logging configured, and with the progress of the command line; a line of slashes between.
LIBRARY = """
import logging, sys
from pathlib import Path
from drllm.cli.terminal import quiet_other_packages
quiet_other_packages()
import families
from byte_tokens import byte_tokenizer
from drllm import EvaluateConfig, RoutedModel, RoutersConfig, SearchConfig, evaluate, report, search, show_progress, train
from runs import questions, write_rows

routed = RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=512), byte_tokenizer())
data = write_rows(Path(sys.argv[1]) / "sums.jsonl", questions())

def work(name):
    run = Path(sys.argv[1]) / name
    search(routed, ["arc_easy"], SearchConfig(n_simulations=2, limit=2), run, data)
    routed.policy = train(routed, run, config=RoutersConfig(epochs=1, tune_questions=2))
    routed.save_pretrained(run / "routers")
    evaluate(routed, ["base", "routers"], ["arc_easy"], run, EvaluateConfig(limit=2, n_resamples=100), data)
    print("////", flush=True)
    print("////", file=sys.stderr, flush=True)

work("silent")
handler = logging.StreamHandler(sys.stdout)
logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(name)s|%(message)s")
work("logged")
logging.getLogger().removeHandler(handler)
show_progress()
work("shown")
"""


@pytest.mark.slow
def test_a_library_call_is_silent_unless_the_caller_asks(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": f"{SRC}:{Path(__file__).parents[1] / 'support'}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", LIBRARY, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (silent, logged, no_prints, _), (also_silent, no_logs, shown, _) = done.stdout.split("////\n"), done.stderr.split("////\n")
    assert (silent, also_silent, no_logs, no_prints) == ("", "", "", "")
    for start, lines in (("drllm|", logged.splitlines()), ("", shown.splitlines())):
        for label in ("search arc_easy: 2/2", "train routers: 1/1", "choose the operating point: 2/2"):
            assert any(line.startswith(f"{start}{label}") for line in lines), lines
