"""What a report is made of. Each part is rendered twice: as Markdown here, as HTML by `drllm.reporting.page`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Heading:
    """A line above what follows."""

    text: str
    level: int = 2  # 1 is the report's title


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more, in plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Verdicts, a sentence each, in a list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    code: frozenset[str] = frozenset()  # columns whose cells are commands or identifiers


@dataclass(frozen=True)
class Chart:
    """A picture with its numbers; `drllm.reporting.drawing` makes a PNG and a CSV file of it."""

    name: str  # of `name.png` and `name.csv` in the report folder
    title: str  # what it shows, of how many
    caption: str  # the sentence under it
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]  # the numbers, as they stand in the CSV
    draw: Callable[[Sequence[Any]], None] = field(repr=False)  # onto the matplotlib axes of its panels, the upper one first
    panels: int = 1
    height: float = 4.5  # of the PNG in inches
    legend: int | None = None  # columns under the PNG; 0: inside the upper panel; None: no legend


@dataclass(frozen=True)
class Folded:
    """Parts that a reader opens; in Markdown they stand under their title."""

    title: str
    parts: tuple[Part, ...]


Part = Heading | Paragraph | Bullets | Commands | Table | Chart | Folded


def flat(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts and what is folded into them."""
    for part in parts:
        yield part
        if isinstance(part, Folded):
            yield from flat(part.parts)


def to_markdown(parts: Iterable[Part]) -> str:
    """The report as Markdown, its pictures as links to the PNG files."""
    return "\n\n".join(_markdown(part) for part in parts) + "\n"


def _markdown(part: Part) -> str:
    match part:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Bullets(items):
            return "\n".join(f"- **{_plain(item)}**" for item in items)
        case Commands(lines):
            return "\n".join(("````", *(line.replace("\n", " ") for line in lines), "````"))
        case Table(header, rows, caption, code):
            shown = [tuple(f"`{c}`" if name in code and c else c for name, c in zip(header, row, strict=True)) for row in rows]
            return (f"{caption}\n\n" if caption else "") + _table(header, shown)
        case Chart(name=name, caption=caption):
            return f"![{caption}]({name}.png)\n\n{caption} Numbers: [{name}.csv]({name}.csv)."
        case Folded(title, parts):
            return "\n\n".join([f"**{_plain(title)}**", *map(_markdown, parts)])


def _plain(text: str) -> str:
    """Text without HTML: what a task, a file or a command is called is not markup."""
    return text.replace("<", "&lt;")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, tuple("---" for _ in header), *rows)
    return "\n".join("| " + " | ".join(_plain(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)
