"""Which files of drllm a job passes, in the order of their first call, from a trace of the calls: python tools/walk.py train [ARGUMENTS]

The job is a drllm command line, run in this process; the last line counts the files. Modules that are only imported do not count.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from drllm.cli.main import main

HOUSE = str(Path(__file__).resolve().parents[1] / "src" / "drllm") + "/"


def walk(arguments: list[str]) -> dict[str, int]:
    """File -> number of calls into it from another file, of one command line."""
    found: dict[str, int] = {}

    def traced(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(HOUSE) or frame.f_code.co_name == "<module>":
            return
        caller = frame.f_back
        if caller is None or caller.f_code.co_filename != frame.f_code.co_filename:
            name = frame.f_code.co_filename[len(HOUSE) :]
            found[name] = found.get(name, 0) + 1

    threading.setprofile(traced)
    sys.setprofile(traced)
    try:
        main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


if __name__ == "__main__":
    passed = walk(sys.argv[1:])
    sys.stdout.write("".join(f"{calls:9,}  {file}\n" for file, calls in passed.items()) + f"{len(passed)} files\n")
