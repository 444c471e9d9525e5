"""What a search leaves behind: one `RouteRecord` a question, in parquet shards that are whole or absent.

Nothing that depends on the time or the machine is inside, so the same search writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drllm.errors import ArtifactError, InputError
from drllm.files import remove_partials, write_bytes, write_json
from drllm.routes import Route

SCHEMA_VERSION = 1
PLAN_FILE = "plan.json"
_SHARD_NAME = re.compile(r"shard-(\d{5,})\.parquet")
_MISSING = object()
PLAN_KEYS = {"task", "data", "model", "fingerprint", "config", "questions", "ids"}  # what other jobs read from a plan
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.string()),
        ("n_choices", pa.int32()),
        ("base_correct", pa.bool_()),
        ("base_margin", pa.float32()),
        ("chosen", pa.string()),
        ("routes", pa.list_(pa.string())),
        ("rewards", pa.list_(pa.float32())),
        ("margins", pa.list_(pa.float32())),
        ("acc", pa.list_(pa.bool_())),
        ("acc_norm", pa.list_(pa.bool_())),
        ("seed", pa.int64()),
        ("fingerprint", pa.string()),
        ("reward", pa.string()),
    ]
)


@dataclass(frozen=True)
class RouteRecord:
    """One searched question.

    Attributes:
        base_correct, base_margin: the base route's verdict and margin (nan where the reward has none).
        chosen: the route kept, or None when no route was right.
        routes, rewards, margins, acc, acc_norm: every evaluated route in the order told, the base first; the last two are None entries
            for generated rewards. Rewards and margins are stored as float32.
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

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("routes", "rewards", "margins", "acc", "acc_norm")}
        if not self.routes or len(set(sizes.values())) > 1:
            raise InputError(f"record {self.id!r} of {self.task}: expected one entry an evaluated route, the base first, got {sizes}")

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


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return folder / f"shard-{index:05d}.parquet"


def shard_indices(folder: Path) -> list[int]:
    """The shards present, in order; what a killed process left half written is none of them."""
    return sorted(int(match[1]) for path in folder.glob("shard-*.parquet") if (match := _SHARD_NAME.fullmatch(path.name)))


def write_shard(folder: Path, index: int, records: Sequence[RouteRecord]) -> None:
    """Write one group's records atomically, in the order given; equal records give equal bytes."""
    rows = [
        {
            **{name: getattr(record, name) for name in _SCHEMA.names},
            "chosen": None if record.chosen is None else str(record.chosen),
            "routes": [str(route) for route in record.routes],
        }
        for record in records
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    table = table.replace_schema_metadata({"drllm_schema": str(SCHEMA_VERSION), "drllm_digest": _digest(table)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(shard_path(folder, index), sink.getvalue().to_pybytes())


def read_shard(path: Path) -> list[RouteRecord]:
    """The records of one shard; `ArtifactError` when it is corrupt, foreign or from a newer drllm."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable shard ({_line(error)}): delete it and run the search again") from None
    metadata = table.schema.metadata or {}
    version = metadata.get(b"drllm_schema", b"").decode("ascii", "replace")
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {version}, this drllm reads up to {SCHEMA_VERSION}: upgrade drllm")
    if not version.isdecimal() or not table.schema.equals(_SCHEMA):
        raise ArtifactError(f"{path} holds no drllm search records: give a run folder written by `drllm search`")
    try:
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
    for name in ("rewards", "margins", "acc", "acc_norm"):
        row[name] = tuple(row[name])
    row["routes"] = tuple(Route.parse(text) for text in row["routes"])
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
    if not isinstance(plan, dict) or PLAN_KEYS - plan.keys():
        raise ArtifactError(f"{path} is not the plan of a drllm search: {again}")
    return plan


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
