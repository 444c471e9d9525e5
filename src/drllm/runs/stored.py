"""JSON objects of a run folder as dataclasses, written with exactly the keys that they were read with. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One JSON object.

    Attributes:
        read: the file's content, keys of older and newer versions too; None for an object that was not read.
        OPTIONAL: fields that a new object has in its file only if they are given.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    read: Mapping[str, Any] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The object of a file's content; what the file does not have gets its default."""
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values}, read=values)

    def changed(self, **changes: Any) -> Self:
        """With other values, which it then has."""
        return replace(self, **changes, read=None if self.read is None else {**self.read, **changes})

    def to_json(self) -> dict[str, Any]:
        """The content of its file, keys in the order of the fields."""
        ours = {item.name: (getattr(self, item.name), item.default) for item in fields(self) if item.name != "read"}
        new = {name: value for name, (value, default) in ours.items() if name not in self.OPTIONAL or value is not default}
        shown = new if self.read is None else self.read
        return {name: _plain(shown[name]) for name in (*ours, *shown) if name in shown}


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value.to_json() if isinstance(value, Stored) else value
