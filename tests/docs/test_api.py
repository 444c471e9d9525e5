"""The page of the Python interface shows what the package exports."""

from __future__ import annotations

import re
from pathlib import Path

import drllm

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def shown() -> set[str]:
    """Names of the page: of each `:::` line, and the members that are listed behind it; of a module without a list, all of its own."""
    found = set(re.findall(r"^::: [\w.]+\.(\w+)$", PAGE, re.M))
    found |= {name.strip() for names in re.findall(r"members: \[([^\]]+)\]", PAGE) for name in names.split(",")}
    return found | set(vars(__import__("drllm.core.errors", fromlist=["_"])) if "::: drllm.core.errors" in PAGE else ())


def test_every_public_name_is_on_the_page():
    assert set(drllm.__all__) - shown() == set()
