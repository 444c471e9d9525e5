"""What a search leaves behind: one `RouteRecord` a question, in parquet shards that are whole or absent.

Nothing that depends on the time or the machine is inside, so the same search writes the same bytes.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drllm.core.digest import digest
from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.files import write_bytes
from drllm.core.route import Route

SCHEMA_VERSION = 3
FINITE = "finite"  # the check that fails on a base route whose logits are NaN or infinite
RECORD_SPLITS = ("fit", "tune", "calibrate")  # never test: what a search has seen cannot be tested on
SHARD_NAME = re.compile(r"shard-(\d{5,})\.parquet")  # of a file in a task folder
_FLOAT16_LIMIT = 65520.0  # from here on float16 rounds to infinity


def _schema(margin: pa.DataType) -> pa.Schema:
    """The columns of schema 3; only an export stores margins as float16."""
    text, flag = pa.string(), pa.bool_()
    texts, flags, margins = pa.list_(text), pa.list_(flag), pa.list_(margin)
    question = [("task", text), ("id", text), ("n_choices", pa.int32()), ("base_correct", flag), ("base_margin", margin), ("chosen", text)]
    tried = [("routes", texts), ("rewards", pa.list_(pa.float32())), ("margins", margins), ("acc", flags), ("acc_norm", flags)]
    made = [("seed", pa.int64()), ("fingerprint", text), ("reward", text), ("split", text)]
    control = [("control_routes", texts), ("control_correct", flags), ("control_margins", margins)]
    check = pa.struct([("route", text), ("check", text), ("correct", flag), ("margin", margin)])
    read = [("strict", flags), ("lenient", flags), ("forms", texts)]
    return pa.schema([*question, *tried, *made, *control, ("checks", pa.list_(check)), *read])


_SCHEMA, _SCHEMA_FLOAT16 = _schema(pa.float32()), _schema(pa.float16())
_N_COLUMNS_1 = _SCHEMA.names.index("split")
_N_COLUMNS_2 = _SCHEMA.names.index("strict")
_SCHEMAS_2 = tuple(pa.schema(list(schema)[:_N_COLUMNS_2]) for schema in (_SCHEMA, _SCHEMA_FLOAT16))
_SCHEMAS = {1: (pa.schema(list(_SCHEMA)[:_N_COLUMNS_1]),), 2: _SCHEMAS_2, 3: (_SCHEMA, _SCHEMA_FLOAT16)}


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
        control_routes, control_correct, control_margins: the blind baseline: random routes drawn without looking at the question,
            in the order tried. Empty when none was drawn.
        checks: routes verified again under other conditions.
        strict, lenient, forms: of letters and boxed answers, what either reader says of each evaluated route's answer, and the answer's
            form (`drllm.tasks.readers`); empty for other rewards.
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
    strict: tuple[bool, ...] = ()
    lenient: tuple[bool, ...] = ()
    forms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        search, control = ("routes", "rewards", "margins", "acc", "acc_norm"), ("control_routes", "control_correct", "control_margins")
        for names, what in ((search, "an evaluated route, the base first"), (control, "a route of the baseline")):
            sizes = {name: len(getattr(self, name)) for name in names}
            if len(set(sizes.values())) > 1 or not self.routes:
                raise InputError(f"record {self.id!r} of {self.task}: expected one entry {what}, got {sizes}")
        if {len(self.strict), len(self.lenient), len(self.forms)} not in ({0}, {len(self.routes)}):
            raise InputError(f"record {self.id!r} of {self.task}: expected what both readers say of {len(self.routes)} routes, or of none")
        if self.split not in RECORD_SPLITS:
            raise InputError(f"record {self.id!r} of {self.task}: split is {self.split!r}, expected one of {', '.join(RECORD_SPLITS)}")

    @property
    def kept(self) -> bool:
        """Some route was right, so the record can teach one (section 4: paths that preserve or improve the verdict)."""
        return self.chosen is not None

    @property
    def improved(self) -> bool:
        """The base was wrong and the kept route is right."""
        return not self.base_correct and self.chosen is not None

    @property
    def control_solved(self) -> bool | None:
        """The base was wrong and one of the baseline's routes is right; None without a baseline.

        All of them count, as many as the search had simulations: a search that stops at its first right route has not had fewer chances,
        and a baseline cut to that length would lose to a search that is no better than chance.
        """
        return not self.base_correct and any(self.control_correct) if self.control_routes else None

    @property
    def broken(self) -> bool:
        """The base's logits were NaN or infinite, so nothing more was tried."""
        return self.verified(self.routes[0]).get(FINITE) is False

    def verified(self, route: Route) -> dict[str, bool]:
        """The verdicts of a route's checks by name; empty when it was never checked."""
        return {check.check: check.correct for check in self.checks if check.route == route}


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def shard_indices(folder: Path) -> list[int]:
    """The shards present, in order; what a killed process left half written is none of them."""
    return sorted(int(match[1]) for path in folder.glob("shard-*.parquet") if (match := SHARD_NAME.fullmatch(path.name)))


