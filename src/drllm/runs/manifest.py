"""The manifest of a task folder: all that determines its records, so that none made otherwise get in among them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from drllm.core.config import SearchConfig
from drllm.core.errors import ArtifactError
from drllm.core.files import read_json, remove_partials, write_json
from drllm.core.text import type_name
from drllm.runs.layout import MANIFEST_FILE, RunFolder
from drllm.runs.store import Asked, Conditions
from drllm.runs.stored import Stored
from drllm.tasks.base import Kind, Task, get_task, own_task

MANIFEST_KEYS = {"task", "data", "model", "fingerprint", "config", "questions", "ids"}  # what other jobs read
PLACE_KEYS = ("dtype", "device", "threads", "conditions")  # how it was computed, not what
_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Manifest(Stored):
    """All that determines the records of one task folder.

    Attributes:
        task: its name; kind: of a user's own task, "choice" or "math".
        source, data: what its questions were read from, in words, and the file or folder given for them.
        model, fingerprint: id of the base, and digest of its weights.
        dtype, device, threads: how it was computed; threads where they can flip a verdict.
        config: the `SearchConfig`, as JSON.
        prompt_format: "raw" or "chat"; prompts, reader: the wording that letters and boxed answers were asked for in, and whose verdict
            was the reward; empty for other rewards.
        conditions, counts: under which its verdicts stand in the store, and which of a row's is the reward.
        questions, ids: digest of the questions, and their names in the order of the shards.
        asked, splits: digest and split of each of them.
        skipped: by name, why a question was left out.
        paths: the routes evaluated instead of a search, as text; a later call may add to them.
        control: the blind baseline's routes, as text.
    """

    OPTIONAL: ClassVar = ("kind", "prompts", "reader")
    task: str = ""
    kind: Kind | None = None
    source: str = ""
    data: str | None = None
    model: str = ""
    fingerprint: str = ""
    dtype: str = ""
    device: str = ""
    threads: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    prompt_format: str = ""
    prompts: str = ""
    reader: str = ""
    conditions: dict[str, str] = field(default_factory=dict)
    counts: str = ""
    questions: str = ""
    ids: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    paths: list[str] | None = None
    control: list[str] = field(default_factory=list)

    @property
    def as_task(self) -> Task:
        """What its questions are asked as."""
        return own_task(self.task, self.kind) if self.kind else get_task(self.task)

    @property
    def questions_asked(self) -> list[Asked]:
        """Each question, as the store names it."""
        return [Asked(self.task, *named) for named in zip(self.splits, self.ids, self.asked, strict=True)]

    @property
    def search_config(self) -> SearchConfig:
        return SearchConfig(**self.config)

    @property
    def under(self) -> Conditions:
        """`conditions`, to ask the store with."""
        return Conditions(**self.conditions)

    @property
    def dtype_name(self) -> str:
        """The type of the weights, as a flag takes it; empty where an older version did not say."""
        return type_name(self.dtype)


def data_of(folder: Path, data: str | Path | None) -> str | Path | None:
    """Where questions that a run remembers lie: what was given, or, from another folder than the run was started in, that below one of the
    folders that hold the run."""
    if data is None or Path(data).exists():
        return data
    place = folder.resolve()
    return next((found for parent in (place, *place.parents) if (found := parent / data).exists()), data)


def check_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write what determines a folder's records, or refuse to mix them with records made otherwise. Returns what stands there now.

    Routes of `paths` are added to those that stand there. Also removes what killed processes left half written in the folder.
    """
    path = folder / MANIFEST_FILE
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    if not path.is_file():
        if shards := sorted(folder.glob("*.parquet")):
            what = f"records ({shards[0].name}, ...) but no {MANIFEST_FILE}"
            raise ArtifactError(f"{folder} holds {what}: what made them is unknown, give another --out")
        write_json(path, manifest.to_json())
        return manifest
    there = read_manifest(folder)
    if there.paths is not None and manifest.paths is not None:
        manifest = manifest.changed(paths=list(dict.fromkeys([*there.paths, *manifest.paths])))
        there = there.changed(paths=manifest.paths)
    for key, before, now in differences(there.to_json(), manifest.to_json()):
        raise ArtifactError(f"{folder} was searched with {key} = {before}, now it is {now}: use another --out, or the same settings")
    if manifest.paths is not None:
        write_json(path, manifest.to_json())
    return manifest


def computed_otherwise(folder: Path, manifest: Manifest) -> str:
    """The type of the weights that a folder's records were made with, where its manifest differs from this one only in how it was
    computed; else empty."""
    if not (folder / MANIFEST_FILE).is_file():
        return ""
    before = read_manifest(folder)
    found = {key.partition(".")[0] for key, *_ in differences(before.to_json(), manifest.to_json())}
    return before.dtype_name if "dtype" in found and found <= set(PLACE_KEYS) else ""


def read_manifest(folder: Path) -> Manifest:
    """What determines the records of a folder; `ArtifactError` when it is corrupt or foreign."""
    path = folder / MANIFEST_FILE
    again = f"delete {folder} and search again"
    if not _is_manifest(values := read_json(path, again)):
        raise ArtifactError(f"{path} is not the manifest of a drllm search: {again}")
    return Manifest.of(values, path)


def search_manifests(run: Path) -> dict[Path, Manifest]:
    """The manifest of each searched task of a run, by its task folder; `ArtifactError` when one is corrupt or foreign."""
    return _manifests(RunFolder(run).searches)


def path_manifests(run: Path) -> dict[Path, Manifest]:
    """As `search_manifests`, of the dense matrices that `search --paths` made."""
    return _manifests(RunFolder(run).matrices)


def _manifests(folder: Path) -> dict[Path, Manifest]:
    return {path.parent: read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST_FILE}"))}


def _is_manifest(values: Any) -> bool:
    if not isinstance(values, dict) or MANIFEST_KEYS - values.keys():
        return False
    ids = values["ids"]
    return isinstance(values["config"], dict) and isinstance(ids, list) and all(isinstance(name, str) for name in ids)


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two JSON values differ, tuples being lists, in the order of the second: (dotted key, value before, value now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*now, *(name for name in before if name not in now)]:
            yield from differences(before.get(name, _MISSING), now.get(name, _MISSING), f"{key}.{name}" if key else str(name))
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{key}[{index}]")
    elif before != now:
        yield key, _shown(before), _shown(now)


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "(not set)"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else repr(value)[:100]
