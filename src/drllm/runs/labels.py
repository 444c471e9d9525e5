"""Which searched questions become labels, and what a search found, counted: visited, kept, mended, beside the blind baseline. No torch."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Action
from drllm.core.text import WIDTH, percent, table_text, with_interval
from drllm.runs.records import RouteRecord, read_shard, shard_indices, shard_path, store_of
from drllm.runs.summary import POOLED
from drllm.stats.paired import paired_bootstrap

HEADER = (
    *("task", "visited", "kept", "mended", "routes", "base wrong", "solved", "less blind, points", "unsure"),
    *("skip / execute / repeat", "mean passes"),
)
LEGEND = (
    "kept: questions with a right route; mended: those that the base gets wrong; routes: tried a question; solved: % of what the base gets "
    "wrong; less blind: minus what as many random routes, drawn without looking at the question, solve, 95 % interval; unsure: kept routes "
    "that a check finds wrong, of those checked; skip, execute, repeat: actions of the kept routes, block by block, and their mean passes"
)


@dataclass
class Labels:
    """The counts of one task, or of all together. Records are added one by one and not kept, so that a million fit.

    A search tries many routes, so some are right by chance: "solved" stands beside what as many random routes (`control`) solve.
    """

    task: str
    n_layers: int
    # Visited (without those in `broken`), kept, mended, wrong (by the base), routes, checked, unsure, passes and actions (of kept routes).
    n: Counter[Any] = field(default_factory=Counter)
    # Task, solved by the search, solved by the baseline, of each question that the base gets wrong and that has a baseline.
    pairs: list[tuple[str, bool, bool]] = field(default_factory=list)

    @property
    def actions(self) -> tuple[int, int, int]:
        """Blocks of the kept routes that run not at all, once, and more than once."""
        return self.n[Action.SKIP], self.n[Action.EXECUTE], self.n[Action.REPEAT]

    @property
    def difference(self) -> tuple[float, float, float] | None:
        """Solved by the search minus by the blind baseline: mean, and a 95 % bootstrap interval; None without a baseline."""
        if not self.pairs:
            return None
        strata, solved, by_control = zip(*self.pairs, strict=True)
        return paired_bootstrap(solved, by_control, strata=strata)

    def add(self, record: RouteRecord) -> None:
        if record.broken:
            self.n["broken"] += 1
            return
        self.n.update(visited=1, routes=len(record.routes), kept=record.kept, mended=record.improved, wrong=not record.base_correct)
        if not record.base_correct and record.control_solved is not None:
            self.pairs.append((record.task, record.improved, record.control_solved))
        if record.chosen is not None:
            self.n.update(min(n_passes, Action.REPEAT) for n_passes in record.chosen)
            checks = record.verified(record.chosen).values()
            self.n.update(passes=record.chosen.n_passes, checked=bool(checks), unsure=not all(checks))


def count_labels(records: Iterable[RouteRecord]) -> list[Labels]:
    """The counts of one model's records, which may come one at a time, in alphabetical order of tasks; of several tasks, then of all.

    `InputError` when there are none or they are of several models.
    """
    models, found = set[str](), dict[str, Labels]()
    for record in records:
        models.add(record.fingerprint)
        for name in (record.task, POOLED):
            found.setdefault(name, Labels(name, len(record.routes[0]))).add(record)
    if len(models) != 1:
        names = ", ".join(sorted(models))
        raise InputError(f"got records of {len(models)} models ({names}), expected one: count one model's records at a time")
    pooled = found.pop(POOLED)
    rows = [found[task] for task in sorted(found)]
    return rows if len(rows) == 1 else [*rows, pooled]


def label_rows(counted: Sequence[Labels]) -> list[tuple[str, ...]]:
    """A row each, under `HEADER`."""
    return [_row(labels) for labels in counted]


def _row(labels: Labels) -> tuple[str, ...]:
    n = labels.n
    counts = [f"{n[name]:,}" for name in ("visited", "kept", "mended")]
    less = "" if labels.difference is None else with_interval(*labels.difference)
    shares = (f"{n['routes'] / max(n['visited'], 1):.1f}", f"{n['wrong']:,}", percent(n["mended"] / n["wrong"]) if n["wrong"] else "", less)
    unsure = f"{n['unsure']:,} of {n['checked']:,}" if n["checked"] else ""
    passes = f"{n['passes'] / n['kept']:.2f} of {labels.n_layers}" if n["kept"] else ""
    return labels.task, *counts, *shares, unsure, " / ".join(map("{:,}".format, labels.actions)), passes


def broken_note(counted: Sequence[Labels]) -> str:
    """Says how many questions the table leaves out; empty for none."""
    n_broken = counted[-1].n["broken"]
    return f"Left out: {n_broken:,} questions on which the base's logits are NaN or infinite." if n_broken else ""


def render(counted: Sequence[Labels]) -> str:
    return "\n\n".join(filter(None, (table_text(HEADER, label_rows(counted)), fill(LEGEND, WIDTH), broken_note(counted))))


@dataclass(frozen=True)
class Kept:
    """What came of visiting questions in order."""

    records: list[RouteRecord]  # those kept, at most as many as asked for
    visited: list[RouteRecord]  # all that were visited for them, in order
    is_enough: bool  # as many are kept as asked for, and as many of them mend; no later question is then visited

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
