"""JSON objects of a run folder as dataclasses, and back. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from drllm.core.errors import ArtifactError
from drllm.core.files import read_json


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One JSON object."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # fields that an object has in its file only if they are given
    PARTS: ClassVar[Mapping[str, type[Stored]]] = {}  # fields that are lists of objects, and of what kind
    ONES: ClassVar[Mapping[str, type[Stored]]] = {}  # fields that are one object, and of what kind

    @classmethod
    def of(cls, values: Any, source: object = "the file") -> Self:
        """The object of a file's content; what the file does not have gets its default, or is an `ArtifactError` that names the source."""
        if not isinstance(values, Mapping):
            raise ArtifactError(f"{source} holds a bad {cls.__name__} ({values!r:.40}, expected names with values): run that stage again")
        # Default and factory of a field are one where both are MISSING.
        if lacking := [one.name for one in fields(cls) if one.default is one.default_factory and values.get(one.name) is None]:
            raise ArtifactError(f"{source} holds a bad {cls.__name__} (without {', '.join(lacking)}): run that stage again")
        unknown = {item.name for item in fields(cls) if isinstance(item.default, float) and values.get(item.name) is None}  # null is nan
        found = {item.name: values[item.name] for item in fields(cls) if item.name in values and item.name not in unknown}
        for name, kind in cls.PARTS.items():
            if (parts := found.get(name)) is not None:
                found[name] = [kind.of(part, source) for part in (parts if isinstance(parts, Iterable) else (parts,))]
        for name, kind in cls.ONES.items():
            if (one := found.get(name)) is not None:
                found[name] = kind.of(one, source)
        return cls(**found)

    @classmethod
    def read(cls, path: Path, advice: str) -> Self | None:
        """The object of a JSON file; None where there is none, `ArtifactError`, which ends in the advice, for a corrupt one."""
        return cls.of(read_json(path, advice, dict), path) if path.is_file() else None

    def changed(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The content of its file, keys in the order of the fields."""
        ours = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: _plain(value) for name, (value, default) in ours.items() if name not in self.OPTIONAL or value is not default}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None  # strict JSON has no NaN
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value.to_json() if isinstance(value, Stored) else value
