"""Which searched questions become labels, where a search keeps a number of them: the rule of the authors' code. No torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drllm.core.config import SearchConfig
from drllm.runs.records import RouteRecord, read_shard, shard_indices, shard_path, store_of


@dataclass(frozen=True)
class Kept:
    """What came of visiting questions in order.

    Attributes:
        records: those kept, at most as many as asked for; visited: all that were visited for them, in order.
        is_enough: whether as many are kept as asked for, and as many of them mend; no later question is then visited.
    """

    records: list[RouteRecord]
    visited: list[RouteRecord]
    is_enough: bool

    @property
    def mended(self) -> int:
        """Those kept whose path mends a wrong answer."""
        return sum(record.improved for record in self.records)


def kept_of(records: Iterable[RouteRecord], n: int, share: float) -> Kept:
    """Visit questions in order until `n` are kept and at least a `share` of them mend a wrong answer.

    A question is kept where some path is right. Once `n` are there, each newly mended one takes the place of the first that is not.
    """
    kept: list[RouteRecord] = []
    visited: list[RouteRecord] = []
    for record in records:
        visited.append(record)
        if record.kept and len(kept) < n:
            kept.append(record)
        elif record.improved and (place := next((at for at, one in enumerate(kept) if not one.improved), None)) is not None:
            kept[place] = record
        if len(kept) == n and sum(one.improved for one in kept) >= share * n:
            return Kept(kept, visited, True)
    return Kept(kept, visited, False)


def kept_in(folder: Path, config: SearchConfig, read: Callable[[Path], Iterable[RouteRecord]] | None = None) -> Kept:
    """What a task folder's shards keep so far; those behind a missing one are not looked at, since they may not be needed.

    `read` gives the records of a shard, such as one that keeps what it has read; default `read_shard`.
    """
    read = read or partial(read_shard, store=store_of(folder))
    in_order = [index for place, index in enumerate(shard_indices(folder)) if index == place]
    return kept_of((record for index in in_order for record in read(shard_path(folder, index))), config.keep, config.mend_share)
