"""The page and the picture of the demo are of one run, by the configuration that stands in the repository."""

from __future__ import annotations

import html
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
PRINTED = PAGE.partition("```\n")[2].partition("\n```")[0].splitlines()


def shown() -> list[str]:
    """The lines of the picture."""
    picture = (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8")
    rows: dict[float, str] = {}
    for y, text in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(.*?)</text>', picture):
        rows[float(y)] = rows.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
    return [rows[y].rstrip() for y in sorted(rows)]


def test_the_picture_shows_what_the_page_prints():
    lines = shown()
    assert len(PRINTED) > 30
    missing = [line for line in PRINTED if line.strip() and line.rstrip() not in lines]
    assert not missing


def test_both_are_of_the_time_that_the_demo_is_given():
    minutes = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())["retrofit"]["minutes"]
    assert any(f" of {minutes:g} minutes" in line for line in PRINTED)
    assert PRINTED[-1].startswith("╰")
