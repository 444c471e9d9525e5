"""Seconds of a stage over all attempts at it: what was killed and begun again has cost what both took. No torch."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drllm.core.files import write_json
from drllm.runs.memo import read_kept

BEAT = 5.0  # seconds between two notes; at most so many of an attempt that is killed are lost


@contextmanager
def stage_clock(path: Path, key: str, beat: float = BEAT) -> Iterator[Callable[[], float]]:
    """Gives the seconds spent so far, those of earlier attempts at the stage of this key among them.

    The seconds are noted in the file at `path` while the stage runs, and when it fails. The note goes when the stage is done.
    """
    before = read_kept(path, key, "delete it: the time of the attempt that ended is counted anew")
    earlier, start = float(before["seconds"]) if before else 0.0, time.monotonic()
    done = threading.Event()

    def spent() -> float:
        return earlier + time.monotonic() - start

    def note() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "seconds": round(spent(), 3)})

    def keep_noting() -> None:
        while not done.wait(beat):
            note()

    thread = threading.Thread(target=keep_noting, daemon=True)
    thread.start()
    finished = False
    try:
        yield spent
        finished = True
    finally:  # after Ctrl-C too
        done.set()
        thread.join()
        if finished:
            path.unlink(missing_ok=True)
        else:
            note()
