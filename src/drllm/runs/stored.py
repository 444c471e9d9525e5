"""JSON objects of a run folder as dataclasses, written with exactly the keys that they were read with. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

_OURS = ("absent", "more")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One JSON object.

    Attributes:
        absent: fields that the file does not have, in the order of the fields: an older version wrote it, or they do not apply.
        more: keys of the file that are no field: a newer version wrote it.
        OPTIONAL: fields that a new object does not have unless they are given.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    absent: tuple[str, ...] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.absent is None:
            unset = tuple(item.name for item in fields(self) if item.name in self.OPTIONAL and getattr(self, item.name) is item.default)
            object.__setattr__(self, "absent", unset)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The object of a file's content; what the file does not have gets its default."""
        names = [item.name for item in fields(cls) if item.name not in _OURS]
        known = {name: values[name] for name in names if name in values}
        more = {name: value for name, value in values.items() if name not in names}
        return cls(**known, absent=tuple(name for name in names if name not in values), more=more)

    def changed(self, **changes: Any) -> Self:
        """With other values, which it then has."""
        return replace(self, **changes, absent=tuple(name for name in self.absent or () if name not in changes))

    def to_json(self) -> dict[str, Any]:
        """The content of its file, keys in the order of the fields."""
        hidden = (*_OURS, *(self.absent or ()))
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self) if item.name not in hidden} | dict(self.more)


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value.to_json() if isinstance(value, Stored) else value
