"""What a picture shows, described once: `drawing` makes a PNG and a CSV file of it, `plots` a Plotly figure for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the methods apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# As matplotlib and as Plotly name them. One more than there are colours: the two together repeat after 56, not after 7.
MARKERS = tuple(zip("osD^vPX*", ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"), strict=True))
HATCHES = ("", "/", "x", ".")  # of bars, which have no markers: another after each round of colours
# Of mean passes 0 (skipped), 1 (the base) and 2 (repeated): blue, white, orange differ in lightness and for colour-blind readers.
FRAME = "#1b1f24"  # around the blocks of a loop
USAGE = ((0.0, "#0072B2"), (0.5, "#F7F7F7"), (1.0, "#D55E00"))
MANY_BARS = 12  # more than fit a phone with their numbers side by side


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
    def marker(self) -> tuple[str, str]:
        """Its marker for matplotlib and for Plotly."""
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
    hover: str
    aside: float = 0


@dataclass(frozen=True, kw_only=True)
class Curve(Mark):
    """Values over numbers, joined by a line, or over names, side by side."""

    xs: Sequence[Any]
    ys: Sequence[float]
    error: tuple[list[float], list[float]] | None = None  # how far the intervals reach below and above; None without intervals
    dashed: bool = False  # of two curves in one colour, the second
    group: str = ""  # curves that a click on the page's legend draws together, in the PNG with smaller markers; empty: no group
    drawn: bool = True  # else not in the PNG, and on the page after a click


@dataclass(frozen=True, kw_only=True)
class Front(Mark):
    """A Pareto front, as a step line: what the best method at most this dear has."""

    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Level(Mark):
    """A dotted line from side to side. Attributes: on_page: drawn behind the curves and on the page too, not in the PNG alone."""

    y: float
    on_page: bool = True


@dataclass(frozen=True, kw_only=True)
class Bars(Mark):
    """Bars over names or numbers. Attributes: width: what a bar has of the x axis; labels: what stands above each bar."""

    xs: Sequence[Any]
    heights: Sequence[float]
    width: float
    hover: str
    labels: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Heat(Mark):
    """Mean passes by row and block. Attributes: labels: say more of a row than its name; loops: (row, first, last block) to be framed."""

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    labels: Sequence[str]
    loops: Sequence[tuple[int, int, int]] = ()


@dataclass(frozen=True, kw_only=True)
class Squares(Mark):
    """A map: a coloured square at whole numbers x and y; values from -limit (blue) over 0 (white) to limit (orange), beyond as at the end.

    Attributes:
        sides: of each square, 1 for one that touches its neighbours.
        label: of the colours.
        hovers: what each square says on the page.
        sizes: what sides mean, as (words, side); in the PNG's lower right corner, where a map of spans has no square.
    """

    xs: Sequence[int]
    ys: Sequence[int]
    values: Sequence[float]
    sides: Sequence[float]
    limit: float
    label: str
    hovers: Sequence[str]
    sizes: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Boxes(Mark):
    """Lower whisker, lower quartile, median, upper quartile and upper whisker by category."""

    quantiles: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Axis:
    """An axis."""

    label: str = ""  # its title
    short: str = ""  # its title on the page, where that is another
    names: Sequence[str] = ()  # of categories, in order
    limits: tuple[float, float] | None = None  # of the PNG
    decades: tuple[float, float] | None = None  # on a log scale, the page's limits as powers of ten
    is_log: bool = False
    is_whole: bool = False  # counts something: no ticks between
    kind: str = ""  # the page's type of axis; empty: found from the values
    inch: float = 0  # of the page, in x: how far a `Spot` moves for each inch of `aside`


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

    @property
    def is_crowded(self) -> bool:
        """Whether the numbers above its bars must stand upright."""
        return sum(len(bars.labels) for bars in self.of(Bars)) > MANY_BARS


def number(value: float) -> str:
    """A value as it stands in a CSV file."""
    return f"{value:.6g}"
