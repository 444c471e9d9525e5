"""What a scan found, as it stands in the run folder: one JSON file, and a table of every candidate. No torch."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from drllm.core.errors import ArtifactError, first_line
from drllm.core.files import read_json, write_json, write_text
from drllm.runs.layout import ScanFolder
from drllm.runs.stored import Stored

AGAIN = "delete it and run the scan again, which resumes"
WINNER, RANDOM, CLAIMED = "winner", "random", "claimed"
LEAD = "winners minus random"  # the group of that mean
ELSEWHERE, CLAIM_LEAD = "elsewhere", "claimed minus elsewhere"  # means beside a claim: the same change at other blocks
_COLUMNS = ("kind", "first", "last", "route", "passes", "questions", "score", "accuracy")


@dataclass(frozen=True)
class Cell:
    """One candidate on the map.

    Attributes:
        kind, first, last: "loop", "damped" or "skip", and its blocks.
        questions: how many it answered before the race left it behind.
        score, accuracy: its mean score (0 to 1) and its share of right answers, minus the base's, on those.
    """

    kind: str
    first: int
    last: int
    route: str
    passes: int
    questions: int
    score: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Difference(Stored):
    """Share of right answers minus the base's on the same questions, with its paired 95 % interval; fractions.

    Attributes:
        n: questions.
        better, worse: how many only the route, or only the base, has right; None for a mean over several routes.
        p: McNemar's exact p of those.
    """

    n: int
    mean: float
    low: float
    high: float
    better: int | None = None
    worse: int | None = None
    p: float | None = None


class Said(NamedTuple):
    """What somebody says of a route: as of `Measured`."""

    gain: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured(Stored):
    """One route beside the base, or the mean over several routes.

    Attributes:
        group: "winner" of the race, "random" span, or "claimed" by somebody.
        kind, first, last, route, passes: as of a `Cell`; kind is empty for a route of another form, route for a mean.
        raced: on the questions that chose the winners; None for what was not measured on them.
        fresh: on questions that chose nothing; None without those.
        gain, source: points that somebody says it gains, and where that is said; None and empty where neither was told.
    """

    OPTIONAL: ClassVar = ("raced", "fresh", "gain", "source")
    ONES: ClassVar = {"raced": Difference, "fresh": Difference}
    group: str
    kind: str = ""
    first: int = -1
    last: int = -1
    route: str = ""
    passes: float = 0
    raced: Difference | None = None
    fresh: Difference | None = None
    gain: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Cost(Stored):
    """Plain forwards (one forward of one question by the base).

    Attributes:
        race: of the race.
        full: what every candidate on every question of the last round would have cost.
        random, fresh: of the random spans on the raced questions, and of all that was measured again.
    """

    race: float
    full: float
    random: float
    fresh: float

    @property
    def share(self) -> float:
        """Of the race in the full product."""
        return self.race / self.full if self.full else 0.0

    @property
    def total(self) -> float:
        """Of the whole scan."""
        return self.race + self.random + self.fresh


@dataclass(frozen=True, kw_only=True)
class ScanResult(Stored):
    """What a scan found.

    Attributes:
        model, fingerprint, dtype, n_layers: the base.
        kinds, strength: what was done with the spans.
        tasks, sources: where the questions are from.
        split, fresh_split: of the questions that chose, and of those that chose nothing.
        sizes: questions that a candidate had answered after each round.
        candidates: how many ran in each round.
        cost: in plain forwards.
        rows: winners, random spans and claimed routes.
        means: over the winners, over the random spans, of the first minus the second; and for each claim, whose route they bear, over the
            same change at other blocks, and of the claim minus that.
        chance: what winners seem to gain where they were chosen if no candidate differs from the base; None without a race.
        notes: what a reader of the map should know of the model.
    """

    OPTIONAL: ClassVar = ("chance",)
    PARTS: ClassVar = {"rows": Measured, "means": Measured}
    ONES: ClassVar = {"cost": Cost, "chance": Difference}
    model: str
    fingerprint: str
    dtype: str
    n_layers: int
    kinds: list[str]
    strength: float
    tasks: list[str]
    sources: dict[str, str]
    split: str
    fresh_split: str
    sizes: list[int]
    candidates: list[int]
    cost: Cost
    rows: list[Measured]
    means: list[Measured]
    chance: Difference | None = None
    notes: list[str] = field(default_factory=list)

    def in_group(self, group: str) -> list[Measured]:
        """The rows of one group."""
        return [row for row in self.rows if row.group == group]

    def mean_of(self, group: str, route: str = "") -> Measured | None:
        """The mean over a group, of a claim's the one beside that route; None where there is none."""
        return next((row for row in self.means if (row.group, row.route) == (group, route)), None)


def write_scan(folder: ScanFolder, result: ScanResult, cells: Sequence[Cell]) -> None:
    """Write the map, then the result: where there is a result, the map is whole."""
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for cell in cells:
        lines.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in (getattr(cell, name) for name in _COLUMNS)])
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
