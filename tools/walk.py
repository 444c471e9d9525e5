"""Which files of drllm a job passes, in the order of their first call, from a trace of the calls.

python tools/walk.py retrofitting retrofit --model MODEL --tasks arc_easy --out OUT

The first argument is the folder of the job; the rest a drllm command line, run in this process. A file counts once a function of it is
called from another file; `*` marks those called from `cli/` or from that folder, which is what a reader of the job meets. Modules that are
only imported do not count.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from drllm.cli.main import main

HOUSE = str(Path(__file__).resolve().parents[1] / "src" / "drllm") + "/"


def walk(arguments: list[str]) -> dict[str, set[str]]:
    """File -> the files that call it, of one command line."""
    found: dict[str, set[str]] = {}

    def traced(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(HOUSE) or code.co_name == "<module>":
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(HOUSE):  # torch between two of ours
            caller = caller.f_back
        if caller is None or caller.f_code.co_filename != code.co_filename:
            found.setdefault(code.co_filename[len(HOUSE) :], set()).add(caller.f_code.co_filename[len(HOUSE) :] if caller else "")

    threading.setprofile(traced)
    sys.setprofile(traced)
    try:
        main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


if __name__ == "__main__":
    folder, *command = sys.argv[1:]
    passed = walk(command)
    near = {file for file, callers in passed.items() if any(caller.startswith(("cli/", f"{folder}/")) for caller in callers)}
    sys.stdout.write("".join(f"{'*' if file in near else ' '} {file}\n" for file in passed) + f"{len(passed)} files, {len(near)} *\n")
