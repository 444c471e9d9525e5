"""Which files of drllm a job passes, in the order of their first call, from a trace of the calls.

python tools/walk.py retrofitting retrofit --model MODEL --tasks arc_easy --out OUT
python tools/walk.py deploy/serving serve examples/smollm2-135m-codebook --vllm-args=--enforce-eager

The first argument is the folder of the job; the rest a drllm command line, run in this process. Of a server one request is followed, in
every process of it, from the moment that it is sent. A file counts once a function of it is called from another file; `*` marks those
called from `cli/` or from that folder, which is what a reader of the job meets. Modules that are only imported do not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

HOUSE = str(Path(__file__).resolve().parents[1] / "src" / "drllm") + "/"
PORT = "8765"
EACH_PROCESS = "import walk; walk.into_folder()"  # sitecustomize.py of a server's processes


def trace(told: Callable[[str, str], None]) -> None:
    """Tell of every call from another file: the file called, and the caller's, from here on and in threads that start."""

    def traced(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(HOUSE) or code.co_name == "<module>":
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(HOUSE):  # torch between two of ours
            caller = caller.f_back
        if caller is None or caller.f_code.co_filename != code.co_filename:
            told(code.co_filename[len(HOUSE) :], caller.f_code.co_filename[len(HOUSE) :] if caller else "")

    threading.setprofile(traced)
    sys.setprofile(traced)


def walk(arguments: list[str]) -> dict[str, set[str]]:
    """File -> the files that call it, of one command line."""
    from drllm.cli.main import main

    found: dict[str, set[str]] = {}
    trace(lambda file, caller: found.setdefault(file, set()).add(caller))
    try:
        main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


def into_folder() -> None:
    """Append every call to a file of this process in `WALK`, once that folder holds `sent`."""
    folder = Path(os.environ["WALK"])

    def tell(file: str, caller: str) -> None:
        if (folder / "sent").exists():
            with (folder / f"{os.getpid()}.calls").open("a") as calls:
                calls.write(f"{file} {caller}\n")

    trace(tell)


def served(arguments: list[str]) -> dict[str, set[str]]:
    """File -> the files that call it, while a server answers one request."""
    found: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(EACH_PROCESS)
        environment = os.environ | {"WALK": name, "PYTHONPATH": f"{name}:{Path(__file__).parent}"}
        command = [sys.executable, "-m", "drllm", *arguments, "--port", PORT, "--name", "model"]
        with subprocess.Popen(command, env=environment, stdout=sys.stderr) as server:
            while not answers("/health"):
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with status {server.returncode} before it was ready")
                time.sleep(1)
            (folder / "sent").touch()
            answers("/v1/completions", b'{"model": "model", "prompt": "Question: What do plants need?\\nAnswer:", "max_tokens": 8}')
            (folder / "sent").unlink()
            server.terminate()
        for file, caller in (line.split(" ") for path in sorted(folder.glob("*.calls")) for line in path.read_text().splitlines()):
            found.setdefault(file, set()).add(caller)
    return found


def answers(path: str, body: bytes | None = None) -> bool:
    """Whether the server answers this request."""
    try:
        with urlopen(Request(f"http://127.0.0.1:{PORT}{path}", body, {"Content-Type": "application/json"}), timeout=600) as answer:
            return answer.status == 200
    except URLError:
        return False


if __name__ == "__main__":
    folder, *command = sys.argv[1:]
    passed = (served if command[0] == "serve" else walk)(command)
    near = {file for file, callers in passed.items() if any(caller.startswith(("cli/", f"{folder}/")) for caller in callers)}
    sys.stdout.write("".join(f"{'*' if file in near else ' '} {file}\n" for file in passed) + f"{len(passed)} files, {len(near)} *\n")
