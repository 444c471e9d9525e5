"""What other packages add: methods, policies and commands, each named as an entry point of its group."""

import importlib.metadata
from typing import Any

from drllm.core.errors import InputError, first_line

METHODS = "drllm.methods"  # name = "module:METHOD", a `drllm.methods.base.Method`
POLICIES = "drllm.policies"  # name = "module:Class", the class of saved policies of that name
COMMANDS = "drllm.commands"  # name = "module", a command as those of `drllm.cli`; its section of a YAML file is its `CONFIG`


def plugin_names(group: str) -> tuple[str, ...]:
    """The names of a group, sorted."""
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
