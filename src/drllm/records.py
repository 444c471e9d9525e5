"""What a search leaves behind: one `RouteRecord` a question, in parquet shards that are whole or absent.

Nothing that depends on the time or the machine is inside, so the same search writes the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drllm.errors import ArtifactError, InputError
from drllm.files import remove_partials, write_bytes, write_json, write_text
from drllm.routes import Route

SCHEMA_VERSION = 2
RECORD_SPLITS = ("fit", "tune", "calibrate")  # never test: what a search has seen cannot be tested on
RECORD_FOLDERS = ("search", "paths")  # where the task folders of a run lie
EXPORT_SUFFIXES = (".parquet", ".csv", ".jsonl")
PLAN_FILE = "plan.json"
_SHARD_NAME = re.compile(r"shard-(\d{5,})\.parquet")
_MISSING = object()
PLAN_KEYS = {"task", "data", "model", "fingerprint", "config", "questions", "ids"}  # what other jobs read from a plan
PART_KEYS = {"folder", "data", "questions", "ids"}  # what a merged plan says of each plan in it
_OF_A_PART = {"model", "data", "source", "questions", "ids", "merged"}  # in these, plans that are merged may differ
_MERGED_SHARD = 1024  # records a shard of a merged folder
_FLOAT16_LIMIT = 65520.0  # from here on float16 rounds to infinity
_TASK_NAME = re.compile(r"\w[\w.-]*")


def _schema(margin: pa.DataType) -> pa.Schema:
    """The columns of schema 2; only an export stores margins as float16."""
    check = pa.struct([("route", pa.string()), ("check", pa.string()), ("correct", pa.bool_()), ("margin", margin)])
    return pa.schema(
        [
            ("task", pa.string()),
            ("id", pa.string()),
            ("n_choices", pa.int32()),
            ("base_correct", pa.bool_()),
            ("base_margin", margin),
            ("chosen", pa.string()),
            ("routes", pa.list_(pa.string())),
            ("rewards", pa.list_(pa.float32())),
            ("margins", pa.list_(margin)),
            ("acc", pa.list_(pa.bool_())),
            ("acc_norm", pa.list_(pa.bool_())),
            ("seed", pa.int64()),
            ("fingerprint", pa.string()),
            ("reward", pa.string()),
            ("split", pa.string()),
            ("control_routes", pa.list_(pa.string())),
            ("control_correct", pa.list_(pa.bool_())),
            ("control_margins", pa.list_(margin)),
            ("checks", pa.list_(check)),
        ]
    )


_SCHEMA, _SCHEMA_FLOAT16 = _schema(pa.float32()), _schema(pa.float16())
_N_COLUMNS_1 = _SCHEMA.names.index("split")
_SCHEMAS = {1: (pa.schema(list(_SCHEMA)[:_N_COLUMNS_1]),), 2: (_SCHEMA, _SCHEMA_FLOAT16)}


@dataclass(frozen=True)
class Check:
    """A route's verdict under another condition than the search's.

    `check` names the condition, then for multiple choice the metric: "fp32:acc", "fp32:acc_norm", "template:acc", "rotated:1".
    """

    route: Route
    check: str
    correct: bool
    margin: float


@dataclass(frozen=True)
class RouteRecord:
    """One searched question.

    Attributes:
        base_correct, base_margin: the base route's verdict and margin (nan where the reward has none).
        chosen: the route kept, or None when no route was right.
        routes, rewards, margins, acc, acc_norm: every evaluated route in the order told, the base first; the last two are None entries
            for generated rewards. Rewards and margins are stored as float32.
        split: the split the question is from, one of `RECORD_SPLITS`.
        control_routes, control_correct, control_margins: the input-blind control: random routes drawn without looking at the question,
            in the order tried. Empty when none was drawn.
        checks: routes verified again under other conditions.
    """

    task: str
    id: str
    n_choices: int
    base_correct: bool
    base_margin: float
    chosen: Route | None
    routes: tuple[Route, ...]
    rewards: tuple[float, ...]
    margins: tuple[float, ...]
    acc: tuple[bool | None, ...]
    acc_norm: tuple[bool | None, ...]
    seed: int
    fingerprint: str
    reward: str
    split: str = "fit"
    control_routes: tuple[Route, ...] = ()
    control_correct: tuple[bool, ...] = ()
    control_margins: tuple[float, ...] = ()
    checks: tuple[Check, ...] = ()

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("routes", "rewards", "margins", "acc", "acc_norm")}
        if not self.routes or len(set(sizes.values())) > 1:
            raise InputError(f"record {self.id!r} of {self.task}: expected one entry an evaluated route, the base first, got {sizes}")
        sizes = {name: len(getattr(self, name)) for name in ("control_routes", "control_correct", "control_margins")}
        if len(set(sizes.values())) > 1:
            raise InputError(f"record {self.id!r} of {self.task}: expected one entry a control route, got {sizes}")
        if self.split not in RECORD_SPLITS:
            raise InputError(f"record {self.id!r} of {self.task}: split is {self.split!r}, expected one of {', '.join(RECORD_SPLITS)}")

    @property
    def base_acc(self) -> bool | None:
        """The base's verdict by raw log-likelihood; None for generated rewards."""
        return self.acc[0]

    @property
    def base_acc_norm(self) -> bool | None:
        """The base's verdict by length-normalised log-likelihood; None for generated rewards."""
        return self.acc_norm[0]

    @property
    def kept(self) -> bool:
        """Some route was right, so the record can teach one (section 4: paths that preserve or improve the verdict)."""
        return self.chosen is not None

    @property
    def improved(self) -> bool:
        """The base was wrong and the kept route is right."""
        return not self.base_correct and self.chosen is not None

    @property
    def solved(self) -> bool:
        """The search solved what the base gets wrong; another word for `improved`, beside `control_solved`."""
        return self.improved

    @property
    def control_solved(self) -> bool | None:
        """The base was wrong and a random route is right within as many tries as the search took; None without a control."""
        if not self.control_routes:
            return None
        return not self.base_correct and any(self.control_correct[: len(self.routes) - 1])

    def verified(self, route: Route) -> dict[str, bool]:
        """The verdicts of a route's checks by name; empty when it was never checked."""
        return {check.check: check.correct for check in self.checks if check.route == route}

    @property
    def holds(self) -> bool | None:
        """Whether the kept route is right in every check; None when no route was kept, or it was never checked."""
        verdicts = {} if self.chosen is None else self.verified(self.chosen)
        return all(verdicts.values()) if verdicts else None


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return folder / f"shard-{index:05d}.parquet"


