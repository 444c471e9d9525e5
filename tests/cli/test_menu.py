"""The menu behind a recommendation: what it offers, runs and leaves, on a pseudo-terminal too."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from drllm.cli import menu

COMMANDS = [
    'drllm generate --policy runs/x/promised "a prompt"',
    "drllm serve runs/x/promised",
    "drllm push runs/x/promised NAME/MODEL",
    "drllm report runs/x",
]


@pytest.fixture
def typed(monkeypatch):
    """Runs the menu on answers; gives what it ran and opened."""

    def run(*answers: str) -> list:
        done, left = [], iter(answers)

        def answer(question: str) -> str:
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr(menu.subprocess, "run", lambda command, check: done.append(command[1:]))
        monkeypatch.setattr(menu.webbrowser, "open", done.append)
        monkeypatch.setattr(menu.importlib.util, "find_spec", lambda name: object())
        menu.offer(COMMANDS, Path("report.html"))
        return done

    return run


def test_a_number_runs_the_command_and_asks_for_the_prompt(typed, capsys):
    assert typed("1", "Why?", "2", "") == [
        ["-m", "drllm", "generate", "--policy", "runs/x/promised", "Question: Why?\nAnswer:"],
        ["-m", "drllm", "serve", "runs/x/promised"],
    ]
    shown = capsys.readouterr().err
    assert shown.count("  1  ask it something\n  2  serve it on vLLM\n  3  open the report in the browser\n  Enter  leave\n") == 3
    assert "push" not in shown, "needs a name that the user has"


def test_the_report_opens_in_the_browser_and_nonsense_is_one_line(typed, capsys):
    assert typed("3", "9", "x") == [Path("report.html").resolve().as_uri()]
    err = capsys.readouterr().err
    for answer in ("9", "x"):
        assert f"got '{answer}': expected a number from 1 to 3, or Enter to leave\n" in err


def test_serving_is_offered_where_vllm_is(typed, capsys, monkeypatch):
    typed("")
    assert "serve it on vLLM" in capsys.readouterr().err
    monkeypatch.setattr(menu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("builtins.input", lambda question: "")
    menu.offer(COMMANDS, Path("report.html"))
    assert "  1  ask it something\n  2  open the report" in capsys.readouterr().err


def test_a_retrofit_opens_it_on_a_terminal(monkeypatch):
    """Behind its box, with the commands that stand in it."""
    from drllm.cli import retrofit
    from drllm.runs.recommendation import Recommendation

    about = {"model": "m", "objective": "accuracy", "tried": ["static"], "best": "static", "deploy": "promised", "route": "1011"}
    result = {"answer": {"prompt": "a"}, "summary": None, "report": Path("report.html")}
    monkeypatch.setattr(
        "drllm.retrofitting.recommend.recommend", lambda *_: (Recommendation(**about), dict(result, answer={"prompt": "a"}))
    )
    monkeypatch.setattr("drllm.reporting.summary_table.render", lambda summary: "a table")
    offered: list = []
    monkeypatch.setattr(menu, "offer", lambda commands, report: offered.append((commands, report)))
    for there, times in ((False, 0), (True, 1)):
        monkeypatch.setattr(menu, "is_interactive", lambda there=there: there)
        *_, box = retrofit._recommended(None, (), "runs/x", {}, None, [])
        assert len(offered) == times
    commands, report = offered[0]
    assert report == Path("report.html")
    assert commands == [
        'drllm generate --policy runs/x/promised "a prompt"',
        "drllm export --policy runs/x/promised --out runs/x/exported",
        "drllm serve runs/x/promised",
        "drllm push runs/x/promised NAME/MODEL",
        "drllm report runs/x",
    ]
    assert all(command in box for command in commands)


def test_no_prompt_and_the_end_of_input_run_nothing(typed):
    assert typed("1", "") == []
    assert typed() == []


def test_it_is_offered_on_a_terminal_alone(tmp_path):
    code = (
        "from pathlib import Path; from drllm.cli import menu; menu.is_interactive() and menu.offer(['drllm generate x'], Path('r.html'))"
    )
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert (piped.stdout, piped.stderr) == ("", "")
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.write(ours, b"\n")
        assert process.wait(timeout=60) == 0
    os.close(theirs)
    assert b"1  ask it something" in os.read(ours, 4096)
    os.close(ours)
