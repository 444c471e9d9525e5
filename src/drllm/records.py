"""What a search leaves behind: one `RouteRecord` a question, in parquet shards that are whole or absent.

Nothing that depends on the time or the machine is inside, so the same search writes the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drllm.errors import ArtifactError
from drllm.files import remove_partials, write_bytes, write_json
from drllm.routes import Route

SCHEMA_VERSION = 1
PLAN_FILE = "plan.json"
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
            for generated rewards.
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

    @property
    def improved(self) -> bool:
        """The base was wrong and the kept route is right."""
        return not self.base_correct and self.chosen is not None


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return folder / f"shard-{index:05d}.parquet"


def shard_indices(folder: Path) -> list[int]:
    """The shards present."""
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("shard-*.parquet"))


def write_shard(folder: Path, index: int, records: Sequence[RouteRecord]) -> None:
    """Write one group's records atomically."""
    rows = [
        {
            **{name: getattr(record, name) for name in _SCHEMA.names},
            "chosen": None if record.chosen is None else str(record.chosen),
            "routes": [str(route) for route in record.routes],
        }
        for record in records
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({"drllm_schema": str(SCHEMA_VERSION)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(shard_path(folder, index), sink.getvalue().to_pybytes())


def read_shard(path: Path) -> list[RouteRecord]:
    """The records of one shard; `ArtifactError` when it is corrupt, foreign or from a newer drllm."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a readable shard ({str(error).splitlines()[0][:100]}): delete it and run the search again"
        ) from None
    version = (table.schema.metadata or {}).get(b"drllm_schema")
    if version is None or set(_SCHEMA.names) - set(table.schema.names):
        raise ArtifactError(f"{path} holds no drllm search records: give a run folder written by `drllm search`")
    if int(version) > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {int(version)}, this drllm reads up to {SCHEMA_VERSION}: upgrade drllm")
    return [_record(row) for row in table.to_pylist()]


def _record(row: dict[str, Any]) -> RouteRecord:
    values = {name: row[name] for name in _SCHEMA.names}
    for name in ("rewards", "margins", "acc", "acc_norm"):
        values[name] = tuple(values[name])
    values["routes"] = tuple(Route.parse(text) for text in values["routes"])
    values["chosen"] = None if values["chosen"] is None else Route.parse(values["chosen"])
    values["base_margin"] = math.nan if values["base_margin"] is None else values["base_margin"]
    return RouteRecord(**values)


def read_records(folder: Path) -> list[RouteRecord]:
    """Every record below a folder, by task, then shard."""
    return [record for path in sorted(folder.rglob("shard-*.parquet")) for record in read_shard(path)]


def check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write what determines a folder's records, or refuse to mix them with records made otherwise."""
    path = folder / PLAN_FILE
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    plan = json.loads(json.dumps(plan))
    if not path.is_file():
        write_json(path, plan)
        return
    found = read_plan(folder)
    for key, value in _flatten(plan).items():
        before = _flatten(found).get(key)
        if before != value:
            raise ArtifactError(
                f"{folder} was searched with {key} = {_short(before)}, now it is {_short(value)}: use another --out, or the same settings"
            )


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


def _flatten(plan: dict[str, Any]) -> dict[str, Any]:
    nested = {f"{key}.{name}": value for key, part in plan.items() if isinstance(part, dict) for name, value in part.items()}
    return {key: part for key, part in plan.items() if not isinstance(part, dict)} | nested


def _short(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)
