"""Progress of long jobs. The library writes to no stream: it tells one reporter, which a caller may replace.

Until then lines go to the logger `drllm` at level INFO, so that nothing is shown unless the caller configures `logging`, calls
`drllm.show_progress()` (bars on a terminal), or works inside `reporting_to(MyReporter())`. What it should mend goes through `warnings`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOG_EVERY_S = 20.0
SLOW_S = 5.0  # of a step without a count, after which it is said
# Loggers of other packages whose lines no user of drllm can act on. torchao, which transformers imports wherever it is installed, warns of
# each of its kernels for other processors ("Failed to load ..."), and makes torch warn of torchao's own enumerations (`register_constant`).
NOISY = ("torchao", "torch.utils._pytree")


class Progress:
    """Context manager around one job of `total` units: `done` of them so far, `resumed` of those by an earlier run.

    `n_advances` counts the calls of `advance`; `started` and `reported` are times of the job's start and of its last line.
    """

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done, self.resumed, self.n_advances, self.note = label, total, 0, 0, 0, ""
        self._reporter = _current

    def __enter__(self) -> Progress:
        self.started = self.reported = time.monotonic()
        self._reporter.start(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._reporter.stop(self)

    def print(self, line: str) -> None:
        """A line that stays, above the bar where there is one."""
        self._reporter.line(line, self)

    def resume(self, n: int) -> None:
        self.done += n
        self.resumed += n
        self._reporter.resume(self)

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        self.n_advances += 1
        self.note = note
        self._reporter.advance(self)

    def tell(self, note: str) -> None:
        """No unit is done, but `note` is shown beside the label until one is."""
        self.note = note
        self._reporter.advance(self)


class Reporter:
    """Reports jobs as lines to the logger `drllm`: at most one in `LOG_EVERY_S` seconds of a job, and one at its end."""

    def start(self, job: Progress) -> None:
        """A job begins."""

    def stop(self, job: Progress) -> None:
        """A job has ended, or failed."""

    def resume(self, job: Progress) -> None:
        """`job.resumed` of its units were done by an earlier run."""
        if job.resumed:
            self.line(f"{job.label}: {job.resumed} of {job.total} were done before", job)

    def advance(self, job: Progress) -> None:
        """`job.done` has grown, or `job.note` has changed."""
        now = time.monotonic()
        if now - job.reported < LOG_EVERY_S and job.done < job.total:
            return
        job.reported, elapsed = now, now - job.started
        told = f"{f'{job.label} {job.note}'.strip()}: {job.done}/{job.total}, {elapsed:.0f} s"
        # After the first call little is known of the time left: it bears the start of the job, and other workers are about to end theirs.
        if (job.n_advances > 1 and job.done > job.resumed) or job.done == job.total:
            told += f", {elapsed / max(job.done - job.resumed, 1) * (job.total - job.done):.0f} s left"
        self.line(told, job)

    def line(self, text: str, job: Progress | None = None) -> None:
        """One line: of a job, or, without one, of the steps between jobs."""
        logging.getLogger("drllm").info(text)


_current = Reporter()


def set_reporter(reporter: Reporter) -> Reporter:
    """Let this reporter hear of every job that starts from now on; returns the one before it."""
    global _current
    before, _current = _current, reporter
    return before


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Let this reporter hear of the jobs inside the block."""
    before = set_reporter(reporter)
    try:
        yield
    finally:
        set_reporter(before)


def say(line: str) -> None:
    _current.line(line)


@contextmanager
def said_if_slow(line: str) -> Iterator[None]:
    """Say what is being done, once it has taken `SLOW_S`: for steps that cannot tell how far they are."""
    timer = threading.Timer(SLOW_S, _current.line, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
