"""CHANGELOG.md lists every module that moved and every public name that is called otherwise."""

from __future__ import annotations

from pathlib import Path

from drllm.core.moved import MOVED, RENAMED

TEXT = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_moved_module_and_renamed_name_is_listed():
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    listed = {tuple(cell.strip().strip("`") for cell in row.strip("|").split("|")) for row in rows}
    moved = {(f"drllm.{old}", "`, `".join(f"drllm.{new}" for new in news)) for old, news in MOVED.items()}
    renamed = {(old, f"drllm.{module}.{new}") for (module, old), new in RENAMED.items()}
    assert moved | renamed <= listed, f"lacks {sorted((moved | renamed) - listed)}"
