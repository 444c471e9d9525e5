"""Names: the nearest known ones to what a user typed, for error messages, and versions of installed packages."""

import contextlib
import difflib
import importlib.metadata
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest other known name, or an empty string."""
    near = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
