"""Print a script that completes drllm's commands and flags in a shell.

Put it where your shell looks for completions, as ~/.local/share/bash-completion/completions/drllm, or source it:

  source <(drllm completion bash)

example:
  drllm completion bash
"""

import argparse

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common


def run(job: Job) -> Lines:
    import shtab

    from drllm.cli.main import command_names, find_command, help_of

    whole = argparse.ArgumentParser("drllm")
    commands = whole.add_subparsers()
    for name in command_names():
        about = help_of(name)[0].splitlines()[0]
        one = commands.add_parser(name, help=about, description=about)
        getattr(find_command(name), "add_flags", add_common)(one)
    yield shtab.complete(whole, job.arguments.shell).rstrip()


def add_flags(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="which shell's script to print")
    add_common(parser)
