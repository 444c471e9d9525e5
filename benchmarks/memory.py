"""The most memory that a command and the processes it starts hold at one time.

    python benchmarks/memory.py [--every 0.5] -- drllm search --model qwen2.5-coder-1.5b-q4 ...

Counts proportional set sizes (Linux): a page that several processes map counts once, so workers that share the weights of one file are not
added up. Pages of a mapped file count while they are in memory, though the system may drop them. Ends as the command ends.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil


def summed(process: psutil.Process, of: Callable[[psutil.Process], float]) -> float:
    """Over a process and everything below it, but for one that ends while they are read."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += of(one)
    return total


def measured(command: Sequence[str], every: float) -> tuple[int, float, float]:
    """Runs a command: its exit status, the most bytes held (of looks `every` seconds apart), seconds until that look."""
    start = time.monotonic()
    with subprocess.Popen(command) as running:
        process, peak, when = psutil.Process(running.pid), 0.0, 0.0
        while running.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                now = summed(process, lambda one: one.memory_full_info().pss)
                if now > peak:
                    peak, when = now, time.monotonic() - start
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(every)
    return running.returncode, peak, when


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two looks")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args(arguments)
    if args.every <= 0:
        parser.error(f"--every is {args.every:g}, expected more than 0")
    try:
        status, peak, when = measured(args.command, args.every)
    except (FileNotFoundError, PermissionError):
        parser.error(f"no command {args.command[0]!r} that can be run; give its path, or a name that PATH holds")
    print(f"memory.py: at most {peak / 2**30:.2f} GiB, {when:.0f} s after the start", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
