"""Names: the nearest known ones to what a user typed; installed packages, and what they add to drllm by entry points."""

import contextlib
import difflib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError, first_line

# Groups of entry points.
METHODS = "drllm.methods"  # name = "module:METHOD", a `drllm.methods.base.Method`
POLICIES = "drllm.policies"  # name = "module:Class", the class of saved policies of that name
COMMANDS = "drllm.commands"  # name = "module", a command as those of `drllm.cli`; its section of a YAML file is its `CONFIG`


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest other known name, or an empty string."""
    near = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def version_of(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def folder_of(module: str) -> Path | None:
    """Where the files of an importable package lie, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def plugin_names(group: str) -> tuple[str, ...]:
    return tuple(sorted({point.name for point in importlib.metadata.entry_points(group=group)}))


def load_plugin(group: str, name: str) -> Any:
    """What stands under a name; None where no package has it, `InputError` where it cannot be loaded."""
    for point in importlib.metadata.entry_points(group=group, name=name):
        try:
            return point.load()
        except (ImportError, AttributeError, SyntaxError) as error:
            kind = group.rpartition(".")[2].removesuffix("s")
            why = f"cannot be loaded from {point.value} ({first_line(error)}): update or remove that package"
            raise InputError(f"{kind} {name!r} {why}") from None
    return None
