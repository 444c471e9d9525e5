"""What a search chose: one `RouteRecord` a question, whose verdicts lie in the run's store; the same search writes the same bytes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.route import Route
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import Manifest
from drllm.runs.shards import Shards
from drllm.runs.shards import read_shard as read_table
from drllm.runs.store import Asked, Conditions, Found, Store, Verdict

FINITE = "finite"  # the check that fails on a base route whose logits are NaN or infinite
RECORD_SPLITS = ("fit", "tune", "calibrate")  # never test: what a search has seen cannot be tested on
SHARD_NAME = re.compile(r"shard-(\d{5,})\.parquet")  # of a file in a task folder

_TEXT = pa.string()
_QUESTION = [(name, _TEXT) for name in ("task", "split", "id", "question")]
_CONDITIONS = [(name, _TEXT) for name in ("weights", "dtype", "reward", "prompts", "settings", "counts")]
_FOUND = [("seed", pa.int64()), ("chosen", _TEXT), ("routes", pa.list_(_TEXT)), ("control_routes", pa.list_(_TEXT))]
_CHECK = pa.struct([("route", _TEXT), ("check", _TEXT), ("correct", pa.bool_()), ("margin", pa.float32())])
CHOSEN = pa.schema([*_QUESTION, *_CONDITIONS, *_FOUND, ("checks", pa.list_(_CHECK))])


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
    """One question and its routes."""

    asked: Asked
    conditions: Conditions  # under which its routes were asked
    counts: str  # which verdict of the store is the reward
    seed: int  # the search's
    chosen: Route | None  # the route kept; None when no route was right
    routes: tuple[Route, ...]  # every route asked, in the order told, the base first
    verdicts: Mapping[Route, Verdict] = field(repr=False)  # of these and of the baseline's routes
    control_routes: tuple[Route, ...] = ()  # the blind baseline: random routes drawn without looking at the question, in the order tried
    checks: tuple[Check, ...] = ()  # routes verified again under other conditions

    def __post_init__(self) -> None:
        if not self.routes:
            raise InputError(f"record {self.id!r} of {self.task}: expected at least one route, the base's")
        if lacking := [route for route in (*self.routes, *self.control_routes) if route not in self.verdicts]:
            raise InputError(f"record {self.id!r} of {self.task}: the run holds no verdict of route {lacking[0]}")
        if self.split not in RECORD_SPLITS:
            raise InputError(f"record {self.id!r} of {self.task}: split is {self.split!r}, expected one of {', '.join(RECORD_SPLITS)}")

    @property
    def task(self) -> str:
        return self.asked.task

    @property
    def id(self) -> str:
        return self.asked.id

    @property
    def split(self) -> str:
        """One of `RECORD_SPLITS`."""
        return self.asked.split

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return self.conditions.weights

    @property
    def reward(self) -> str:
        return self.conditions.reward

    @property
    def base_correct(self) -> bool:
        return self.verdicts[self.routes[0]].correct

    @property
    def base_margin(self) -> float:
        """The base route's margin; nan where the reward has none."""
        return self.verdicts[self.routes[0]].margin

    @cached_property
    def rewards(self) -> tuple[float, ...]:
        """Of `routes`: 1 for right, 0 for wrong."""
        return tuple(float(self.verdicts[route].correct) for route in self.routes)

    @cached_property
    def margins(self) -> tuple[float, ...]:
        """Of `routes`."""
        return tuple(self.verdicts[route].margin for route in self.routes)

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
        if not self.control_routes:
            return None
        return not self.base_correct and any(self.verdicts[route].correct for route in self.control_routes)

    @property
    def broken(self) -> bool:
        """The base's logits were NaN or infinite, so nothing more was tried."""
        return self.verified(self.routes[0]).get(FINITE) is False

    def verified(self, route: Route) -> dict[str, bool]:
        """The verdicts of a route's checks by name; empty when it was never checked."""
        return {check.check: check.correct for check in self.checks if check.route == route}


def shard_path(folder: Path, index: int) -> Path:
    return _shards(folder).path(_name(index))


def shard_indices(folder: Path) -> list[int]:
    """The shards present, in order; what a killed process left half written is none of them."""
    return sorted(int(match[1]) for path in folder.glob("shard-*.parquet") if (match := SHARD_NAME.fullmatch(path.name)))


