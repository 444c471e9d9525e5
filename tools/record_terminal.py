"""Draws what a command prints as a picture of a terminal: a still SVG, drawn by rich from the command's own output.

    python tools/record_terminal.py PICTURE.svg drllm retrofit --model smollm2-135m-q4 --tasks arc_easy --minutes 3 --out runs/demo

What the command writes for readers (standard output) is drawn; its progress is shown while it runs. A command that fails draws nothing.
The picture fetches nothing.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 132  # characters
IN_ENVIRONMENT = ("drllm", "python")  # programs that are run from the environment of this script


def drawn(command: list[str], printed: str) -> str:
    """The picture, as SVG; the same text gives the same bytes."""
    longest = max([WIDTH, *map(len, printed.splitlines())])
    console = Console(record=True, width=longest, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(Text(f"$ {shlex.join(command)}", style="bold"))
    console.print(Text.from_ansi(printed))
    return re.sub(r',\s*url\("https[^;]*', "", console.export_svg(title="drllm", unique_id="drllm"))


def main(arguments: list[str]) -> int:
    """Run the command and draw."""
    if len(arguments) < 2 or not arguments[0].endswith(".svg"):
        sys.stderr.write("usage: record_terminal.py PICTURE.svg COMMAND...\n")
        return 2
    target, *command = arguments
    program = Path(sys.executable).parent / command[0] if command[0] in IN_ENVIRONMENT else command[0]
    done = subprocess.run([str(program), *command[1:]], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.stderr.write(f"the command ended with {done.returncode}: nothing was drawn\n")
        return done.returncode
    Path(target).write_text(drawn(command, done.stdout.rstrip() + "\n"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
