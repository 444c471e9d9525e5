"""What a picture shows; `drawing` makes a PNG and a CSV file of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the methods apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# One more than there are colours: the two together repeat after 56, not after 7.
MARKERS = "osD^vPX*"
HATCHES = ("", "/", "x", ".")  # of bars, which have no markers: another after each round of colours
# Of mean passes 0 (skipped), 1 (the base) and 2 (repeated): blue, white, orange differ in lightness and for colour-blind readers.
FRAME = "#1b1f24"  # around the blocks of a loop
USAGE = ((0.0, "#0072B2"), (0.5, "#F7F7F7"), (1.0, "#D55E00"))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is drawn on one pair of axes. Attributes: index: chooses colour, marker and hatch; panel: 0 is the upper one."""

    name: str = ""
    index: int = 0
    panel: int = 0

    @property
    def colour(self) -> str:
        """The colour of the `index`-th method, task or curve."""
        return COLOURS[self.index % len(COLOURS)]

    @property
    def marker(self) -> str:
        """Its marker."""
        return MARKERS[self.index % len(MARKERS)]

    @property
    def hatch(self) -> str:
        """What tells two bars of one colour apart."""
        return HATCHES[self.index // len(COLOURS) % len(HATCHES)]


@dataclass(frozen=True, kw_only=True)
class Spot(Mark):
    """One value with its interval, which reaches `low` below and `high` above; `aside`: inches to the right, for values of equal x."""

    x: float
    y: float
    low: float
    high: float
    aside: float = 0


@dataclass(frozen=True, kw_only=True)
class Curve(Mark):
    """Values over numbers, joined by a line, or over names, side by side."""

    xs: Sequence[Any]
    ys: Sequence[float]
    error: tuple[list[float], list[float]] | None = None  # how far the intervals reach below and above; None without intervals


@dataclass(frozen=True, kw_only=True)
class Front(Mark):
    """A Pareto front, as a step line: what the best method at most this dear has."""

    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Level(Mark):
    """A dotted line from side to side."""

    y: float


@dataclass(frozen=True, kw_only=True)
class Bars(Mark):
    """Bars over numbers. Attributes: width: what a bar has of the x axis."""

    xs: Sequence[float]
    heights: Sequence[float]
    width: float


@dataclass(frozen=True, kw_only=True)
class Heat(Mark):
    """Mean passes by row and block. Attributes: labels: of the rows; loops: (row, first, last block) to be framed."""

    values: Sequence[Sequence[float]]
    labels: Sequence[str]
    loops: Sequence[tuple[int, int, int]] = ()


@dataclass(frozen=True, kw_only=True)
class Squares(Mark):
    """A map: a coloured square at whole numbers x and y; values from -limit (blue) over 0 (white) to limit (orange), beyond as at the end.

    Attributes:
        sides: of each square, 1 for one that touches its neighbours.
        label: of the colours.
        sizes: what sides mean, as (words, side); in the lower right corner, where a map of spans has no square.
    """

    xs: Sequence[int]
    ys: Sequence[int]
    values: Sequence[float]
    sides: Sequence[float]
    limit: float
    label: str
    sizes: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Boxes(Mark):
    """Lower whisker, lower quartile, median, upper quartile and upper whisker by category."""

    quantiles: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Axis:
    """An axis."""

    label: str = ""  # its title
    names: Sequence[str] = ()  # of categories, in order
    limits: tuple[float, float] | None = None
    is_log: bool = False
    is_whole: bool = False  # counts something: no ticks between


@dataclass(frozen=True)
class Chart:
    """A picture with its numbers."""

    name: str  # of `name.png` and `name.csv` in the report folder
    title: str  # what it shows, of how many
    caption: str  # the sentence under it
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]  # the numbers, as they stand in the CSV
    marks: tuple[Mark, ...] = field(repr=False)  # what is drawn, in this order
    x: Axis
    ys: tuple[Axis, ...]  # of each panel, from the upper one on
    height: float = 4.5  # of the PNG in inches
    legend: int | None = None  # columns under the PNG; 0: inside the upper panel; None: no legend

    def of(self, kind: type[Any]) -> list[Any]:
        """The marks of one kind."""
        return [mark for mark in self.marks if isinstance(mark, kind)]


def number(value: float) -> str:
    """A value as it stands in a CSV file."""
    return f"{value:.6g}"
