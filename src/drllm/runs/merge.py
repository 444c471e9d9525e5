"""What a user does with finished records: find them in run folders, merge those of several runs, export them to one file."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.digest import short_digest
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import write_bytes, write_text
from drllm.runs.layout import MANIFEST_FILE, RECORD_FOLDERS
from drllm.runs.manifest import Manifest, MergedPart, check_manifest, differences, read_manifest
from drllm.runs.records import SHARD_NAME, RouteRecord, encode, read_records, read_shard, same_record, shard_indices, write_shard

EXPORT_SUFFIXES = (".parquet", ".csv", ".jsonl")
_OF_A_PART = {"model", "data", "source", "questions", "ids", "skipped", "merged"}  # in these, manifests that are merged may differ
_MERGED_SHARD = 1024  # records a shard of a merged folder
_TASK_NAME = re.compile(r"\w[\w.-]*")


def task_folders(source: Path) -> list[Path]:
    """The task folders with records in a run folder (below `search/` and `paths/`), in one of those two, or the given one itself.

    Raises `ArtifactError` when there is none.
    """
    candidates = [source, *(path for pattern in ("*", *(f"{name}/*" for name in RECORD_FOLDERS)) for path in sorted(source.glob(pattern)))]
    folders = [folder for folder in candidates if folder.is_dir() and shard_indices(folder)]
    if not folders:
        what = "holds no search records" if source.is_dir() else "is no folder" if source.exists() else "does not exist"
        raise ArtifactError(f"{source} {what}: give a run folder written by `drllm search` or one of its task folders")
    return folders


def record_groups(source: Path) -> dict[Path, list[RouteRecord]]:
    """The records a user points at, by where they lie: a shard or an exported file, a task folder, or a run's `search/` and `paths/`.

    Raises `ArtifactError` when there is none, or one is corrupt.
    """
    if source.is_file():
        if source.suffix != ".parquet":
            raise ArtifactError(f"{source} is no shard: give a .parquet file, a task folder, or a run folder written by `drllm search`")
        groups = {source: read_shard(source)}
    else:
        groups = {}
        for folder in task_folders(source):
            # A further list of routes has the same questions: counted with the first, each would count twice.
            where = source if folder == source else folder if "." in folder.name else folder.parent
            groups.setdefault(where, []).extend(read_records(folder))
    for where, records in groups.items():
        if not records:
            raise ArtifactError(f"{where} holds no search records: its shards are empty, search again")
    return groups


@dataclass(frozen=True)
class Merged:
    """One task folder of a merge: how many records it holds, from how many folders, and how many were given again and left out."""

    folder: Path
    n_records: int
    n_sources: int
    n_again: int


def merge_records(sources: Sequence[Path], out: Path) -> list[Merged]:
    """Copy the records of several run or task folders into a new run folder, task by task; nothing is written when anything is refused.

    Records below `paths/` stay below `paths/`, all others go below `search/`.

    Raises:
        ArtifactError: a source without records or a whole manifest, manifests that differ in what determines a record, or two different
            records of one question.
        InputError: `out` holds records already.
    """
    if any(shard_indices(path.parent) for name in RECORD_FOLDERS for path in out.glob(f"{name}/*/*")):
        raise InputError(f"{out} holds records already: merge into a new folder")
    parts: dict[Path, list[Path]] = {}
    for folder in (folder for source in sources for folder in task_folders(source)):
        if not (folder / MANIFEST_FILE).is_file():
            raise ArtifactError(f"{folder} holds records without {MANIFEST_FILE}: give a folder as `drllm search` wrote it")
        task = read_manifest(folder).task
        if not _TASK_NAME.fullmatch(task):
            raise ArtifactError(f"{folder / MANIFEST_FILE} names the task {task!r}: give a folder as `drllm search` wrote it")
        above = folder.resolve().parent.name  # resolved, since "." has no parent by name
        kind = above if above in RECORD_FOLDERS else RECORD_FOLDERS[0]
        # A further list of routes (`search --paths --list`) stays one of its own.
        name = folder.resolve().name
        parts.setdefault(out / kind / (name if name.startswith(f"{task}.") else task), []).append(folder)
    merged = {target: _merge(folders) for target, folders in parts.items()}
    for target, (manifest, records, _) in merged.items():
        check_manifest(target, manifest)  # first, so that a merge cut short is an unfinished search
        for index, start in enumerate(range(0, len(records), _MERGED_SHARD)):
            write_shard(target, index, records[start : start + _MERGED_SHARD])
    return [Merged(target, len(records), len(parts[target]), again) for target, (_, records, again) in merged.items()]


def _merge(folders: Sequence[Path]) -> tuple[Manifest, list[RouteRecord], int]:
    """One task's manifest, its records in the order of the manifest, and how many were met again."""
    manifests, first = [read_manifest(folder) for folder in folders], folders[0]
    alike = [{key: value for key, value in manifest.to_json().items() if key not in _OF_A_PART} for manifest in manifests]
    for folder, settings in zip(folders, alike, strict=True):
        for key, old, new in differences(alike[0], settings):
            raise ArtifactError(f"{first} was searched with {key} = {old}, {folder} with {new}: merge only what was searched the same way")
    found: dict[str, tuple[RouteRecord, Path]] = {}
    n_again = 0
    for folder, manifest in zip(folders, manifests, strict=True):
        ids = set(manifest.ids)
        for record in read_records(folder):
            what = f"{record.id!r} of {record.task}"
            if record.id not in ids or (record.task, record.fingerprint) != (manifest.task, manifest.fingerprint):
                which = f"question {what} (weights {record.fingerprint}), which is not in its {MANIFEST_FILE}"
                raise ArtifactError(f"{folder} holds {which}: give a folder as `drllm search` wrote it")
            other, where = next(iter(found.values()), (record, folder))
            if record.reward != other.reward:
                rewards = f"reward {other.reward}, {folder} with {record.reward}"
                raise ArtifactError(f"{where} holds records of {record.task} with {rewards}: merge one reward")
            known, where = found.setdefault(record.id, (record, folder))
            if known is not record:
                n_again += 1
                if not same_record(known, record):
                    raise ArtifactError(f"question {what} has different records in {where} and {folder}: merge only one of them")
    parts: list[MergedPart] = []
    for folder, manifest in zip(folders, manifests, strict=True):
        known = [(other.questions, other.ids) for other in parts]
        own = manifest.merged or [part.changed(folder=str(folder)) for part in manifest.parts]
        parts += [part for part in own if (part.questions, part.ids) not in known]
    digests = [part.questions for part in parts]
    questions = digests[0] if len(digests) == 1 else short_digest("".join(digests))
    ids = list(dict.fromkeys(name for manifest in manifests for name in manifest.ids))
    skipped = {name: reason for manifest in manifests for name, reason in manifest.skipped.items()}
    merged = manifests[0].changed(questions=questions, ids=ids, skipped=skipped, merged=parts)
    return merged, [found[name][0] for name in merged.ids if name in found], n_again


