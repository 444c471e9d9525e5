"""Names: the nearest known ones to what a user typed, for error messages; versions and folders of installed packages."""

import contextlib
import difflib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest other known name, or an empty string."""
    near = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def folder_of(module: str) -> Path | None:
    """Where the files of an importable package lie, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None
