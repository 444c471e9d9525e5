"""What a search found, in numbers: the paper's table 2 (arXiv 2510.12773), with the blind baseline beside it. No torch.

A search tries many routes, so some are right by chance. "Solved by search" therefore never stands alone: the baseline (`control` in the
records) tries as many random routes, drawn without looking at the question, and what it solves needs no knowledge of the question.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from drllm.core.errors import InputError
from drllm.core.route import Action
from drllm.core.text import percent, table_text, with_interval
from drllm.runs.records import RouteRecord
from drllm.runs.summary import POOLED
from drllm.stats.paired import paired_bootstrap, wilson


@dataclass(frozen=True)
class Share:
    """`n_right` of `n`, with its Wilson 95 % interval (low, high)."""

    n_right: int
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.n_right, self.n)


@dataclass(frozen=True)
class Flips:
    """One check's verdicts against those of the search.

    Attributes:
        chosen, chosen_wrong: kept routes checked, and those that the check finds wrong.
        base, base_changed: base routes checked, and those whose verdict by the same metric was another in the search, either way.
    """

    chosen: int
    chosen_wrong: int
    base: int
    base_changed: int


@dataclass(frozen=True)
class TaskStats:
    """One task's numbers, or those of all tasks together.

    Attributes:
        n_layers: blocks of the model.
        visited: questions searched. Those with broken logits are counted in `broken` alone.
        kept: questions with a right route, whose records are sampled as labels.
        improved: kept questions that the base gets wrong.
        search_routes, control_routes, check_routes: forward passes, one an evaluated route; two metrics of a check share theirs.
        actions: blocks of the kept routes that run not at all, once, and more than once: skip, execute and repeat.
        looped: kept routes that digits do not say: with a loop, a strength, or more than two passes of a block.
        mean_passes: block passes of a kept route; 0 where none is kept.
        search: of the questions the base gets wrong, those the search solved.
        control: of those with a blind baseline, what it solved in as many tries as the search may take; None without any.
        difference: search minus blind baseline on the questions that have one, with its 95 % bootstrap interval (mean, low, high).
        flips: by the name of the check, in alphabetical order.
        broken: questions whose base logits were NaN or infinite.
    """

    task: str
    n_layers: int
    visited: int
    kept: int
    improved: int
    search_routes: int
    control_routes: int
    check_routes: int
    actions: tuple[int, int, int]
    mean_passes: float
    search: Share
    control: Share | None
    difference: tuple[float, float, float] | None
    flips: dict[str, Flips]
    broken: int
    looped: int = 0


@dataclass
class _Counts:
    """What is counted of records, one by one and without their routes, so that a million fit.

    Attributes:
        n: by the names of `TaskStats`; "wrong", what the base gets wrong; blocks of kept routes by their action, and their "passes"; by
            (name of a check, name of `Flips`).
        pairs: task, solved by the search, solved by the baseline, of each question that the base gets wrong and that has a baseline.
    """

    n_layers: int
    n: Counter[Any] = field(default_factory=Counter)
    pairs: list[tuple[str, bool, bool]] = field(default_factory=list)


def describe(records: Iterable[RouteRecord]) -> list[TaskStats]:
    """The numbers of one model's records, which may come one at a time, in alphabetical order of tasks; of several tasks, then of all.

    `InputError` when there are none or they are of several models.
    """
    models, counts = set[str](), dict[str, _Counts]()
    for record in records:
        models.add(record.fingerprint)
        for name in (record.task, POOLED):
            _count(counts.setdefault(name, _Counts(len(record.routes[0]))), record)
    if len(models) != 1:
        names = ", ".join(sorted(models))
        raise InputError(f"got records of {len(models)} models ({names}), expected one: describe one model's records at a time")
    pooled = counts.pop(POOLED)
    rows = [_stats(task, counts[task]) for task in sorted(counts)]
    return rows if len(rows) == 1 else [*rows, _stats(POOLED, pooled)]


def _count(counts: _Counts, record: RouteRecord) -> None:
    n = counts.n
    if record.broken:
        n["broken"] += 1
        return
    checked = {(check.route, _run_of(check.check)) for check in record.checks}
    n.update(visited=1, search_routes=len(record.routes), control_routes=len(record.control_routes), check_routes=len(checked))
    n.update(kept=record.kept, improved=record.improved, wrong=not record.base_correct)
    if record.chosen is not None:
        n.update(min(n_passes, Action.REPEAT) for n_passes in record.chosen)
        n.update(passes=record.chosen.n_passes, looped=not record.chosen.has_digits)
    if not record.base_correct and record.control_solved is not None:
        counts.pairs.append((record.task, record.improved, record.control_solved))
    if record.chosen is not None:
        for name, correct in record.verified(record.chosen).items():
            n.update({(name, "chosen"): 1, (name, "chosen_wrong"): not correct})
    for name, correct in record.verified(record.routes[0]).items():
        n.update({(name, "base"): 1, (name, "base_changed"): correct != _base_verdict(record, name)})


def _stats(task: str, counts: _Counts) -> TaskStats:
    n, checks = counts.n, sorted({key[0] for key in counts.n if isinstance(key, tuple)})
    counted = {
        name: n[name] for name in ("visited", "kept", "improved", "search_routes", "control_routes", "check_routes", "broken", "looped")
    }
    actions = n[Action.SKIP], n[Action.EXECUTE], n[Action.REPEAT]
    mean_passes = n["passes"] / n["kept"] if n["kept"] else 0.0
    search, control, difference = Share(n["improved"], n["wrong"]), None, None
    if counts.pairs:
        strata, solved, by_control = zip(*counts.pairs, strict=True)
        control, difference = Share(sum(by_control), len(by_control)), paired_bootstrap(solved, by_control, strata=strata)
    flips = {name: Flips(**{item.name: n[name, item.name] for item in fields(Flips)}) for name in checks}
    solved_by = {"search": search, "control": control, "difference": difference}
    return TaskStats(task, counts.n_layers, **counted, actions=actions, mean_passes=mean_passes, **solved_by, flips=flips)


def _run_of(check: str) -> str:
    """The forward pass that a check was read from: "fp32:acc" and "fp32:acc_norm" share one, "rotated:1" and "rotated:2" do not."""
    return check if check.startswith("rotated") else check.partition(":")[0]


def _base_verdict(record: RouteRecord, check: str) -> bool:
    """The search's own verdict on the base, by the metric of a check; the search went by one of the two metrics it stores."""
    base = record.verdicts[record.routes[0]]
    by_metric = {"acc": base.acc, "acc_norm": base.acc_norm}.get(check.partition(":")[2])
    return base.correct if by_metric is None else by_metric


