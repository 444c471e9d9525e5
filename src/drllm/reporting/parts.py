"""What a report is made of. Each part is rendered twice: as Markdown here, as HTML by `drllm.reporting.page`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from drllm.reporting.chart import Chart


@dataclass(frozen=True)
class Heading:
    """Attributes: level: 1 is the report's title."""

    text: str
    level: int = 2


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
    """Attributes: code: columns whose cells are commands or identifiers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    code: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Prompt:
    """A question, what the base and the method made of it, and where its policy sent it."""

    id: str
    task: str
    text: str  # empty where the questions are not at hand
    answer: str
    base_right: bool | None  # None where the base was not evaluated on it
    right: bool
    route: str

    @property
    def is_changed(self) -> bool:
        """Whether the verdict is another than the base's."""
        return self.base_right is not None and self.right != self.base_right


@dataclass(frozen=True)
class RouteGroup:
    """Prompts whose routes resemble each other."""

    route: str  # the commonest of them
    distance: int  # how many blocks another of them treats differently, at most
    n_routes: int
    n_prompts: int
    by_task: tuple[tuple[str, int], ...]
    better: int
    worse: int
    prompts: tuple[Prompt, ...]  # the first; all other figures are of all
    is_rest: bool = False  # routes that resemble no group's; they need not resemble each other


@dataclass(frozen=True)
class RouteBrowser:
    """Where the routes of one method differ. Attributes: near: at most how many blocks from its group's commonest a route may be."""

    method: str
    split: str
    groups: tuple[RouteGroup, ...]
    near: int


@dataclass(frozen=True)
class Folded:
    """Parts that a reader opens; in Markdown they stand under their title."""

    title: str
    parts: tuple[Part, ...]


Part = Heading | Paragraph | Bullets | Commands | Table | Chart | RouteBrowser | Folded


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
        case RouteBrowser(method, split, groups, near):
            header = ("commonest route", "routes", "at most blocks from it", "prompts", "by task", "better / worse than the base")
            rows = [_group(group, near) for group in groups]
            return f"{method}, {split} split; the page beside this file shows the prompts.\n\n{_table(header, rows)}"
        case Folded(title, parts):
            return "\n\n".join([f"**{_plain(title)}**", *map(_markdown, parts)])


def _group(group: RouteGroup, near: int) -> tuple[str, ...]:
    route, distance = (f"`{group.route}`", str(group.distance)) if not group.is_rest else ("any other", f"more than {near}")
    return route, str(group.n_routes), distance, str(group.n_prompts), tasks(group.by_task), f"{group.better} / {group.worse}"


def tasks(counts: Iterable[tuple[str, int]]) -> str:
    """How many prompts of each task."""
    return ", ".join(f"{task} {count}" for task, count in counts)


def _plain(text: str) -> str:
    """Text without HTML: what a task, a file or a command is called is not markup."""
    return text.replace("<", "&lt;")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, tuple("---" for _ in header), *rows)
    return "\n".join("| " + " | ".join(_plain(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)
