"""The manifest of a task folder: all that determines its records, so that none made otherwise get in among them."""

from collections.abc import Iterator, Mapping
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
from drllm.tasks import LoadedTask, drop_overlaps, load_task
from drllm.tasks.base import Kind, Task, get_task, own_task

MANIFEST_KEYS = {"task", "data", "model", "fingerprint", "config", "questions", "ids"}  # what other jobs read
PLACE_KEYS = ("dtype", "device", "threads", "conditions")  # how it was computed, not what
_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Manifest(Stored):
    """All that determines the records of one task folder."""

    OPTIONAL: ClassVar = ("kind", "prompts", "reader")
    task: str = ""
    kind: Kind | None = None  # of a user's own task
    source: str = ""  # what its questions were read from, in words
    data: str | None = None  # the file or folder given for them
    model: str = ""  # id of the base
    fingerprint: str = ""  # digest of its weights
    dtype: str = ""
    device: str = ""
    threads: int | None = None  # where they can flip a verdict
    config: dict[str, Any] = field(default_factory=dict)  # the `SearchConfig`, as JSON
    prompt_format: str = ""  # "raw" or "chat"
    prompts: str = ""  # the wording that letters and boxed answers were asked for in
    reader: str = ""  # whose verdict on those was the reward
    conditions: dict[str, str] = field(default_factory=dict)  # under which its verdicts stand in the store
    counts: str = ""  # which of a row's verdicts is the reward
    questions: str = ""  # digest of the questions
    ids: list[str] = field(default_factory=list)  # their names, in the order of the shards
    asked: list[str] = field(default_factory=list)  # digest of each
    splits: list[str] = field(default_factory=list)  # split of each
    skipped: dict[str, str] = field(default_factory=dict)  # by name, why a question was left out
    paths: list[str] | None = None  # the routes evaluated instead of a search; a later call may add to them
    control: list[str] = field(default_factory=list)  # the blind baseline's routes

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
        """The type of the weights, as a flag takes it."""
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


def load_unseen(run: Path, read_from: Mapping[str, str | Path | None], split: str = "") -> dict[str, LoadedTask]:
    """Tasks by name, read where this says, without what any task of the run was searched or healed on, wherever that was read from, and
    without questions that stand in a file of prompts that a healing was given.

    For `split` test, a task that the run learned nothing from is asked on its validation part where upstream keeps its test part secret.
    """
    searched: dict[str, LoadedTask] = {}
    for folder, manifest in (search_manifests(run) | path_manifests(run)).items():
        searched[f"{manifest.task} as read for {folder.parent.name}"] = load_task(manifest.task, data_of(folder, manifest.data))
    healing = RunFolder(run).healing
    files = [file for file in (healing.asked, RunFolder(run).nested(1).asked) if file.is_file()]
    keys = {key for file in files for key in read_json(file, "heal again", list)}
    if healing.settings.is_file():
        asked = read_json(healing.settings, "heal again", dict)
        searched |= {f"{name} as read for healing": load_task(name, data_of(run, asked["data"])) for name in asked["tasks"]}
    learned = {one.task.name for one in searched.values()}
    found = {name: load_task(name, data) for name, data in read_from.items()}
    if split == "test":
        found |= {name: one.with_public_test() for name, one in found.items() if name not in learned}
    loaded = drop_overlaps(found | searched, searched, keys)
    return {name: loaded[name] for name in read_from}


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
