"""What stands on standard error: bars on a terminal, lines elsewhere, and nothing of packages below."""

from __future__ import annotations

import logging

import pytest

from drllm.cli.main import main
from drllm.cli.terminal import TerminalReporter, quiet_other_packages
from drllm.core.progress import Progress, reporting_to, say


def a_job() -> None:
    with reporting_to(TerminalReporter()):
        say("a stage ...")
        with Progress("work", 4) as job:
            job.resume(1)
            job.advance(1, "near")
            job.print("a line that stays")
            job.advance(2)


def test_bars_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    a_job()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("drllm: a stage ...\n")
    assert "a line that stays" in err
    assert "\x1b[" in err
    assert "4/4" in err
    assert "work: " not in err


def test_lines_in_a_log(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    a_job()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == ["drllm: a stage ...", "work: 1 of 4 were done before", "a line that stays"]
    assert lines[3].startswith("work: 4/4, ")
    assert len(lines) == 4


@pytest.mark.parametrize("name", ["torchao", "torch.utils._pytree"])
def test_warnings_of_packages_below_are_not_shown(name):
    logger = logging.getLogger(name)
    before = logger.level
    try:
        for quieten in (quiet_other_packages, lambda: main(["--version"])):
            logger.setLevel(logging.NOTSET)
            quieten()
            assert not logger.isEnabledFor(logging.WARNING)
            assert logger.isEnabledFor(logging.ERROR)
    finally:
        logger.setLevel(before)
