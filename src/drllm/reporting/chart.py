"""A picture with its numbers, and how the methods in it look; `drawing` makes a PNG and a CSV file of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the methods apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# One more than there are colours: the two together repeat after 56, not after 7.
MARKERS = "osD^vPX*"
# Of mean passes 0 (skipped), 1 (the base) and 2 (repeated): blue, white, orange differ in lightness and for colour-blind readers.
USAGE = ((0.0, "#0072B2"), (0.5, "#F7F7F7"), (1.0, "#D55E00"))


@dataclass(frozen=True)
class Chart:
    """A picture with its numbers."""

    name: str  # of `name.png` and `name.csv` in the report folder
    title: str  # what it shows, of how many
    caption: str  # the sentence under it
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]  # the numbers, as they stand in the CSV
    draw: Callable[[Sequence[Any]], None] = field(repr=False)  # onto the matplotlib axes of its panels, the upper one first
    panels: int = 1
    height: float = 4.5  # of the PNG in inches
    legend: int | None = None  # columns under the PNG; 0: inside the upper panel; None: no legend


def number(value: float) -> str:
    """A value as it stands in a CSV file."""
    return f"{value:.6g}"


def colour(index: int) -> str:
    """Of the `index`-th method, task or curve."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """As `colour`."""
    return MARKERS[index % len(MARKERS)]
