"""The report as one HTML page that needs nothing beside it: style, script, numbers and Plotly's own script stand in it."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from drllm.core.files import write_text
from drllm.core.route import Action, Route
from drllm.core.route_words import in_words
from drllm.reporting.chart import Chart
from drllm.reporting.drawing import to_csv
from drllm.reporting.glossary import glossary
from drllm.reporting.parts import Heading, Part, RouteBrowser, flat, tasks, to_markdown
from drllm.reporting.plots import as_plotly
from drllm.runs.layout import MARKDOWN_FILE, PAGE_FILE

STATIC = "static"  # the folder beside this file
SENTENCE = 40  # characters: a longer cell is wrapped


def write_page(opening: Sequence[Part], body: Sequence[Part], folder: Path) -> Path:
    """Write `report.md` and `report.html`, the words of the body explained above it; the path of the second.

    Their pictures: `drllm.reporting.drawing.write_charts`.
    """
    parts = [*opening, *glossary(body), *body]
    write_text(folder / MARKDOWN_FILE, to_markdown(parts))
    write_text(folder / PAGE_FILE, to_html(parts))
    return folder / PAGE_FILE


def to_html(parts: Iterable[Part]) -> str:
    """The page. Plotly's script (MIT, about 5 MB) is inlined where there is a chart; nothing is fetched, which the page itself forbids."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    parts, script = list(parts), _text("page.js")
    plotly = get_plotlyjs() if any(isinstance(part, Chart) for part in flat(parts)) else ""
    named = [(f"s{place}", part) for place, part in enumerate(parts)]
    title = next((part.text for part in parts if isinstance(part, Heading)), "drllm")
    sections = [(name, part.text) for name, part in named if isinstance(part, Heading) and part.level == 2]
    raw = {"style": Markup(_text("page.css")), "script": Markup(script), "plotly": Markup(plotly)}
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script) if text)
    return _environment().get_template("page.html").render(parts=named, title=title, sections=sections, hashes=hashes, **raw)


def _kind(part: Part) -> str:
    return type(part).__name__


def _sentence(cell: Any) -> bool:
    return len(str(cell)) > SENTENCE


def _sentences(rows: Iterable[Iterable[Any]]) -> bool:
    """Whether a table holds more than figures and names, so that on a phone its rows are easier to read than its columns."""
    return any(_sentence(cell) for row in rows for cell in row)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    trimmed: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_text), **trimmed)
    filters = (_prose, _blocks, _changes, _has_loops, _plot, _csv, tasks, _kind, _sentence, _sentences)
    environment.filters |= {function.__name__.lstrip("_"): function for function in filters}
    return environment


def _text(name: str) -> str:
    return files("drllm.reporting").joinpath(STATIC, name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names a script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _prose(text: str) -> Any:
    """A sentence, its `commands` set as code."""
    from markupsafe import Markup, escape

    pieces = re.split(r"`([^`]+)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces))


def _blocks(route: str) -> list[tuple[str, str]]:
    """(classes, title) of each block: its action, and where loops run it again and such a span begins and ends."""
    parsed = Route.parse(route)
    actions = [Action(min(n_passes, Action.REPEAT)).name.lower() for n_passes in parsed.in_place_actions]
    kinds = [dict.fromkeys([action]) for action in actions]
    for _, span in parsed.loops:
        for block in span.blocks:
            kinds[block] |= {"loop": None} | ({"from": None} if block == span.first else {}) | ({"to": None} if block == span.last else {})
    said = [f"block {block}: {action}{', and again' if 'loop' in kinds[block] else ''}" for block, action in enumerate(actions)]
    return [(" ".join(found), title) for found, title in zip(kinds, said, strict=True)]


def _has_loops(part: RouteBrowser) -> bool:
    return any(Route.parse(prompt.route).loops for group in part.groups for prompt in group.prompts)


def _changes(route: str) -> str:
    """A route in words: what it does otherwise than the base."""
    return in_words(Route.parse(route))


def _plot(chart: Chart) -> Any:
    """The figure as JSON for a script element, in which `</` must not stand."""
    from markupsafe import Markup

    return Markup(json.dumps(as_plotly(chart), allow_nan=False).replace("<", "\\u003c"))


def _csv(chart: Chart) -> str:
    """The numbers as a link that needs no file."""
    return f"data:text/csv;base64,{base64.b64encode(to_csv(chart).encode()).decode()}"
