"""docs/glossary.md is written from the entries, and a word has one meaning."""

from __future__ import annotations

import write_glossary as tool
from drllm.reporting.page import ENTRIES, PATTERNS


def test_the_page_is_current():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/write_glossary.py"


def test_every_word_stands_once_and_says_something():
    words = list(ENTRIES)
    assert len({word.lower() for word in words}) == len(words)
    assert all(meaning.endswith(".") and "|" not in meaning for meaning in ENTRIES.values())
    assert set(PATTERNS) <= set(words)
