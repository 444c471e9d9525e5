"""CHANGELOG.md lists every module that moved and every public name that is called otherwise."""

from __future__ import annotations

from pathlib import Path

from drllm.core.moved import MOVED, RENAMED

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
OLD_MODULES = ROOT / "tests" / "golden" / "old_modules.txt"  # those of commit 3569530, the last of the old layout, that are no longer there


def listed() -> list[tuple[str, ...]]:
    """Cells of every table row that begins with a name."""
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip().strip("`") for cell in row.strip("|").split("|")) for row in rows]


def test_every_moved_module_and_renamed_name_is_listed():
    moved = {(f"drllm.{old}", "`, `".join(f"drllm.{new}" for new in news)) for old, news in MOVED.items()}
    renamed = {(old, f"drllm.{module}.{new}") for (module, old), new in RENAMED.items()}
    lacking = (moved | renamed) - set(listed())
    assert not lacking, f"lacks {sorted(lacking)}"


def test_every_module_of_the_old_layout_is_listed_with_a_place_that_is_there():
    places = {row[0]: row[1].replace("`", "").split(", ") for row in listed() if len(row) == 2}
    old = OLD_MODULES.read_text(encoding="utf-8").split()
    assert not [name for name in old if name not in places]
    paths = {name: [ROOT / "src" / place.replace(".", "/") for place in places[name]] for name in old}
    assert not [name for name, found in paths.items() if not all(path.with_suffix(".py").is_file() or path.is_dir() for path in found)]
