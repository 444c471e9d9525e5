"""The `drllm` command: parse, run, and turn every mistake into one line on standard error. The commands are in `commands.py`.

Results go to standard output; progress, warnings and errors to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from drllm import __version__
from drllm.cli.commands import COMMANDS
from drllm.cli.job import Job, Lines
from drllm.cli.options import CommonConfig, Sections, build, read_yaml
from drllm.core.errors import DrllmError, InputError
from drllm.core.names import did_you_mean

EXIT_INPUT, EXIT_INTERRUPTED, EXIT_PIPE = 2, 130, 141


class _Help(Exception):
    """Carries the text of --help to where results are written."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing and exiting, so that every mistake ends as one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")

    def print_help(self, file: Any = None) -> NoReturn:
        raise _Help(self.format_help().rstrip())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for anything drllm refuses, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # libraries must not write among the results
        warnings.showwarning = _show_warning
        try:
            for line in _lines(arguments):
                out.write(line + "\n")
                out.flush()
        except DrllmError as error:
            return _fail(_one_line(error), EXIT_INPUT)
        except KeyboardInterrupt:
            return _fail("interrupted; finished work is kept, the same command resumes", EXIT_INTERRUPTED)
        except BrokenPipeError:
            _discard(out)
            return EXIT_PIPE
        except OSError as error:
            if error.filename is None:
                raise
            return _fail(
                f"{error.strerror or error}: {error.filename}; give another path, or make room and run the same command, which resumes",
                EXIT_INPUT,
            )
    return 0


def _lines(arguments: list[str]) -> Lines:
    """Everything the command line asks for, as lines of standard output."""
    if not arguments or arguments[0] in ("-h", "--help"):
        yield _overview()
        return
    if arguments[0] == "--version":
        yield f"drllm {__version__}"
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        kind = "flag" if name.startswith("-") else "command"
        hint = did_you_mean(name, COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
        raise InputError(f"unknown {kind} {name!r}{hint}; see `drllm --help`")
    parser = make_parser(name, rest)
    try:
        parsed, unknown = parser.parse_known_intermixed_args(rest)
    except _Help as text:
        yield str(text)
        return
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise InputError(f"unexpected argument {flag!r}; see `{parser.prog} --help`")
        known = [option for action in parser._actions for option in action.option_strings]
        raise InputError(f"unknown flag {flag}{did_you_mean(flag, known)}; see `{parser.prog} --help`")
    settings = read_yaml(getattr(parsed, "config", None), Sections())
    common = build(CommonConfig, settings.common, parsed)
    yield from COMMANDS[name].run(Job(parsed, settings, common, ["drllm", *arguments]))


def make_parser(name: str, arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of one command; some have other flags by what stands among the arguments."""
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"drllm {name}",
        description=command.about,
        epilog=f"example:\n  {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add(parser)
    if command.add_by is not None:
        command.add_by(parser, arguments)
    return parser


def _overview() -> str:
    commands = "\n".join(f"  {name:10} {textwrap.shorten(command.about, 110, placeholder=' ...')}" for name, command in COMMANDS.items())
    return (
        "usage: drllm COMMAND [flags]\n\nAdaptive depth for frozen language models: once a prompt, skip, execute or repeat each block.\n\n"
        f"commands:\n{commands}\n\n`drllm COMMAND --help` shows a command's flags; `drllm --version` the version.\n\n"
        f"example:\n  {COMMANDS['retrofit'].example}"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"drllm: {message}\n" if code == EXIT_INTERRUPTED else f"drllm: error: {message}\n")
    return code


def _show_warning(message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    sys.stderr.write(f"drllm: warning: {_one_line(message)}\n")


def _discard(out: Any) -> None:
    """Send what is still buffered for a closed pipe nowhere, so that the interpreter's last flush is quiet."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
