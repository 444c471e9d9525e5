"""Writes docs/glossary.md from the entries of `drllm.reporting.page`; a test holds the page to them."""

from __future__ import annotations

from pathlib import Path

from drllm.reporting.page import ENTRIES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "glossary.md"
HEAD = """# Glossary

Every word of our own and of the field, as it is used here: one meaning each. Written by `python tools/write_glossary.py` from
`src/drllm/reporting/static/glossary.yaml`, which also explains the words on each report.

| word | meaning |
|---|---|
"""


def page() -> str:
    """The glossary as Markdown, by alphabet."""
    return HEAD + "".join(f"| {word} | {meaning} |\n" for word, meaning in sorted(ENTRIES.items(), key=lambda entry: entry[0].lower()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
