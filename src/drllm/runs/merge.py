"""What a user does with finished runs: merge them, and show or export some of the rows of their stores. No torch.

A merge is the union of rows. What a search chose is copied beside them, task by task.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from drllm.core.digest import short_digest
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import write_bytes, write_text
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import Manifest, MergedPart, check_manifest, differences, path_manifests, search_manifests
from drllm.runs.records import RouteRecord, read_records, shard_indices, write_shard
from drllm.runs.shards import Shards, content_digest, encode, read_shard
from drllm.runs.store import DECIDED, KEY, VERDICTS, picked

EXPORT_SUFFIXES = (".parquet", ".csv", ".jsonl")
FILTERS = ("task", "split", "reward", "route", "dtype")  # columns that rows are picked by
_OF_A_PART = {"model", "data", "source", "questions", "ids", "asked", "splits", "skipped", "merged", "paths"}  # in these, parts may differ
_MERGED_SHARD = 1024  # records a shard of a merged folder
_TASK_NAME = re.compile(r"\w[\w.-]*")


def rows_of(source: Path, where: Mapping[str, Sequence[str]] | None = None) -> pa.Table:
    """The rows of a run folder's store, or of one shard or exported file; those whose columns have one of the given values.

    Raises `ArtifactError` when there is none, or one is corrupt.
    """
    if source.is_file():
        table = read_shard(source, VERDICTS)
    else:
        folder = RunFolder(source).verdicts
        if not folder.is_dir():
            what = "holds no verdicts" if source.is_dir() else "does not exist"
            raise ArtifactError(f"{source} {what}: give a run folder that a search, a scan or a comparison wrote, or one of its shards")
        table = Shards(folder, VERDICTS).table()
    table = picked(table, where or {})
    if not len(table):
        raise ArtifactError(f"{source} holds no such rows: name another {' or '.join(where) if where else 'run'}")
    return table


def overview(table: pa.Table) -> list[tuple[str, ...]]:
    """By model, task, split and reward: questions, routes, verdicts, shares of right ones in percent, by the strict and the lenient reader.

    Where one reader judges, or log-likelihoods do, both shares are the same.
    """
    by = ["weights", "dtype", "task", "split", "reward"]
    counted = table.select([*by, "question", "route"])
    for reader in ("strict", "lenient"):
        right = pc.call_function("coalesce", [table[name] for name in ("correct", "acc_norm", "acc", reader)])
        counted = counted.append_column(reader, pc.cast(right, pa.float64()))
    counting = [("question", "count_distinct"), ("route", "count_distinct"), ("route", "count"), ("strict", "mean"), ("lenient", "mean")]
    found = counted.group_by(by).aggregate(counting)
    rows = found.sort_by([(name, "ascending") for name in by]).to_pylist()
    counts = ("question_count_distinct", "route_count_distinct", "route_count")
    shares = ("strict_mean", "lenient_mean")
    return [
        (*(row[name] for name in by), *(f"{row[name]:,}" for name in counts), *(f"{100 * row[name]:.1f}" for name in shares))
        for row in rows
    ]


OVERVIEW = ("weights", "type", "task", "split", "reward", "questions", "routes", "verdicts", "right, %", "leniently, %")


def export_rows(table: pa.Table, out: Path) -> int:
    """Write rows into one file, by the suffix of `out`; returns their number. `InputError` for another suffix.

    A `.parquet` file is a shard: it can be read, shown and merged as any.
    """
    suffix = out.suffix.lower()
    if suffix not in EXPORT_SUFFIXES:
        raise InputError(f"cannot export to {str(out)!r}: expected a name that ends in {', '.join(EXPORT_SUFFIXES)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        write_bytes(out, encode(table))
    elif suffix == ".csv":
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink)
        write_bytes(out, sink.getvalue().to_pybytes())
    else:
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()))
    return len(table)


@dataclass(frozen=True)
class Merged:
    """What a merge wrote into one place: how many rows or records, from how many runs, and how many were given again."""

    folder: Path
    n: int
    n_sources: int
    n_again: int


def merge_runs(sources: Sequence[Path], out: Path) -> list[Merged]:
    """Copy the verdicts and searches of several runs into a new run folder; nothing is written when anything is refused.

    Raises:
        ArtifactError: a source without verdicts, one that says otherwise on the same question and route under the same conditions, or
            searches of one task that differ in what determines a record.
        InputError: `out` holds verdicts already.
    """
    target = RunFolder(out)
    if target.verdicts.is_dir() or target.searches.is_dir():
        raise InputError(f"{out} holds verdicts already: merge into a new folder")
    given = [rows_of(source) for source in sources]
    verdicts = union(given, KEY)
    decided = union([Shards(RunFolder(source).decided, DECIDED).table() for source in sources], [*KEY[:-1], "policy"])
    searches = _by_task([search_manifests(source) for source in sources])
    matrices = _by_task([path_manifests(source) for source in sources])
    merged = {task: _records(folders) for task, folders in searches.items()}
    whole_matrices = {task: _together(folders) for task, folders in matrices.items()}
    for folder, table in ((target.verdicts, verdicts), (target.decided, decided)):
        if len(table):
            folder.mkdir(parents=True)
            write_bytes(folder / f"{content_digest(table)[:16]}.parquet", encode(table))
    found = [Merged(target.verdicts, len(verdicts), len(sources), sum(map(len, given)) - len(verdicts))]
    for task, manifest in whole_matrices.items():
        check_manifest(target.matrix(task), manifest)
        found.append(Merged(target.matrix(task), len(manifest.ids), len(matrices[task]), 0))
    for task, (manifest, records, n_again) in merged.items():
        folder = target.search(task)
        check_manifest(folder, manifest)  # first, so that a merge cut short is an unfinished search
        for index, start in enumerate(range(0, len(records), _MERGED_SHARD)):
            write_shard(folder, index, records[start : start + _MERGED_SHARD])
        found.append(Merged(folder, len(records), len(searches[task]), n_again))
    return found


def union(tables: Sequence[pa.Table], key: Sequence[str]) -> pa.Table:
    """Their rows, each once and in the order of their keys; `ArtifactError` where two of one key differ."""
    together = pa.concat_tables(tables)
    rows = together.group_by(together.column_names).aggregate([]).sort_by([(name, "ascending") for name in key])
    counted = rows.group_by(list(key)).aggregate([([], "count_all")])
    if odd := counted.filter(pc.field("count_all") > 1).to_pylist():
        what = ", ".join(f"{name} {odd[0][name]}" for name in ("task", "question", "route") if name in odd[0])
        raise ArtifactError(f"two runs say otherwise of {what}: merge only one of them")
    return rows


def _by_task(manifests: Sequence[Mapping[Path, Manifest]]) -> dict[str, list[tuple[Path, Manifest]]]:
    found: dict[str, list[tuple[Path, Manifest]]] = {}
    for folder, manifest in (pair for one in manifests for pair in one.items()):
        if not _TASK_NAME.fullmatch(manifest.task):
            raise ArtifactError(f"{folder} names the task {manifest.task!r}: give a folder as `drllm search` wrote it")
        found.setdefault(manifest.task, []).append((folder, manifest))
    return found


def _together(folders: Sequence[tuple[Path, Manifest]]) -> Manifest:
    """What folders of one task are of together; `ArtifactError` where they were made otherwise."""
    first, one = folders[0]
    alike = {key: value for key, value in one.to_json().items() if key not in _OF_A_PART}
    for folder, manifest in folders:
        for key, old, new in differences(alike, {key: value for key, value in manifest.to_json().items() if key not in _OF_A_PART}):
            raise ArtifactError(f"{first} was searched with {key} = {old}, {folder} with {new}: merge only what was searched the same way")
    manifests = [manifest for _, manifest in folders]
    parts: list[MergedPart] = []
    for folder, manifest in folders:
        known = [(other.questions, other.ids) for other in parts]
        own = manifest.merged or [part.changed(folder=str(folder)) for part in manifest.parts]
        parts += [part for part in own if (part.questions, part.ids) not in known]
    digests = [part.questions for part in parts]
    questions = digests[0] if len(digests) == 1 else short_digest("".join(digests))
    asked = {named.id: named for manifest in manifests for named in manifest.questions_asked}
    paths = None if one.paths is None else _shared(manifests)
    return one.changed(
        questions=questions,
        ids=list(asked),
        asked=[named.question for named in asked.values()],
        splits=[named.split for named in asked.values()],
        skipped={name: reason for manifest in manifests for name, reason in manifest.skipped.items()},
        merged=parts,
        paths=paths,
    )


def _shared(manifests: Sequence[Manifest]) -> list[str]:
    """Routes that every question of all matrices was asked along: all of them where the questions are the same."""
    lists = [manifest.paths or [] for manifest in manifests]
    every = dict.fromkeys(route for one in lists for route in one)
    if all(manifest.asked == manifests[0].asked for manifest in manifests):
        return list(every)
    return [route for route in every if all(route in one for one in lists)]


def _records(folders: Sequence[tuple[Path, Manifest]]) -> tuple[Manifest, list[RouteRecord], int]:
    """One task's manifest, its records in the order of the manifest, and how many were met again."""
    merged = _together(folders)
    found: dict[str, tuple[RouteRecord, Path]] = {}
    n_again = 0
    for folder, manifest in folders:
        if not shard_indices(folder):
            raise ArtifactError(f"{folder} holds no records: run its search, or leave it out")
        named = {one.id: one for one in manifest.questions_asked}
        for record in read_records(folder):
            if named.get(record.id) != record.asked or record.conditions != manifest.under:
                raise ArtifactError(
                    f"{folder} holds question {record.id!r}, which is not in its manifest: give a folder as `drllm search` wrote it"
                )
            known, where = found.setdefault(record.id, (record, folder))
            if known is not record:
                n_again += 1
                if repr(known) != repr(record):
                    raise ArtifactError(f"question {record.id!r} has different records in {where} and {folder}: merge only one of them")
    return merged, [found[name][0] for name in merged.ids if name in found], n_again