def write_shard(folder: Path, index: int, records: Sequence[RouteRecord]) -> None:
    """Write one group's records atomically, in the order given; equal records give equal bytes. Their verdicts are in the store."""
    _shards(folder).write(_name(index), [_row(record) for record in records])


def read_shard(path: Path, store: Store | None = None) -> list[RouteRecord]:
    """The records of one shard; `ArtifactError` when it is corrupt, foreign or from a newer drllm, or the store lacks its verdicts."""
    store = store or store_of(path.parent)
    rows = read_table(path, CHOSEN).to_pylist()
    found: dict[tuple[Conditions, str], Found] = {}
    for row in rows:
        under = Conditions(*(row[name] for name in ("weights", "dtype", "reward", "prompts", "settings"))), row["counts"]
        if under not in found:
            found[under] = store.find(under[0], {one["question"] for one in rows}, under[1])
        row["under"], row["verdicts"] = under, found[under][row["question"]]
    try:
        return [_record(row) for row in rows]
    except InputError as error:
        raise ArtifactError(f"{path} holds a broken record ({first_line(error)}): delete it and run the search again") from None


def read_records(folder: Path) -> list[RouteRecord]:
    """Every record below a folder (one task's, or a whole `search/`), by task, then shard, then place in the shard."""
    return list(iterate_records(folder))


def iterate_records(folder: Path) -> Iterator[RouteRecord]:
    """As `read_records`, a shard at a time: a million records are tens of gigabytes."""
    stores: dict[Path, Store] = {}
    for task in sorted({path.parent for path in folder.rglob("shard-*.parquet")}):
        store = stores.setdefault(task.resolve().parents[1], store_of(task))
        for index in shard_indices(task):
            yield from read_shard(shard_path(task, index), store)


def store_of(task_folder: Path) -> Store:
    """The store of the run that a task folder lies in."""
    return Store(RunFolder(task_folder.resolve().parents[1]).verdicts)


def read_matrix(folder: Path, manifest: Manifest) -> list[RouteRecord]:
    """Records of a task's questions along its listed routes, the base first: of those whose routes have all been answered.

    The shortest right route is the one kept; of equals that of the larger margin, then the first.
    """
    asked, routes = manifest.questions_asked, tuple(map(Route.parse, manifest.paths or ()))
    found, records = store_of(folder).find(manifest.under, [one.question for one in asked], manifest.counts), []
    for one in asked:
        verdicts = found[one.question]
        if all(route in verdicts for route in routes):
            right = [route for route in routes if verdicts[route].correct]
            chosen = min(right, key=lambda one: (one.n_passes, -m if (m := verdicts[one].margin) == m else float("inf")), default=None)
            checks = (Check(routes[0], FINITE, False, verdicts[routes[0]].margin),) if verdicts[routes[0]].broken else ()
            records.append(RouteRecord(one, manifest.under, manifest.counts, 0, chosen, routes, verdicts, (), checks))
    return records


def _shards(folder: Path) -> Shards:
    return Shards(folder, CHOSEN)


def _name(index: int) -> str:
    return f"shard-{index:05d}"


def _row(record: RouteRecord) -> dict[str, Any]:
    """A record as its shard holds it: routes as text."""
    row = record.asked._asdict() | asdict(record.conditions) | {"counts": record.counts, "seed": record.seed}
    row |= {name: [str(route) for route in getattr(record, name)] for name in ("routes", "control_routes")}
    checks = [
        vars(check) | {"route": str(check.route), "margin": None if check.margin != check.margin else check.margin}
        for check in record.checks
    ]
    return row | {"chosen": None if record.chosen is None else str(record.chosen), "checks": checks}


def _record(row: dict[str, Any]) -> RouteRecord:
    """The inverse of `_row`, with its verdicts."""
    asked = Asked(row["task"], row["split"], row["id"], row["question"])
    chosen = None if row["chosen"] is None else Route.parse(row["chosen"])
    routes, control = (tuple(map(Route.parse, row[name])) for name in ("routes", "control_routes"))
    nan = float("nan")
    checks = tuple(
        Check(Route.parse(check["route"]), check["check"], check["correct"], nan if check["margin"] is None else check["margin"])
        for check in row["checks"]
    )
    conditions, counts = row["under"]
    verdicts = {route: row["verdicts"][route] for route in (*routes, *control) if route in row["verdicts"]}
    return RouteRecord(asked, conditions, counts, row["seed"], chosen, routes, verdicts, control, checks)
