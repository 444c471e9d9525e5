"""What to do with a recommendation, offered by number where somebody sits at a terminal."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from drllm.cli.terminal import write_error

OFFERED = {
    "generate": "ask it something",
    "inspect": "show what it does with a prompt",
    "export": "write it for other tools",
    "serve": "serve it on vLLM",
}
PROMPT = "a prompt"  # stands in a command for what the user types


def is_interactive() -> bool:
    """Whether somebody can answer: input, results and messages are a terminal's."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.__stdout__, sys.stderr))


def offer(commands: Sequence[str], report: Path) -> None:
    """Ask what to do next until nothing is chosen; each choice runs the command as it could be pasted into a shell."""
    words = [shlex.split(command) for command in commands]
    can_serve = importlib.util.find_spec("vllm") is not None  # it has an environment of its own, which the box names
    steps = [one for one in words if one[1] in OFFERED and (can_serve or one[1] != "serve")]
    while True:
        write_error("")
        for number, one in enumerate(steps, 1):
            write_error(f"  {number}  {OFFERED[one[1]]}")
        write_error(f"  {len(steps) + 1}  open the report in the browser\n  Enter  leave")
        answer = _asked("what next? ")
        if not answer:
            return
        if answer == str(len(steps) + 1):
            write_error(f"report: {report.resolve()}")  # also where there is no browser
            webbrowser.open(report.resolve().as_uri())
        elif answer.isdecimal() and 1 <= int(answer) <= len(steps):
            _run(steps[int(answer) - 1])
        else:
            write_error(f"got {answer!r}: expected a number from 1 to {len(steps) + 1}, or Enter to leave")


def _asked(question: str) -> str:
    """What is typed; nothing at the end of input or on Ctrl-C."""
    try:
        return input(question).strip()
    except (EOFError, KeyboardInterrupt):
        write_error("")
        return ""


def _run(command: list[str]) -> None:
    """One command in a process of its own; its prompt is asked for. Ctrl-C ends the command, not the menu."""
    if PROMPT in command:
        if not (prompt := _asked("prompt: ")):
            return
        if "--chat" not in command:  # as the policy's questions were asked
            prompt = f"Question: {prompt}\nAnswer:"
        command = [prompt if word == PROMPT else word for word in command]
    try:
        subprocess.run([sys.executable, "-m", *command], check=False)
    except KeyboardInterrupt:
        write_error("")
