"""The pages for users: few words, and none before its meaning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAMES = ("retrofit", "heal", "serve", "scan", "limits", "commands")
PAGES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in NAMES)]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_they_are_those_of_the_site():
    class Loader(yaml.SafeLoader):
        """Of a file with tags of mkdocs' own."""

    Loader.add_multi_constructor("", lambda *_: None)
    (used,) = [part["Use"] for part in yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"] if "Use" in part]
    assert [name for page in used for name in page.values()] == [f"{name}.md" for name in NAMES]


def test_they_are_short():
    words = {page.name: len(page.read_text(encoding="utf-8").split()) for page in PAGES}
    assert {name: n for name, n in words.items() if n > 1200} == {}
    assert sum(words.values()) <= 9000


@by_page
@pytest.mark.parametrize(("word", "meaning"), [("codebook", "a few routes and a selector"), ("-q4", "4-bit weights")])
def test_a_word_of_ours_is_said_where_it_first_stands(page, word, meaning):
    """Names in the code and in commands that are shown come before or behind it."""
    text = re.sub(r"```.*?```|/codebook\b", "", page.read_text(encoding="utf-8"), flags=re.S)
    first = text.find(word)
    paragraph = text[max(0, text.rfind("\n\n", 0, first)) : text.find("\n\n", first)] if first >= 0 else meaning
    assert meaning in " ".join(paragraph.split())


@by_page
def test_the_test_that_promises_has_one_name(page):
    assert not re.search(r"\b(guarantee|gate)", page.read_text(encoding="utf-8"), re.I)