Cells = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # of one table: title, header, rows


LEGEND = (
    "  visited: questions searched; sampled: those with a kept route; improved: a kept route mends a wrong answer;\n"
    "  skip, execute, repeat: the kept routes' actions, block by block"
)


def render(stats: Sequence[TaskStats]) -> str:
    """The tables for a terminal, without colours, so that they can be piped and compared."""
    texts = [f"{title}\n{table_text(header, rows)}" for title, header, rows in tables(stats)]
    texts[0] += f"\n\n{LEGEND}"
    if note := broken_note(stats):
        texts[0] += f"\n\n  {note}"
    return "\n\n".join(texts)


def broken_note(stats: Sequence[TaskStats]) -> str:
    """Says how many questions no table counts; empty for none."""
    n_broken = stats[-1].broken
    return f"left out of all tables: {n_broken:,} questions on which the base's logits are NaN or infinite" if n_broken else ""


def tables(stats: Sequence[TaskStats]) -> list[Cells]:
    """Labels, shares solved, forward passes and, where there were any, checks."""
    labels = ("task", "visited", "sampled", "improved", "% visited", "% sampled", "skip", "execute", "repeat", "mean passes")
    passes = ("task", "search", "a question", "baseline", "checks")
    checks = ("task", "check", "kept routes", "wrong", "%", "base routes", "other verdict", "%")
    loops = [(f"{row.looped:,}",) if any(other.looped for other in stats) else () for row in stats]  # a column only where there are any
    labels += ("looped",) if any(loops) else ()
    found: list[Cells] = [("labels: the kept routes", labels, [_labels(row) + more for row, more in zip(stats, loops, strict=True)])]
    title = "solved, % of what the base gets wrong; baseline: as many random routes, blind to the question; 95 % intervals"
    solved = [(row.task, _shown(row.search), _shown(row.control), _difference(row.difference)) for row in stats]
    found.append((title, ("task", "by search", "by the baseline", "search minus baseline, points"), solved))
    found.append(("forward passes: routes evaluated", passes, [_passes(row) for row in stats]))
    if any(row.flips for row in stats):
        title = "checks: kept routes that are wrong when checked; base routes whose verdict by the same metric changes"
        found.append((title, checks, [_checks(row.task, name, flips) for row in stats for name, flips in row.flips.items()]))
    return found


def _labels(row: TaskStats) -> tuple[str, ...]:
    counts, shares = (row.visited, row.kept, row.improved), (_percent(row.improved, row.visited), _percent(row.improved, row.kept))
    mean = f"{row.mean_passes:.2f} of {row.n_layers}" if row.kept else ""
    return row.task, *map("{:,}".format, counts), *shares, *map("{:,}".format, row.actions), mean


def _passes(row: TaskStats) -> tuple[str, ...]:
    each = f"{row.search_routes / max(row.visited, 1):.1f}"
    return row.task, f"{row.search_routes:,}", each, f"{row.control_routes:,}", f"{row.check_routes:,}"


def _checks(task: str, name: str, flips: Flips) -> tuple[str, ...]:
    kept = (f"{flips.chosen:,}", f"{flips.chosen_wrong:,}", _percent(flips.chosen_wrong, flips.chosen))
    return task, name, *kept, f"{flips.base:,}", f"{flips.base_changed:,}", _percent(flips.base_changed, flips.base)


def _percent(count: int, n: int) -> str:
    return percent(count / n) if n else ""


def _shown(share: Share | None) -> str:
    if share is None:
        return "none drawn"
    if not share.n:
        return "0 of 0"
    low, high = share.interval
    return f"{percent(share.n_right / share.n)} ({percent(low)} to {percent(high)}), {share.n_right:,} of {share.n:,}"


def _difference(difference: tuple[float, float, float] | None) -> str:
    return "" if difference is None else with_interval(*difference)
