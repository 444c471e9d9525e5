"""The code that a page of the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path


def fences(page: Path, language: str) -> list[str]:
    """The code blocks of one language of a page; those of commands have none."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
