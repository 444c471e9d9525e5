"""Pages that are written by a tool from the code, the tests' own lists or stored results are current, and say what they should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import draw_architecture
import drllm
import families
import standings
import write_audit
import write_families
import write_glossary
from drllm.reporting.page import ENTRIES, PATTERNS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tool", [write_audit, write_families, write_glossary], ids=lambda tool: tool.PAGE.name)
def test_the_page_is_current(tool):
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), f"run python tools/{tool.__name__}.py"


def test_every_public_name_is_on_the_page():
    """Of each `:::` line, and the members that are listed behind it; of a module without a list, all of its own."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.M)) | set(vars(drllm.core.errors))
    shown |= {name.strip() for names in re.findall(r"members: \[([^\]]+)\]", page) for name in names.split(",")}
    assert "::: drllm.core.errors" in page
    assert set(drllm.__all__) - shown == set()


def test_the_drawing_and_the_table_of_folders_are_current():
    tool, layers = draw_architecture, draw_architecture.floors()
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.DRAWING.read_text(encoding="utf-8") == tool.drawing(layers), "run python tools/draw_architecture.py"
    assert page == tool.page(page, layers), "run python tools/draw_architecture.py"
    named = [folder for layer in layers for folder in layer]
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "src" / "drllm").glob("*/__init__.py"))
    assert len(layers) <= 10


def test_files_that_the_walks_name_are_there():
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", draw_architecture.PAGE.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / "src" / "drllm" / name).is_file() and not (ROOT / name).is_file()] == []


CLAIMS = yaml.safe_load(write_audit.CLAIMS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("told", CLAIMS, ids=lambda told: told["route"] or "instead")
def test_a_claim_names_its_source_and_was_measured_on_new_questions_beside_other_places(told):
    assert told["source"].startswith("https://")
    assert told["probes"] > 0
    assert told["notes"]
    claim = write_audit.Claim.of(told)
    rows = write_audit.measured(claim)
    assert [row.route for row in rows] == ([told["route"]] if told["route"] else told["instead"]) != []
    for row in rows:
        assert row.fresh is not None
        assert claim.result.mean_of(write_audit.ELSEWHERE, row.route) is not None


def test_every_family_stands_once_and_the_lists_name_no_other():
    lines = write_families.page().splitlines()
    listed = [name for line in lines if line.startswith("| ") for name in line.split("|")[1].strip().split(", ")]
    assert sorted(name for name in listed if name in families.ALL_FAMILIES) == sorted(families.ALL_FAMILIES)
    lists = [value for name, value in vars(standings).items() if name.isupper()]
    assert {one for found in lists for one in found} <= set(families.ALL_FAMILIES)


def test_what_the_rows_say():
    columns = write_families.COLUMNS[1:]
    found = {name: dict(zip(columns, write_families.cells(name), strict=True)) for name in families.ALL_FAMILIES}
    assert set(found["llama"].values()) == {"yes", "read"}
    assert (found["gpt2"]["heal"], found["gpt2"]["`peft`"], found["gpt2"]["serve"]) == ("no", "no", "no")
    assert found["deepseek_v32"]["rewards of written answers"] == "no"
    assert (found["mistral"]["serve"], found["mistral-sliding"]["serve"]) == ("yes", "no")
    assert found["gemma3_text"]["`gguf`"] == "some routes"


def test_every_word_stands_once_and_says_something():
    words = list(ENTRIES)
    assert len({word.lower() for word in words}) == len(words)
    assert all(meaning.endswith(".") and "|" not in meaning for meaning in ENTRIES.values())
    assert set(PATTERNS) <= set(words)