def write_shard(folder: Path, index: int, records: Sequence[RouteRecord]) -> None:
    """Write one group's records atomically, in the order given; equal records give equal bytes."""
    data = encode(records)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(shard_path(folder, index), data)


def encode(records: Sequence[RouteRecord], float16: bool = False, level: int | None = None) -> bytes:
    """The bytes of a shard, which `read_shard` reads back.

    Args:
        float16: store margins as float16; `InputError` when one is beyond it.
        level: of the zstd compression; default its own.
    """
    table = _stamped(pa.Table.from_pylist([_row(record) for record in records], schema=_SCHEMA))
    if float16:
        _check_float16(records)
        # The digest is that of the margins as they are read back.
        table = _stamped(table.cast(_SCHEMA_FLOAT16).cast(_SCHEMA))
        table = table.cast(_SCHEMA_FLOAT16.with_metadata(table.schema.metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=level, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _stamped(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"drllm_schema": str(SCHEMA_VERSION), "drllm_digest": _digest(table)})


def _row(record: RouteRecord) -> dict[str, Any]:
    """A record as parquet holds it: routes as text."""
    row: dict[str, Any] = {name: getattr(record, name) for name in _SCHEMA.names}
    row |= {name: [str(route) for route in row[name]] for name in ("routes", "control_routes")}
    chosen = None if record.chosen is None else str(record.chosen)
    return row | {"chosen": chosen, "checks": [vars(check) | {"route": str(check.route)} for check in record.checks]}


def read_shard(path: Path) -> list[RouteRecord]:
    """The records of one shard, or of an exported file; `ArtifactError` when it is corrupt, foreign or from a newer drllm.

    Shards of schema 1 lack the split, the baseline and the checks, those of 2 what the readers say: their records have the defaults.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable shard ({first_line(error)}): delete it and run the search again") from None
    metadata = table.schema.metadata or {}
    version = metadata.get(b"drllm_schema", b"").decode("ascii", "replace")
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {version}, this drllm reads up to {SCHEMA_VERSION}: upgrade drllm")
    if not version.isdecimal() or not any(table.schema.equals(schema) for schema in _SCHEMAS.get(int(version), ())):
        raise ArtifactError(f"{path} holds no drllm search records: give a run folder written by `drllm search`")
    try:
        for halves, whole in ((_SCHEMA_FLOAT16, _SCHEMA), _SCHEMAS_2[::-1]):
            table = table.cast(whole) if table.schema.equals(halves) else table
        # Page checksums do not cover the footer, where one wrong bit can move values silently.
        found = _digest(table).encode()
        if metadata.get(b"drllm_digest", found) != found:
            raise InputError("its content and its digest differ")
        return [_record(row) for row in table.to_pylist()]
    except (InputError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} holds a broken record ({first_line(error)}): delete it and run the search again") from None


def _digest(table: pa.Table) -> str:
    return digest(json.dumps(table.to_pylist()))


def _record(row: dict[str, Any]) -> RouteRecord:
    """The inverse of `_row`, also of a row of schema 1."""
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    found |= {name: tuple(map(Route.parse, row[name])) for name in ("routes", "control_routes") if name in row}
    checks = tuple(Check(**check | {"route": Route.parse(check["route"])}) for check in row.get("checks", ()))
    chosen = None if row["chosen"] is None else Route.parse(row["chosen"])
    return RouteRecord(**found | {"chosen": chosen, "checks": checks})


def read_records(folder: Path) -> list[RouteRecord]:
    """Every record below a folder (one task's, or a whole `search/`), by task, then shard, then place in the shard."""
    return list(iterate_records(folder))


def iterate_records(folder: Path) -> Iterator[RouteRecord]:
    """As `read_records`, a shard at a time: a million records are tens of gigabytes."""
    for task in sorted({path.parent for path in folder.rglob("shard-*.parquet")}):
        for index in shard_indices(task):
            yield from read_shard(shard_path(task, index))


def same_record(one: RouteRecord, other: RouteRecord) -> bool:
    """Whether two records say the same; as text, because nan differs from itself."""
    return json.dumps(_row(one)) == json.dumps(_row(other))


def _check_float16(records: Sequence[RouteRecord]) -> None:
    for record in records:
        margins = (record.base_margin, *record.margins, *record.control_margins, *(check.margin for check in record.checks))
        for margin in margins:
            if _FLOAT16_LIMIT <= abs(margin) < math.inf:
                raise InputError(f"a margin of question {record.id!r} is {margin:g}, float16 ends at 65504: leave --float16 out")
