"""Options: fields of a configuration that document themselves and know their range."""

from dataclasses import field, fields
from typing import Any

from drllm.core.errors import InputError

MAX_SEED = 2**63 - 1  # what numpy and torch both take


def option(default: Any, help: str, *, ge: float | None = None, gt: float | None = None, le: float | None = None) -> Any:
    """A dataclass field with its help text, which `--help` shows, and the range of its values.

    `ge`, `le`: the smallest and the largest value; `gt` instead of `ge` where that bound itself is excluded.
    """
    return field(default=default, metadata={"help": help, "ge": ge, "gt": gt, "le": le})


class Options:
    """Base of configuration dataclasses: ranges are checked, lists become tuples. `build` of the command line checks any other, too."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # each subclass is a dataclass
            if isinstance(item.default, tuple):
                object.__setattr__(self, item.name, tuple(getattr(self, item.name)))
        check_ranges(self)


def check_ranges(config: Any) -> None:
    """`InputError` for the first `option` field of a dataclass whose value is outside its range."""
    for item in fields(config):
        value, (ge, gt, le) = getattr(config, item.name), map(item.metadata.get, ("ge", "gt", "le"))
        # Asked this way round, no bound lets a NaN through.
        if (ge is None or value >= ge) and (gt is None or value > gt) and (le is None or value <= le):
            continue
        bounds = (("at least", ge), ("more than", gt), ("at most", le))
        expected = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
        expected = f"between {ge} and {le}" if None not in (ge, le) else expected
        raise InputError(f"{type(config).__name__}.{item.name} is {value}, expected {expected}")
