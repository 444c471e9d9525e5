"""Progress of long jobs: a bar with time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LOG_EVERY_S = 20.0


class Progress:
    """Context manager around one job of `total` units; writes to standard error only."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done, self.resumed = label, total, 0, 0
        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TextColumn("left"), TimeRemainingColumn())  # fmt: skip
            self._bar = RichProgress(*columns, console=console)
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Progress:
        self._start = self._logged = time.monotonic()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def print(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self._bar:
            self._bar.console.print(line, highlight=False)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def resume(self, n: int) -> None:
        """`n` units were done by an earlier run; the time left is estimated without them."""
        self.done += n
        self.resumed += n
        if self._bar:
            self._bar.reset(self._task, completed=self.done)
        elif n:
            self.print(f"{self.label}: {n} of {self.total} were done before")

    def advance(self, n: int, note: str = "") -> None:
        """`n` more units are done; `note` is shown beside the label."""
        self.done += n
        if self._bar:
            self._bar.update(self._task, advance=n, description=f"{self.label} {note}".strip())
            return
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S or self.done >= self.total:
            self._logged = now
            elapsed = now - self._start
            left = elapsed / max(self.done - self.resumed, 1) * (self.total - self.done)
            line = f"{self.label} {note}".strip()
            sys.stderr.write(f"{line}: {self.done}/{self.total}, {elapsed:.0f} s, {left:.0f} s left\n")
            sys.stderr.flush()
