"""Stages of a retrofit: each runs once, and is known again by all that determines it. No torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drllm.core.digest import file_digest, short_digest
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import TEMPORARY_SUFFIX, read_json, write_json
from drllm.core.progress import say
from drllm.policies.card import CARD_FILE
from drllm.retrofitting.choice import NAMES
from drllm.retrofitting.stage_clock import stage_clock
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import search_manifests
from drllm.runs.memo import Memo, key_of
from drllm.tasks.files import SUFFIXES
from drllm.tasks.hub import is_on_hub

LISTED = "the best routes on every question"  # the name of a stage
# Of a retrofit, as a reader is told of them; what stands between them takes no time.
STEPS = (
    ("what fits into the time",),
    ("scan",),
    (LISTED,),
    (*(f"train {name}" for name in NAMES), "search"),
    ("compare on tune",),
    ("promise", "compare on calibrate", "seconds of answers", "rounding"),
    ("generate", "report"),
)


class Stages:
    """Which stages are done: a key of all that determines each, digests of its files, and its result.

    A stage's key holds the key of the stage before it, so a change makes everything after it run again.
    """

    def __init__(self, run: RunFolder, start: Any, steps: Sequence[Sequence[str]] = ()):
        """`steps`: names of stages, one group a step that a reader is told of; those in none are short, and run without a word."""
        self.steps = {name: f"[{index} of {len(steps)}] " for index, names in enumerate(steps, 1) for name in names}
        self.root, self.memo, self.under_way = run.root, Memo(run.finished, "stages"), run.under_way
        self.key = key_of(start)
        self.skipped: list[str] = []
        self.took: dict[str, float] = {}  # seconds of each stage, those that were done already as they took then

    def run(self, name: str, config: Any, folders: Sequence[Path], work: Callable[[], Any]) -> Any:
        """The result of the stage: remembered when it is done, else of `work`."""
        self.key = key_of([self.key, name, config])
        entry = self.memo.find(name, self.key)
        if entry is not None and entry["files"] == self._files(folders):
            self.skipped.append(name)
            self.took[name] = entry["seconds"]
            self._say(name, f"done already ({entry['seconds']:.0f} s)")
            return entry["result"]
        self._say(name, "...")
        with stage_clock(self.under_way, self.key) as spent:
            result = work()
            seconds = spent()
            self.memo.keep(name, self.key, seconds=round(seconds, 3), files=self._files(folders), result=result)
        self.took[name] = seconds
        self._say(name, f"{seconds:.0f} s")
        return result

    def _say(self, name: str, what: str) -> None:
        if name in self.steps or not self.steps:
            say(f"{self.steps.get(name, '')}{name}{' ' if what == '...' else ': '}{what}")

    @property
    def seconds(self) -> float:
        """What all stages so far took."""
        return sum(self.took.values())

    def _files(self, folders: Sequence[Path]) -> dict[str, str]:
        paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
        paths = [path for path in paths if path.suffix != TEMPORARY_SUFFIX and path.name != CARD_FILE]  # a card is written anew
        return {path.relative_to(self.root).as_posix(): short_digest(path.read_bytes()) for path in paths}


@contextmanager
def claimed_if_begun(run: RunFolder) -> Iterator[None]:
    """A retrofit that is refused before its first stage is done does not keep its folder: other minutes may be given there."""
    try:
        yield
    except InputError:
        if not run.finished.is_file():
            run.asked.unlink(missing_ok=True)
            run.under_way.unlink(missing_ok=True)
        raise


def data_key(data: str | Path | None) -> str | None:
    """A digest of the files' bytes: another content under the same name is other data. A missing file is refused by `load_task`."""
    if data is None or not Path(data).exists():
        return str(data) if data is not None and is_on_hub(data) else None
    root = Path(data)
    paths = sorted(root.rglob("*.jsonl")) if root.is_dir() else [root]
    others = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES[1:]) if root.is_dir() else []
    named = "".join(f"{path.relative_to(root)} {file_digest(path)}" for path in others)
    return short_digest(b"".join(bytes.fromhex(file_digest(path)) for path in paths) + named.encode())


def claim_folder(run: RunFolder, settings: dict[str, Any]) -> None:
    """Write once what a retrofit is asked for; `ArtifactError`, before anything is touched, for a folder that holds something else."""
    where, other = run.root, "give another --out"
    if not run.asked.is_file():
        if search_manifests(where) or run.finished.is_file():
            raise ArtifactError(f"{where} holds a search, or a retrofit by --recipe paper: go on with that, or {other}")
        where.mkdir(parents=True, exist_ok=True)
        write_json(run.asked, settings)
        return
    before = read_json(run.asked, "remove that folder and try again", dict)
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        name = changed[0]
        raise ArtifactError(f"{where} was asked for with {name} {before.get(name)}, now it is {settings[name]}: {other}")
