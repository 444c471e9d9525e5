"""What the documentation site does to a page.

The first page is the README. Links to files outside `docs/` become their paths, since the site holds the pages alone. A list right below a
line of text gets the blank line that its Markdown wants; the repository's pages do without, as GitHub does.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"

LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")

ITEM = re.compile(r"([-*]|\d+\.) ")


def spaced(markdown: str) -> str:
    """The page with a blank line before each list, outside of code fences."""
    lines: list[str] = []
    is_code = in_list = False
    for line in markdown.split("\n"):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        is_item = not is_code and ITEM.match(line) is not None
        if is_item and not in_list and lines and lines[-1].strip():
            lines.append("")
        in_list = is_item or (in_list and not is_code and bool(line.strip()))  # a line that goes on with its item
        lines.append(line)
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    folder = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri == "index.md":
        markdown = re.sub(r"\]\((?![a-z]+:)", "](../", README.read_text(encoding="utf-8")).replace("](../docs/", "](")

    def outside(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found["path"]))
        if target.startswith("docs/"):
            return found[0]
        text = found["text"]
        return f"`{target}`" if text.strip("`") in (target, posixpath.basename(target)) else f"{text} (`{target}`)"

    return LINK.sub(outside, spaced(markdown))