def shard_indices(folder: Path) -> list[int]:
    """The shards present, in order; what a killed process left half written is none of them."""
    return sorted(int(match[1]) for path in folder.glob("shard-*.parquet") if (match := _SHARD_NAME.fullmatch(path.name)))


def write_shard(folder: Path, index: int, records: Sequence[RouteRecord]) -> None:
    """Write one group's records atomically, in the order given; equal records give equal bytes."""
    table = _table(records)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(shard_path(folder, index), _parquet(table))


def _table(records: Sequence[RouteRecord]) -> pa.Table:
    return _stamped(pa.Table.from_pylist([_row(record) for record in records], schema=_SCHEMA))


def _stamped(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"drllm_schema": str(SCHEMA_VERSION), "drllm_digest": _digest(table)})


def _row(record: RouteRecord) -> dict[str, Any]:
    """A record as parquet holds it: routes as text."""
    return {
        **{name: getattr(record, name) for name in _SCHEMA.names},
        "chosen": None if record.chosen is None else str(record.chosen),
        "routes": [str(route) for route in record.routes],
        "control_routes": [str(route) for route in record.control_routes],
        "checks": [{**vars(check), "route": str(check.route)} for check in record.checks],
    }


def _parquet(table: pa.Table, level: int | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=level, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_shard(path: Path) -> list[RouteRecord]:
    """The records of one shard, or of an exported file; `ArtifactError` when it is corrupt, foreign or from a newer drllm.

    Shards of schema 1 lack the split, the control and the checks: their records have the defaults.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable shard ({_line(error)}): delete it and run the search again") from None
    metadata = table.schema.metadata or {}
    version = metadata.get(b"drllm_schema", b"").decode("ascii", "replace")
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {version}, this drllm reads up to {SCHEMA_VERSION}: upgrade drllm")
    if not version.isdecimal() or not any(table.schema.equals(schema) for schema in _SCHEMAS.get(int(version), ())):
        raise ArtifactError(f"{path} holds no drllm search records: give a run folder written by `drllm search`")
    try:
        if table.schema.equals(_SCHEMA_FLOAT16):
            table = table.cast(_SCHEMA)
        # Page checksums do not cover the footer, where one wrong bit can move values silently.
        digest = _digest(table).encode()
        if metadata.get(b"drllm_digest", digest) != digest:
            raise InputError("its content and its digest differ")
        return [_record(row) for row in table.to_pylist()]
    except (InputError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} holds a broken record ({_line(error)}): delete it and run the search again") from None


def _digest(table: pa.Table) -> str:
    return hashlib.sha256(json.dumps(table.to_pylist()).encode()).hexdigest()


def _record(row: dict[str, Any]) -> RouteRecord:
    """The inverse of `_row`, also of a row of schema 1."""
    for name in {"rewards", "margins", "acc", "acc_norm", "control_correct", "control_margins"} & row.keys():
        row[name] = tuple(row[name])
    for name in {"routes", "control_routes"} & row.keys():
        row[name] = tuple(Route.parse(text) for text in row[name])
    row["checks"] = tuple(Check(**{**check, "route": Route.parse(check["route"])}) for check in row.get("checks", ()))
    row["chosen"] = None if row["chosen"] is None else Route.parse(row["chosen"])
    return RouteRecord(**row)


def read_records(folder: Path) -> list[RouteRecord]:
    """Every record below a folder (one task's, or a whole `search/`), by task, then shard, then place in the shard."""
    folders = sorted({path.parent for path in folder.rglob("shard-*.parquet")})
    return [record for task in folders for index in shard_indices(task) for record in read_shard(shard_path(task, index))]


def check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write what determines a folder's records, or refuse to mix them with records made otherwise.

    Also removes what killed processes left half written in the folder.
    """
    path = folder / PLAN_FILE
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    plan = json.loads(json.dumps(plan))
    if not path.is_file():
        write_json(path, plan)
        return
    for key, before, now in _differences(read_plan(folder), plan):
        raise ArtifactError(f"{folder} was searched with {key} = {before}, now it is {now}: use another --out, or the same settings")


def read_plan(folder: Path) -> dict[str, Any]:
    """What determines the records of a folder; `ArtifactError` when it is corrupt or foreign."""
    path = folder / PLAN_FILE
    again = f"delete {folder} and search again"
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}): {again}") from None
    if not _is_plan(plan):
        raise ArtifactError(f"{path} is not the plan of a drllm search: {again}")
    return plan


def _is_plan(plan: Any) -> bool:
    if not isinstance(plan, dict) or PLAN_KEYS - plan.keys():
        return False
    ids, parts = plan["ids"], plan.get("merged", [])
    if not isinstance(ids, list) or not isinstance(parts, list) or not isinstance(plan["config"], dict):
        return False
    return all(isinstance(name, str) for name in ids) and all(isinstance(part, dict) and not PART_KEYS - part.keys() for part in parts)


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
            groups.setdefault(source if folder == source else folder.parent, []).extend(read_records(folder))
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
        ArtifactError: a source without records or a whole plan, plans that differ in what determines a record, or two different records
            of one question.
        InputError: `out` holds records already.
    """
    if any(shard_indices(path.parent) for name in RECORD_FOLDERS for path in out.glob(f"{name}/*/*")):
        raise InputError(f"{out} holds records already: merge into a new folder")
    parts: dict[Path, list[Path]] = {}
    for folder in (folder for source in sources for folder in task_folders(source)):
        if not (folder / PLAN_FILE).is_file():
            raise ArtifactError(f"{folder} holds records without {PLAN_FILE}: give a folder as `drllm search` wrote it")
        task = str(read_plan(folder)["task"])
        if not _TASK_NAME.fullmatch(task):
            raise ArtifactError(f"{folder / PLAN_FILE} names the task {task!r}: give a folder as `drllm search` wrote it")
        kind = folder.parent.name if folder.parent.name in RECORD_FOLDERS else RECORD_FOLDERS[0]
        parts.setdefault(out / kind / task, []).append(folder)
    merged = {target: _merge(folders) for target, folders in parts.items()}
    for target, (plan, records, _) in merged.items():
        check_plan(target, plan)  # first, so that a merge cut short is an unfinished search
        for index, start in enumerate(range(0, len(records), _MERGED_SHARD)):
            write_shard(target, index, records[start : start + _MERGED_SHARD])
    return [Merged(target, len(records), len(parts[target]), again) for target, (_, records, again) in merged.items()]


def _merge(folders: Sequence[Path]) -> tuple[dict[str, Any], list[RouteRecord], int]:
    """One task's plan, its records in the order of the plan, and how many were met again."""
    plans = [read_plan(folder) for folder in folders]
    for folder, plan in zip(folders, plans, strict=True):
        before, now = ({key: value for key, value in each.items() if key not in _OF_A_PART} for each in (plans[0], plan))
        for key, old, new in _differences(before, now):
            raise ArtifactError(
                f"{folders[0]} was searched with {key} = {old}, {folder} with {new}: merge only what was searched the same way"
            )
    found: dict[str, tuple[RouteRecord, Path]] = {}
    n_again = 0
    for folder, plan in zip(folders, plans, strict=True):
        ids = set(plan["ids"])
        for record in read_records(folder):
            if record.id not in ids or (record.task, record.fingerprint) != (plan["task"], plan["fingerprint"]):
                raise ArtifactError(
                    f"{folder} holds question {record.id!r} of {record.task} (weights {record.fingerprint}), which is not in its "
                    f"{PLAN_FILE}: give a folder as `drllm search` wrote it"
                )
            first, where = next(iter(found.values()), (record, folder))
            if record.reward != first.reward:
                raise ArtifactError(
                    f"{where} holds records of {record.task} with reward {first.reward}, {folder} with {record.reward}: merge one reward"
                )
            known, where = found.setdefault(record.id, (record, folder))
            if known is not record:
                n_again += 1
                if json.dumps(_row(known)) != json.dumps(_row(record)):  # as text, because nan differs from itself
                    raise ArtifactError(
                        f"question {record.id!r} of {record.task} has different records in {where} and {folder}: merge only one of them"
                    )
    parts = []
    for folder, plan in zip(folders, plans, strict=True):
        part = {"folder": str(folder), **{key: plan[key] for key in ("source", "data", "model", "questions", "ids") if key in plan}}
        known = [(other["questions"], other["ids"]) for other in parts]
        parts += [each for each in plan.get("merged", [part]) if (each["questions"], each["ids"]) not in known]
    digests = [str(part["questions"]) for part in parts]
    plan = {
        **plans[0],
        "questions": digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
        "ids": list(dict.fromkeys(name for plan in plans for name in plan["ids"])),
        "merged": parts,
    }
    return plan, [found[name][0] for name in plan["ids"] if name in found], n_again


def export_records(source: Path, out: Path, float16: bool = False) -> int:
    """Write all records of a run folder, task folder or shard into one file, by the suffix of `out`; returns the number of rows.

    `.parquet` has the columns of a shard, one row a question, margins as float16 if asked to; `read_shard` reads it. `.csv` and `.jsonl`
    have one row an evaluated route. Raises `InputError` for another suffix or a margin that float16 cannot hold, `ArtifactError` when
    there are no records.
    """
    suffix = out.suffix.lower()
    if suffix not in EXPORT_SUFFIXES:
        raise InputError(f"cannot export to {str(out)!r}: expected a name that ends in {', '.join(EXPORT_SUFFIXES)}")
    if _SHARD_NAME.fullmatch(out.name):
        raise InputError(f"{str(out)!r} is the name of a shard, which a search would take for its own: give another --out")
    if float16 and suffix != ".parquet":
        raise InputError(f"float16 margins are for .parquet, {suffix} holds text: leave --float16 out")
    records = [record for group in record_groups(source).values() for record in group]
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        table = _table(records)
        if float16:
            _check_float16(records)
            # The digest is that of the margins as they are read back.
            table = _stamped(table.cast(_SCHEMA_FLOAT16).cast(_SCHEMA))
            table = table.cast(_SCHEMA_FLOAT16.with_metadata(table.schema.metadata))
        write_bytes(out, _parquet(table, level=19))
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


def _check_float16(records: Sequence[RouteRecord]) -> None:
    for record in records:
        margins = (record.base_margin, *record.margins, *record.control_margins, *(check.margin for check in record.checks))
        for margin in margins:
            if _FLOAT16_LIMIT <= abs(margin) < math.inf:
                raise InputError(f"a margin of question {record.id!r} is {margin:g}, float16 ends at 65504: leave --float16 out")


def _long_rows(record: RouteRecord) -> Iterator[dict[str, Any]]:
    """One row an evaluated route, the search's before the control's."""
    none = (None,) * len(record.control_routes)
    right = tuple(reward == 1.0 for reward in record.rewards)
    for source, columns in (
        ("search", (record.routes, right, record.margins, record.acc, record.acc_norm)),
        ("control", (record.control_routes, record.control_correct, record.control_margins, none, none)),
    ):
        for route, correct, margin, acc, acc_norm in zip(*columns, strict=True):
            yield {
                "task": record.task, "id": record.id, "split": record.split, "route": str(route), "n_passes": route.n_passes,
                "correct": correct, "margin": _short(margin), "acc": acc, "acc_norm": acc_norm, "source": source,
            }  # fmt: skip


def _short(margin: float) -> float | None:
    """The shortest number that is this float32; None where there is none, since JSON has no nan."""
    return float(str(np.float32(margin))) if math.isfinite(margin) else None


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two plans differ, in the order of the second: (dotted key, value before, value now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*now, *(name for name in before if name not in now)]:
            yield from _differences(before.get(name, _MISSING), now.get(name, _MISSING), f"{key}.{name}" if key else str(name))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{key}[{index}]")
    elif before != now:
        yield key, _shown(before), _shown(now)


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "(not set)"
    return f"a list of {len(value)}" if isinstance(value, list) else _line(repr(value))


def _line(value: object) -> str:
    """The first line of a message, cut to what a terminal shows."""
    return (str(value).splitlines() or [""])[0][:100]
