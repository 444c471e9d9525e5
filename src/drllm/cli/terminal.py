"""Standard error as a reader sees it: bars on a terminal, a line now and then in a log, warnings in one line, nothing of other packages."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

from drllm.core.progress import NOISY, Progress, Reporter, set_reporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class TerminalReporter(Reporter):
    """Shows each job on standard error: as a bar with the time left where that is a terminal, else as a line now and then."""

    def __init__(self) -> None:
        self._bars: dict[Progress | None, tuple[Bar, TaskID]] = {}
        self._stream = sys.stderr  # a library that loads may have it redirected when a line comes

    def start(self, job: Progress) -> None:
        from rich.console import Console  # where it draws: a refused argument is fast

        console = Console(file=self._stream)
        if console.is_terminal:
            bar = _new_bar(console)
            self._bars[job] = bar, bar.add_task(job.label, total=job.total)
            bar.start()

    def resume(self, job: Progress) -> None:
        if job not in self._bars:
            return super().resume(job)
        bar, task = self._bars[job]
        bar.reset(task, completed=job.done)

    def advance(self, job: Progress) -> None:
        if job not in self._bars:
            return super().advance(job)
        bar, task = self._bars[job]
        bar.update(task, completed=job.done, description=f"{job.label} {job.note}".strip())

    def stop(self, job: Progress) -> None:
        if job in self._bars:
            self._bars.pop(job)[0].stop()

    def line(self, text: str, job: Progress | None = None) -> None:
        if job in self._bars:
            self._bars[job][0].console.print(text, highlight=False)
        else:
            write_error(text if job is not None else f"drllm: {text}", self._stream)


def _new_bar(console: Console) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=console)


def show_progress() -> None:
    """Show the library's progress on standard error from now on, as the command line does: bars on a terminal, else lines."""
    set_reporter(TerminalReporter())


def quiet_other_packages() -> None:
    """Keep lines off the terminal that no user of drllm can act on. Call it before torch is imported."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def write_error(line: str, stream: TextIO | None = None) -> None:
    where = sys.stderr if stream is None else stream
    where.write(f"{line}\n")
    where.flush()


def show_warning(message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    write_error(f"drllm: warning: {one_line(message)}")


def one_line(message: object) -> str:
    return " ".join(str(message).split())
