"""Every word of our own, one meaning each: `docs/glossary.md` lists them all, a page those that stand on it, folded away."""

import re
from collections.abc import Iterable
from importlib.resources import files

import yaml

from drllm.reporting.parts import Folded, Part, Table, to_markdown

TITLE = "What the words on this page mean"

_WORDS = yaml.safe_load(files("drllm.reporting").joinpath("static", "glossary.yaml").read_text(encoding="utf-8"))
ENTRIES: dict[str, str] = _WORDS["entries"]  # what each word means
PATTERNS: dict[str, str] = _WORDS["patterns"]  # how a word is found in a page's Markdown; the others stand in docs/glossary.md alone


def glossary(parts: Iterable[Part]) -> list[Part]:
    """A folded table of the words that stand in the parts of a page; nothing where none does."""
    text = to_markdown(parts)
    rows = tuple((word, meaning) for word, meaning in ENTRIES.items() if word in PATTERNS and re.search(PATTERNS[word], text))
    return [Folded(TITLE, (Table(("word", "meaning"), rows),))] if rows else []
