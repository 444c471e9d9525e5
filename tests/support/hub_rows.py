"""Rows of a part of a data set on the Hub, as `datasets` gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Rows(list):
    """The few methods of a datasets.Dataset that are used."""

    def select_columns(self, names: list[str]) -> Rows:
        return Rows({name: row[name] for name in names} for row in self)

    def iter(self, batch_size: int) -> Iterator[Any]:
        for start in range(0, len(self), 2):
            yield {name: [row[name] for row in self[start : start + 2]] for name in self[0]}
