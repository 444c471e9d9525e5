"""What a scan found, as it stands in the run folder: one JSON file, and a table of every candidate. No torch."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple

from drllm.core.errors import ArtifactError, first_line
from drllm.core.files import read_json, write_json, write_text
from drllm.runs.layout import ScanFolder
from drllm.runs.stored import Stored

AGAIN = "delete it and run the scan again, which resumes"
WINNER, RANDOM, CLAIMED = "winner", "random", "claimed"
LEAD = "winners minus random"  # the group of that mean
ELSEWHERE, CLAIM_LEAD = "elsewhere", "claimed minus elsewhere"  # means beside a claim: the same change at other blocks


@dataclass(frozen=True)
class Cell:
    """One candidate on the map; its fields are the columns of the file."""

    kind: str  # "loop", "damped" or "skip"
    first: int  # its blocks
    last: int
    route: str
    passes: int
    questions: int  # how many it answered before the race left it behind
    score: float  # its mean score (0 to 1) minus the base's, on those
    accuracy: float  # its share of right answers minus the base's


@dataclass(frozen=True, kw_only=True)
class Difference(Stored):
    """Share of right answers minus the base's on the same questions, with its paired 95 % interval; fractions."""

    n: int  # questions
    mean: float
    low: float
    high: float
    better: int | None = None  # how many only the route has right; None for a mean over several routes
    worse: int | None = None  # how many only the base has right
    p: float | None = None  # McNemar's exact p of those


class Said(NamedTuple):
    """What somebody says of a route: as of a `Measured`."""

    gain: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured(Stored):
    """One route beside the base, or the mean over several routes."""

    OPTIONAL: ClassVar = ("raced", "fresh", "gain", "source")
    ONES: ClassVar = {"raced": Difference, "fresh": Difference}
    group: str  # "winner" of the race, "random" span, or "claimed" by somebody
    kind: str = ""  # as of a `Cell`; empty for a route of another form
    first: int = -1
    last: int = -1
    route: str = ""  # empty for a mean
    passes: float = 0
    raced: Difference | None = None  # on the questions that chose the winners, where it was measured on them
    fresh: Difference | None = None  # on questions that chose nothing, where there are some
    gain: float | None = None  # points that somebody says it gains
    source: str = ""  # where that is said


@dataclass(frozen=True, kw_only=True)
class Cost(Stored):
    """Plain forwards (one forward of one question by the base)."""

    race: float
    full: float  # what every candidate on every question of the last round would have cost
    random: float  # of the random spans on the raced questions
    fresh: float  # of all that was measured again

    @property
    def share(self) -> float:
        """Of the race in the full product."""
        return self.race / self.full if self.full else 0.0

    @property
    def total(self) -> float:
        return self.race + self.random + self.fresh


@dataclass(frozen=True, kw_only=True)
class ScanResult(Stored):
    """What a scan found."""

    OPTIONAL: ClassVar = ("chance",)
    PARTS: ClassVar = {"rows": Measured, "means": Measured}
    ONES: ClassVar = {"cost": Cost, "chance": Difference}
    model: str
    fingerprint: str
    dtype: str
    n_layers: int
    kinds: list[str]  # what was done with the spans
    strength: float
    tasks: list[str]
    sources: dict[str, str]  # by task, where the questions are from
    split: str  # of the questions that chose
    fresh_split: str  # of those that chose nothing
    sizes: list[int]  # questions that a candidate had answered after each round
    candidates: list[int]  # how many ran in each round
    cost: Cost
    rows: list[Measured]  # winners, random spans and claimed routes
    # Over the winners, over the random spans, of the first minus the second; for each claim, whose route they bear, over the same change at
    # other blocks, and of the claim minus that.
    means: list[Measured]
    chance: Difference | None = None  # what winners seem to gain where they were chosen if no candidate differs from the base
    notes: list[str] = field(default_factory=list)  # what a reader of the map should know of the model

    def in_group(self, group: str) -> list[Measured]:
        return [row for row in self.rows if row.group == group]

    def mean_of(self, group: str, route: str = "") -> Measured | None:
        """The mean over a group, of a claim's the one beside that route; None where there is none."""
        return next((row for row in self.means if (row.group, row.route) == (group, route)), None)


def write_scan(folder: ScanFolder, result: ScanResult, cells: Sequence[Cell]) -> None:
    """Write the map, then the result: where there is a result, the map is whole."""
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow([one.name for one in fields(Cell)])
    for cell in cells:
        lines.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in vars(cell).values()])
    write_text(folder.map, buffer.getvalue())
    write_json(folder.result, result.to_json())


def read_scan(folder: ScanFolder) -> ScanResult:
    """What a scan found; `ArtifactError` when the file is missing or no scan's."""
    return ScanResult.of(read_json(folder.result, AGAIN, dict), folder.result)


def read_map(folder: ScanFolder) -> list[Cell]:
    """Every candidate with what it scored; `ArtifactError` when the file is missing or no scan's."""
    try:
        text = folder.map.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read {folder.map} ({first_line(error)}): run the same scan again, which writes it anew") from None
    try:
        return [_cell(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except (KeyError, ValueError, TypeError):
        raise ArtifactError(f"{folder.map} is no map of a scan, or a damaged one: run the same scan again, which writes it anew") from None


def _cell(row: dict[str, str]) -> Cell:
    whole = {name: int(row[name]) for name in ("first", "last", "passes", "questions")}
    return Cell(kind=row["kind"], route=row["route"], score=float(row["score"]), accuracy=float(row["accuracy"]), **whole)
