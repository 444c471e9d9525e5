"""Every command of the documentation is one that drllm understands: names, flags, values, targets of make, scripts; Python blocks import.

What README and the docs show in code fences and between backticks. That README's Python runs on the real model:
`tests/real/test_real_docs.py`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from drllm.cli import main as cli
from fences import fences

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TARGETS = set(re.findall(r"^([a-z][\w.-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
INLINE = re.compile(r"`((?:drllm|make|python) [^`]+)`")
# They stand for what the reader fills in.
OPEN = re.compile(r"\.\.\.|\[\.\.\.\]")


def commands(page: Path) -> list[tuple[str, bool]]:
    """Every line of a page that is to be typed, and whether it is whole: between backticks a value may be left out."""
    lines = [(line, True) for block in fences(page, "") for line in block.replace("\\\n", " ").splitlines()]
    lines += [(line, False) for line in INLINE.findall(page.read_text(encoding="utf-8"))]
    lines = [(line.replace(".venv-serve/bin/", ""), is_whole) for line, is_whole in lines]
    parts = [(part.strip(), is_whole) for line, is_whole in lines for part in re.split(r" \| | && | > ", line)]
    return [(part, is_whole) for part, is_whole in parts if re.match(r"(drllm|make|python) ", part)]


def test_the_pages_show_commands():
    found = [command for page in PAGES for command, _ in commands(page)]
    assert len(found) > 150
    assert {command.split()[1] for command in found if command.startswith("drllm ")} >= set(cli.command_names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(page):
    for command, is_whole in commands(page):
        name, *words = shlex.split(OPEN.sub("", command), comments=True)
        where = f"{page.name}: {command}"
        if name == "drllm":
            of_drllm(words, is_whole, where)
        elif name == "make":
            assert words[0] in TARGETS, where
        else:
            of_python(words, where)


def of_drllm(words: list[str], is_whole: bool, where: str) -> None:
    """A command's name and flags, and their values if it is whole."""
    name, *rest = words
    if name in ("COMMAND", "--help", "--version"):
        return
    assert name in cli.command_names(), where
    if {"NAME", "mine"} & set(rest):  # a method that the reader writes
        rest = []
    parser = cli.make_parser(name, rest)
    if not is_whole:
        known = {option for action in parser._actions for option in action.option_strings}
        assert {word for word in rest if word.startswith("--")} <= known, where
    elif rest:
        _, unknown = parser.parse_known_intermixed_args(rest)
        assert not unknown, f"{where}: {unknown}"


def of_python(words: list[str], where: str) -> None:
    """A script of the repository, or a module."""
    script = words.pop(0)
    if script == "-m":
        spec = importlib.util.find_spec(words.pop(0))
        assert spec is not None, where
        assert spec.origin is not None, where
        script = spec.origin.replace("__init__", "__main__")
    if script.startswith(("benchmarks/", "tools/", "examples/")) or "drllm_research" in script:
        text = (ROOT / script).read_text(encoding="utf-8")
        unknown = [word for word in words if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
        assert not unknown, f"{where}: {unknown}"


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "python")], ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_import_what_exists(page):
    for block in fences(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "drllm":
                module = importlib.import_module(node.module or "")
                lost = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not lost, f"{page.name}: {node.module} has no {lost}"
