"""CHANGELOG.md lists every module that moved and every public name that is called otherwise."""

from __future__ import annotations

import ast
from pathlib import Path

from drllm.core.moved import MOVED, RENAMED

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
OLD_NAMES = ROOT / "tests" / "golden" / "old_names.txt"  # "module name", of the same commit
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


def test_every_public_name_of_the_old_layout_is_there_or_listed():
    """Names of functions, classes and constants at the top level of modules of commit 3569530: in a new place, or in a row."""
    tops = {path: _tops(path) for path in (ROOT / "src" / "drllm").rglob("*.py")}
    places = {row[0]: row[1].replace("`", "").split(", ") for row in listed() if len(row) == 2}
    rows = {(row[0], name.strip(" `")) for row in listed() if len(row) == 3 for name in row[1].split(",")}
    rows |= {(module, row[0]) for row in listed() if len(row) == 2 for module in ("", "drllm")}
    renamed = {name for _, name in rows}
    lacking = []
    for line in OLD_NAMES.read_text(encoding="utf-8").splitlines():
        module, name = line.split()
        files = [ROOT / "src" / place.replace(".", "/") for place in places.get(module, [module])]
        found = any(name in tops.get(path, ()) for file in files for path in (file.with_suffix(".py"), file / "__init__.py"))
        if not found and (module, name) not in rows and not (module in places and name in renamed):
            lacking.append(line)
    assert not lacking, "\n".join(lacking)


def _tops(path: Path) -> set[str]:
    """Names that a module has at its top level, imported ones among them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
    return names
