"""What the documentation site does to a page: links to files outside `docs/` become their paths, since the site holds the pages alone."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    folder = posixpath.dirname(page.file.src_uri)

    def outside(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found["path"]))
        if target.startswith("docs/"):
            return found[0]
        text = found["text"]
        return f"`{target}`" if text.strip("`") in (target, posixpath.basename(target)) else f"{text} (`{target}`)"

    return LINK.sub(outside, markdown)
