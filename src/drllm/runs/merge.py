"""What a user does with finished runs: merge them, and show or export some of the rows of their stores. No torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import TEMPORARY_SUFFIX, write_bytes, write_text
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import path_manifests, search_manifests
from drllm.runs.records import read_records
from drllm.runs.shards import Shards, content_digest, encode, read_shard
from drllm.runs.store import DECIDED, KEY, VERDICTS, picked

EXPORT_SUFFIXES = (".parquet", ".csv", ".jsonl")


def rows_of(source: Path, where: Mapping[str, Sequence[str]] | None = None) -> pa.Table:
    """The rows of a run folder's store, a shard or an exported file that have the given values; `ArtifactError` if none or corrupt."""
    folder = RunFolder(source).verdicts
    if not source.is_file() and not folder.is_dir():
        what = "holds no verdicts" if source.is_dir() else "does not exist"
        raise ArtifactError(f"{source} {what}: give a run folder that a search, a scan or a comparison wrote, or one of its shards")
    shard = "give a run folder, one of its shards or an exported .parquet"
    table = read_shard(source, VERDICTS, shard) if source.is_file() else Shards(folder, VERDICTS).table()
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
    """Write rows into one file, by the suffix of `out`; returns their number. `InputError` for another suffix or in a store.

    A `.parquet` file is a shard: it can be read, shown and merged as any.
    """
    suffix, folder = out.suffix.lower(), out.resolve().parent
    if folder == RunFolder(folder.parent).verdicts:
        raise InputError(f"{out} would stand in a store of verdicts, as rows of it: export to another folder")
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


class Merged(NamedTuple):
    """What a merge wrote: how many rows, how many were given again; folders of tasks that were copied, and those that several runs have."""

    n: int
    n_again: int
    copied: list[Path]
    left: list[Path]


def merge_runs(sources: Sequence[Path], out: Path) -> Merged:
    """Put the verdicts of several runs, and what was searched of tasks that one of them alone has, into a new run folder.

    Raises, before anything is written:
        ArtifactError: a source without verdicts, with an unreadable search, or one that says otherwise on the same question and route
            under the same conditions.
        InputError: `out` holds verdicts already.
    """
    target, runs = RunFolder(out), [RunFolder(source) for source in dict.fromkeys(sources)]
    if target.verdicts.is_dir() or target.searches.is_dir():
        raise InputError(f"{out} holds verdicts already: merge into a new folder")
    given = [rows_of(source) for source in sources]
    verdicts = union(given, KEY)
    decided = union([Shards(run.decided, DECIDED).table() for run in runs], [*KEY[:-1], "policy"])
    by_task: dict[Path, list[Path]] = {}
    for run in runs:
        for folder in search_manifests(run.root):
            read_records(folder)
            by_task.setdefault(target.search(folder.name), []).append(folder)
        for folder in path_manifests(run.root):
            by_task.setdefault(target.matrix(folder.name), []).append(folder)
    for folder, table in ((target.verdicts, verdicts), (target.decided, decided)):
        if len(table):
            folder.mkdir(parents=True)
            write_bytes(folder / f"{content_digest(table)[:16]}.parquet", encode(table))
    copied = [place for place, folders in by_task.items() if len(folders) == 1]
    for place in copied:
        place.mkdir(parents=True)
        for file in sorted(by_task[place][0].iterdir()):  # the manifest first, so that a merge cut short is an unfinished search
            if file.suffix != TEMPORARY_SUFFIX:
                write_bytes(place / file.name, file.read_bytes())
    return Merged(len(verdicts), sum(map(len, given)) - len(verdicts), copied, [place for place in by_task if place not in copied])


def union(tables: Sequence[pa.Table], key: Sequence[str]) -> pa.Table:
    """Their rows, each once and in the order of their keys; `ArtifactError` where two of one key differ."""
    together = pa.concat_tables(tables)
    rows = together.group_by(together.column_names).aggregate([]).sort_by([(name, "ascending") for name in key])
    if odd := rows.group_by(list(key)).aggregate([([], "count_all")]).filter(pc.field("count_all") > 1).to_pylist():
        what = ", ".join(f"{name} {odd[0][name]}" for name in ("task", "question", "route") if name in odd[0])
        raise ArtifactError(f"two runs say otherwise of {what}: merge only one of them")
    return rows
