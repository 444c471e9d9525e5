"""Names that users type: the nearest known ones, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest other known name, or an empty string."""
    near = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
