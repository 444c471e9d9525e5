"""The stages of a long call, and other finished work, each remembered under a key of all that determines it. No torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drllm.core.digest import json_digest, short_digest
from drllm.core.errors import ArtifactError
from drllm.core.files import TEMPORARY_SUFFIX, read_json, write_json
from drllm.core.progress import say
from drllm.policies.card import CARD_FILE
from drllm.runs.layout import RunFolder

BEAT = 5.0  # seconds between two notes; at most so many of an attempt that is killed are lost


def key_of(value: Any) -> str:
    """Names a JSON value, whatever the order of its keys."""
    return json_digest(value, sort_keys=True)


def read_kept(path: Path, key: str, advice: str, member: str = "key") -> dict[str, Any] | None:
    """The content of a JSON file whose `member` is this key, else None; `ArtifactError`, which ends in the advice, for a corrupt one."""
    found = read_json(path, advice, dict) if path.is_file() else {}
    return found if found.get(member) == key else None


class Memo:
    """Several pieces of finished work in one file, by name: `{name: {"key": ..., ...}}`."""

    def __init__(self, path: Path):
        self.path = path

    def __contains__(self, name: str) -> bool:
        """Whether work of this name was ever kept, under whichever key."""
        return name in self._read()

    def find(self, name: str, key: str) -> dict[str, Any] | None:
        """What was kept under this name and key, else None; `ArtifactError` for a corrupt file."""
        entry = self._read().get(name)
        return entry if entry is not None and entry.get("key") == key else None

    def keep(self, name: str, key: str, **entry: Any) -> None:
        """Write what work of this name gave, in place of what it gave before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self._read() | {name: {"key": key, **entry}})

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        advice = "delete it, finished work is found again"
        found = read_json(self.path, advice, dict)
        if not all(isinstance(entry, dict) for entry in found.values()):
            raise ArtifactError(f"{self.path} is not a list of finished work by name: {advice}")
        return found


class Stages:
    """Which stages are done: a key of all that determines each, digests of its files, and its result.

    A stage that was killed runs again, and its seconds are those of all attempts at it.
    """

    def __init__(self, run: RunFolder, steps: Sequence[Sequence[str]], start: Any = None):
        """`steps`: names of stages, one group a step that a reader is told of; those in none are short, and run without a word."""
        self.steps = {name: f"[{index} of {len(steps)}] {name}" for index, names in enumerate(steps, 1) for name in names}
        self.root, self.memo, self.under_way = run.root, Memo(run.finished), run.under_way
        self.key = key_of(start)
        self.skipped: list[str] = []  # names of stages that an earlier call had done
        self.took: dict[str, float] = {}  # seconds of each; those that were done already as they took then

    def then(self, name: str, config: Any, folders: Sequence[Path], work: Callable[[], Any]) -> Any:
        """As `once`, of a stage that the ones before determine, too: a change makes everything after it run again."""
        self.key = key_of([self.key, name, config])
        return self.once(name, self.key, folders, work)

    def once(self, name: str, key: str, folders: Sequence[Path], work: Callable[[], Any]) -> Any:
        """The result of a stage, as JSON has it: remembered where it was done under this key and its files are as it left them."""
        entry = self.memo.find(name, key)
        if entry is not None and entry["files"] == self._files(folders):
            self.skipped.append(name)
            self.took[name] = entry["seconds"]
            self._say(name, f": done already ({entry['seconds']:.0f} s)")
            return entry["result"]
        with self.doing(name), stage_clock(self.under_way, key) as spent:
            if folders and not self.has_begun(name):
                self.memo.keep(name, "")
            result = work()
            self.took[name] = spent()
            self.memo.keep(name, key, seconds=round(self.took[name], 3), files=self._files(folders), result=result)
        return result

    def has_begun(self, name: str) -> bool:
        """Whether a stage of this name was ever begun here, so that what stands in its folders is its."""
        return name in self.memo

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Say that a stage begins, and in the end what it took."""
        self._say(name, " ...")
        start = time.monotonic()
        yield
        self._say(name, f": {self.took.setdefault(name, time.monotonic() - start):.0f} s")

    def _say(self, name: str, what: str) -> None:
        if name in self.steps:
            say(f"{self.steps[name]}{what}")

    @property
    def seconds(self) -> float:
        """What all stages so far took."""
        return sum(self.took.values())

    def _files(self, folders: Sequence[Path]) -> dict[str, str]:
        paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
        paths = [path for path in paths if path.suffix != TEMPORARY_SUFFIX and path.name != CARD_FILE]  # a card is written anew
        return {path.relative_to(self.root).as_posix(): short_digest(path.read_bytes()) for path in paths}


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
