"""docs/architecture.md and its drawing are made from the import contract and the folders' docstrings: both are current."""

from __future__ import annotations

import re
from pathlib import Path

import draw_architecture as tool

ROOT = Path(__file__).parents[2]


def test_the_drawing_and_the_table_of_folders_are_current():
    layers = tool.floors()
    assert tool.DRAWING.read_text(encoding="utf-8") == tool.drawing(layers), "run python tools/draw_architecture.py"
    page = tool.PAGE.read_text(encoding="utf-8")
    assert page == tool.page(page, layers), "run python tools/draw_architecture.py"


def test_every_folder_stands_in_the_contract_once():
    named = [folder for layer in tool.floors() for folder in layer]
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "src" / "drllm").glob("*/__init__.py"))
    assert len(tool.floors()) <= 10


def test_files_that_the_walks_name_are_there():
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", tool.PAGE.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / "src" / "drllm" / name).is_file() and not (ROOT / name).is_file()] == []
