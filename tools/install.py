"""pip with a bar: what it installs is counted, with the time left. Standard library alone, since nothing else is there yet.

    .venv/bin/python tools/install.py -e '.[demo]'

The arguments are `pip install`'s. On a terminal the line is drawn anew, in a log one is written every ten seconds. All that pip says is
shown where it fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path

EVERY = {True: 0.2, False: 10.0}  # seconds between two lines, on a terminal and in a log
WIDTH = 78  # characters that a drawn line clears


def plain(name: str) -> str:
    """A package's name as all spellings of it have in common."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Counted:
    """What pip's lines, and the folder that it installs into, say of how far it is."""

    def __init__(self, site: Path):
        self.site, self.began = site, time.time()
        self.found = 0
        self.wanted: frozenset[str] = frozenset()

    def read(self, line: str) -> None:
        """One line of pip's."""
        self.found += line.startswith("Collecting ")
        if line.startswith("Installing collected packages: "):
            names = line.partition(": ")[2].split(",")
            self.wanted, self.began = frozenset(plain(name.strip()) for name in names), time.time()

    def done(self) -> int:
        """Packages of this installation that are there already: pip writes a package's metadata last."""
        here = [folder for folder in self.site.glob("*.dist-info") if folder.stat().st_mtime >= self.began - 1]
        return len(self.wanted & {plain(folder.name.partition("-")[0]) for folder in here})

    def text(self, now: float) -> str:
        """How far it is."""
        seconds = now - self.began
        if not self.wanted:
            return f"looking up and fetching packages: {self.found} so far, {seconds:.0f} s"
        done, total = self.done(), len(self.wanted)
        left = f", {seconds / done * (total - done):.0f} s left" if done else ""
        return f"installing {total} packages: {done}/{total}, {seconds:.0f} s{left}"


def follow(counted: Counted, is_over: threading.Event, write: Callable[[str], object], on_terminal: bool) -> None:
    """Say how far it is until it is over."""
    while not is_over.wait(EVERY[on_terminal]):
        write(f"\r{counted.text(time.time()):<{WIDTH}}" if on_terminal else f"{counted.text(time.time())}\n")
    if on_terminal:
        write(f"\r{' ' * WIDTH}\r")


def main(arguments: list[str]) -> int:
    """Install, and return what pip returned."""
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", *arguments]
    counted, is_over, said = Counted(Path(sysconfig.get_path("purelib"))), threading.Event(), []
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as pip:
        follower = threading.Thread(target=follow, args=(counted, is_over, write, sys.stderr.isatty()))
        follower.start()
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                said.append(line)
                counted.read(line.strip())
        finally:
            is_over.set()
            follower.join()
    if pip.returncode:
        write("".join(said))
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
