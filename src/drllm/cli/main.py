"""The `drllm` command: parse, run, and turn every mistake into one line on standard error.

A command stands in the file of its name: the docstring is its help, `add_flags` fills its parser, `run` yields the lines that it prints.
"""

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from drllm import __version__
from drllm.cli import train
from drllm.cli.job import Job, Lines
from drllm.cli.options import CommonConfig, add_common, build, read_yaml
from drllm.cli.terminal import TerminalReporter, one_line, quiet_other_packages, show_warning, write_error
from drllm.core.errors import DrllmError, InputError
from drllm.core.names import COMMANDS as PLUGINS
from drllm.core.names import did_you_mean, load_plugin, plugin_names
from drllm.core.progress import reporting_to

EXIT_INPUT, EXIT_INTERRUPTED, EXIT_PIPE = 2, 130, 141

GROUPS = {
    "scan, retrofit, heal, serve; to audit a claim: scan --claimed": ("scan", "retrofit", "heal", "serve"),
    "step by step": ("search", "train", "evaluate", "report"),
    "a policy in use": ("generate", "inspect", "export", "info"),
    "lists and tables": ("tasks", "models", "methods", "records"),
}
COMMANDS = {name: importlib.import_module(f"drllm.cli.{name}") for names in GROUPS.values() for name in names}
RESEARCH = ("reproduce",)  # commands of the package in research/, which is not shipped


MOST_SHOWN = 12  # flags that --help lists


class _Help(Exception):
    """Carries the text of --help to where results are written."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing and exiting, so that every mistake ends as one line."""

    shown: Sequence[str] = ()  # flags that --help lists where there are many

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")

    def print_help(self, file: Any = None) -> NoReturn:
        flags = [action for action in self._actions if action.option_strings]
        if len(flags) > MOST_SHOWN:
            for action in flags:
                action.help = action.help if action.dest in ("help", *self.shown) else argparse.SUPPRESS
            self.usage = f"{self.prog} [flags]"
            hidden = sum(action.help == argparse.SUPPRESS for action in flags)
            self.epilog = f"`{self.prog} --help-all` shows {hidden} more flags.\n\n{self.epilog}"
        raise _Help(self.format_help().rstrip())


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise _Help(parser.format_help().rstrip())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for anything drllm refuses, 130 after Ctrl-C, 141 where the reader has gone."""
    arguments, out = list(sys.argv[1:] if argv is None else argv), sys.stdout
    quiet_other_packages()
    if "OMP_WAIT_POLICY" not in os.environ:  # torch's threads spin where they wait for each other, which starves them beside another job
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # a thirtieth of the default of GNU's OpenMP
    # Libraries must not write among the results.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), reporting_to(TerminalReporter()):
        warnings.showwarning = show_warning
        try:
            for line in _lines(arguments):
                out.write(line + "\n")
                out.flush()
        except DrllmError as error:
            return fail(one_line(error))
        except KeyboardInterrupt:
            write_error("drllm: interrupted; finished work is kept, the same command resumes")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # what is still buffered goes nowhere: the last flush is quiet
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
            return EXIT_PIPE
        except OSError as error:
            if error.filename is None:
                raise
            what = f"{error.strerror or error}: {error.filename}"
            return fail(f"{what}; give another path, or make room and run the same command, which resumes")
    return 0


def _lines(arguments: list[str]) -> Lines:
    if not arguments or arguments[0] in ("-h", "--help"):
        yield _overview()
        return
    if arguments[0] == "--version":
        yield f"drllm {__version__}"
        return
    name, rest = arguments[0], arguments[1:]
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
    settings = read_yaml(parsed.config)
    common = build(CommonConfig, settings.common, parsed)
    yield from find_command(name).run(Job(parsed, settings, common, ["drllm", *arguments]))


def command_names() -> tuple[str, ...]:
    return (*COMMANDS, *plugin_names(PLUGINS))


def find_command(name: str) -> Any:
    """The module of a command; `InputError` with the closest name."""
    if name in COMMANDS:
        return COMMANDS[name]
    if (found := load_plugin(PLUGINS, name)) is not None:
        return found
    if name in RESEARCH:
        raise InputError(f"`drllm {name}` is in the research package: run `pip install -e research` in a checkout of drllm")
    kind = "flag" if name.startswith("-") else "command"
    is_audit = "; a claim is audited by `drllm scan --claimed`" if name == "audit" else ""
    hint = is_audit or did_you_mean(name, command_names()) or f"; commands are {', '.join(command_names())}"
    raise InputError(f"unknown {kind} {name!r}{hint}; see `drllm --help`")


def make_parser(name: str, arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Of one command; some have other flags by what stands among the arguments."""
    about, example = help_of(name)
    form, example = argparse.RawDescriptionHelpFormatter, f"example:\n  {example}"
    parser = _Parser(f"drllm {name}", description=about, epilog=example, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show every flag and exit")
    command = find_command(name)
    parser.shown = getattr(command, "SHOWN", ())
    getattr(command, "add_flags", add_common)(parser)
    if name == "train":
        train.add_method_flags(parser, arguments)
    return parser


def help_of(name: str) -> tuple[str, str]:
    about, _, example = (find_command(name).__doc__ or "").partition("\n\nexample:\n")
    return about, example.strip()


def _overview() -> str:
    text = "usage: drllm COMMAND [flags]\n\nWhich blocks of your language model to skip, run or repeat, measured on your questions.\n"
    others = {"of other packages": plugin_names(PLUGINS)}
    for title, names in (GROUPS | (others if any(others.values()) else {})).items():
        text += f"\n{title}:\n" + "".join(f"  {name:10} {help_of(name)[0].splitlines()[0].rstrip('.')}\n" for name in names)
    text += "\n`drllm COMMAND --help` shows a command's flags, `--help-all` all of them; `drllm --version` the version.\n"
    return f"{text}\nexample:\n  {help_of('retrofit')[1]}"


def fail(message: str) -> int:
    write_error(f"drllm: error: {message}")
    return EXIT_INPUT