def export_records(source: Path, out: Path, float16: bool = False) -> int:
    """Write all records of a run folder, task folder or shard into one file, by the suffix of `out`; returns the number of rows.

    `.parquet` has the columns of a shard, one row a question, margins as float16 if asked to; `read_shard` reads it. `.csv` and `.jsonl`
    have one row an evaluated route. Raises `InputError` for another suffix, a run of both kinds of records, or a margin that float16 cannot
    hold, `ArtifactError` when there are no records.
    """
    suffix = out.suffix.lower()
    if suffix not in EXPORT_SUFFIXES:
        raise InputError(f"cannot export to {str(out)!r}: expected a name that ends in {', '.join(EXPORT_SUFFIXES)}")
    if SHARD_NAME.fullmatch(out.name):
        raise InputError(f"{str(out)!r} is the name of a shard, which a search would take for its own: give another --out")
    if float16 and suffix != ".parquet":
        raise InputError(f"float16 margins are for .parquet, {suffix} holds text: leave --float16 out")
    groups = record_groups(source)
    if len(groups) > 1:
        raise InputError(f"{source} holds records of several kinds: export one of {', '.join(map(str, groups))}")
    (records,) = groups.values()
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        write_bytes(out, encode(records, float16, level=19))
        return len(records)
    rows = [row for record in records for row in _long_rows(record)]
    if suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([str(value).lower() if isinstance(value, bool) else value for value in row.values()] for row in rows)
        text = buffer.getvalue()
    write_text(out, text)
    return len(rows)


def _long_rows(record: RouteRecord) -> Iterator[dict[str, Any]]:
    """One row an evaluated route, the search's before the blind baseline's."""
    question = {"task": record.task, "id": record.id, "split": record.split}
    none, right = (None,) * len(record.control_routes), tuple(reward == 1.0 for reward in record.rewards)
    tried = {"search": (record.routes, right, record.margins, record.acc, record.acc_norm)}
    tried["control"] = (record.control_routes, record.control_correct, record.control_margins, none, none)
    for source, columns in tried.items():
        for route, correct, margin, acc, acc_norm in zip(*columns, strict=True):
            evaluated = {"route": str(route), "n_passes": route.n_passes, "correct": correct, "margin": _short(margin)}
            yield question | evaluated | {"acc": acc, "acc_norm": acc_norm, "source": source}


def _short(margin: float) -> float | None:
    """The shortest number that is this float32; None where there is none, since JSON has no nan."""
    return float(str(np.float32(margin))) if math.isfinite(margin) else None
