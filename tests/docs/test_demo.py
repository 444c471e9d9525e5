"""The page and the picture of the demo are of one run, by the configuration that stands in the repository."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import yaml

from drllm.reporting.recommendation import panel
from drllm.reporting.summary_table import render
from drllm.runs.load import read_summary
from drllm.runs.recommendation import read_recommendation

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
STORED = ROOT / "results" / "demo-boolq-smollm2-135m-q4"
NUMBERS = {7: "seven", 8: "eight", 9: "nine", 10: "ten"}
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


def test_the_page_prints_what_is_stored():
    found = read_recommendation(STORED / "recommendation.json")
    assert found is not None
    text = "\n".join(PRINTED)
    assert panel(found, "runs/demo").strip() in text
    table = render(read_summary(STORED / "evaluate" / f"tune-first-{found.tuned}" / "summary.json"))
    assert [line.rstrip() for line in table.splitlines() if line.strip()] == [
        line for line in PRINTED if line.strip() and line in map(str.rstrip, table.splitlines())
    ]


def test_its_time_is_the_stored_one():
    clock = json.loads((STORED / "clock.json").read_text())
    whole = clock["fresh_clone_seconds"]
    assert f"{whole // 60} minutes {whole % 60} seconds" in PAGE
    assert f"A second run took\n{clock['second_run_seconds']:.0f} seconds" in PAGE
    assert clock["date"] in PAGE
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"On two cores without AMX `make demo` takes {NUMBERS[round(whole / 60)]} minutes" in words
