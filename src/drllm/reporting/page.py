"""The report as one HTML page that needs nothing beside it: style, numbers and pictures stand in it."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from drllm.core.files import write_text
from drllm.reporting.drawing import to_csv
from drllm.reporting.parts import Chart, Folded, Heading, Part, Table, flat, to_markdown
from drllm.runs.layout import MARKDOWN_FILE, PAGE_FILE


def _text(name: str) -> str:
    return files("drllm.reporting").joinpath("static", name).read_text(encoding="utf-8")


# What each word means; and how a word is found in a page's Markdown: those without a pattern stand in docs/glossary.md alone.
ENTRIES, PATTERNS = (yaml.safe_load(_text("glossary.yaml"))[part] for part in ("entries", "patterns"))


def write_page(opening: Sequence[Part], body: Sequence[Part], folder: Path) -> Path:
    """Write `report.md` and `report.html`, the words of the body explained above it; the path of the second.

    Their pictures are there already (`drllm.reporting.drawing.write_charts`).
    """
    parts = [*opening, *glossary(body), *body]
    write_text(folder / MARKDOWN_FILE, to_markdown(parts))
    pictures = {part.name: (folder / f"{part.name}.png").read_bytes() for part in flat(parts) if isinstance(part, Chart)}
    write_text(folder / PAGE_FILE, to_html(parts, pictures))
    return folder / PAGE_FILE


def glossary(parts: Iterable[Part]) -> list[Part]:
    """A folded table of the words that stand in the parts of a page; nothing where none does."""
    text = to_markdown(parts)
    rows = tuple((word, meaning) for word, meaning in ENTRIES.items() if word in PATTERNS and re.search(PATTERNS[word], text))
    return [Folded("What the words on this page mean", (Table(("word", "meaning"), rows),))] if rows else []


def to_html(parts: Iterable[Part], pictures: Mapping[str, bytes]) -> str:
    """The page; `pictures`: the PNG of each chart by its name. Nothing is fetched and nothing runs, which the page itself forbids."""
    from markupsafe import Markup

    named = [(f"s{place}", part) for place, part in enumerate(parts)]
    title = next((part.text for _, part in named if isinstance(part, Heading)), "drllm")
    sections = [(name, part.text) for name, part in named if isinstance(part, Heading) and part.level == 2]
    page = {"parts": named, "title": title, "sections": sections, "pictures": pictures, "style": Markup(_text("page.css"))}
    return _environment().get_template("page.html").render(**page)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    trimmed: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_text), **trimmed)
    filters = (_prose, _base64, to_csv)
    environment.filters |= {function.__name__.lstrip("_"): function for function in filters}
    return environment


def _prose(text: str) -> Any:
    """A sentence, its `commands` set as code."""
    from markupsafe import Markup, escape

    pieces = re.split(r"`([^`]+)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces))


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode()
