"""What a search found, in numbers: the paper's table 2 (arXiv 2510.12773), with the blind baseline beside it. No torch.

A search tries many routes, so some are right by chance. "Solved by search" therefore never stands alone: the baseline (`control` in the
records) tries as many random routes, drawn without looking at the question, and what it solves needs no knowledge of the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from drllm.core.errors import InputError
from drllm.core.route import Action
from drllm.core.text import as_text, percent, with_interval
from drllm.runs.records import RouteRecord
from drllm.runs.summary import POOLED
from drllm.stats.paired import paired_bootstrap, wilson


@dataclass(frozen=True)
class Share:
    """`n_right` of `n` with its Wilson 95 % interval."""

    n_right: int
    n: int
    low: float
    high: float


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
        actions: skip, execute and repeat decisions of the kept routes.
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


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is counted of one record; without its routes, so that those of a million fit."""

    task: str
    n_layers: int
    broken: bool
    base_correct: bool
    improved: bool
    solved: bool
    control_solved: bool | None  # None: no control
    actions: tuple[int, int, int] | None  # skip, execute, repeat of the kept route
    n_routes: tuple[int, int, int]  # search, control, checks
    chosen_checks: tuple[tuple[str, bool], ...]  # (check, right)
    base_checks: tuple[tuple[str, bool], ...]  # (check, another verdict than the search's)


def describe(records: Iterable[RouteRecord]) -> list[TaskStats]:
    """The numbers of one model's records, which may come one at a time, in alphabetical order of tasks; of several tasks, then of all.

    `InputError` when there are none or they are of several models.
    """
    models, by_task = set[str](), dict[str, list[_Seen]]()
    for record in records:
        models.add(record.fingerprint)
        by_task.setdefault(record.task, []).append(_seen(record))
    if len(models) != 1:
        names = ", ".join(sorted(models))
        raise InputError(f"got records of {len(models)} models ({names}), expected one: describe one model's records at a time")
    rows = [_task(task, by_task[task]) for task in sorted(by_task)]
    return rows if len(rows) == 1 else [*rows, _task(POOLED, [seen for task in sorted(by_task) for seen in by_task[task]])]


def _seen(record: RouteRecord) -> _Seen:
    counts = Counter(record.chosen or ())
    checked = {(check.route, _run_of(check.check)) for check in record.checks}
    base_checks = record.verified(record.routes[0])
    return _Seen(
        task=record.task,
        n_layers=len(record.routes[0]),
        broken=record.broken,
        base_correct=record.base_correct,
        improved=record.improved,
        solved=record.solved,
        control_solved=bool(record.control_solved) if record.control_routes else None,
        actions=(counts[Action.SKIP], counts[Action.EXECUTE], counts[Action.REPEAT]) if record.chosen is not None else None,
        n_routes=(len(record.routes), len(record.control_routes), len(checked)),
        chosen_checks=tuple(record.verified(record.chosen).items()) if record.chosen is not None else (),
        base_checks=tuple((name, correct != _base_verdict(record, name)) for name, correct in base_checks.items()),
    )


def _task(name: str, every: Sequence[_Seen]) -> TaskStats:
    records = [seen for seen in every if not seen.broken]
    kept = [seen.actions for seen in records if seen.actions is not None]
    skips, executes, repeats = (sum(actions[which] for actions in kept) for which in range(3))
    wrong = [seen for seen in records if not seen.base_correct]
    paired = [seen for seen in wrong if seen.control_solved is not None]
    solved, by_control = [seen.solved for seen in paired], [bool(seen.control_solved) for seen in paired]
    searched, controlled, checked = (sum(seen.n_routes[which] for seen in records) for which in range(3))
    return TaskStats(
        task=name,
        n_layers=every[0].n_layers,
        visited=len(records),
        kept=len(kept),
        improved=sum(seen.improved for seen in records),
        search_routes=searched,
        control_routes=controlled,
        check_routes=checked,
        actions=(skips, executes, repeats),
        mean_passes=(executes + 2 * repeats) / len(kept) if kept else 0.0,
        search=_share(seen.solved for seen in wrong),
        control=_share(by_control) if paired else None,
        difference=paired_bootstrap(solved, by_control, strata=[seen.task for seen in paired]) if paired else None,
        flips=_flips(records),
        broken=len(every) - len(records),
    )


def _run_of(check: str) -> str:
    """The forward pass that a check was read from: "fp32:acc" and "fp32:acc_norm" share one, "rotated:1" and "rotated:2" do not."""
    return check if check.startswith("rotated") else check.partition(":")[0]


def _share(verdicts: Iterable[bool]) -> Share:
    values = list(verdicts)
    return Share(sum(values), len(values), *wilson(sum(values), len(values)))


def _flips(records: Sequence[_Seen]) -> dict[str, Flips]:
    counts: dict[str, list[int]] = {}
    for seen in records:
        for name, correct in seen.chosen_checks:
            row = counts.setdefault(name, [0] * 4)
            row[0] += 1
            row[1] += not correct
        for name, changed in seen.base_checks:
            row = counts.setdefault(name, [0] * 4)
            row[2] += 1
            row[3] += changed
    return {name: Flips(*counts[name]) for name in sorted(counts)}


def _base_verdict(record: RouteRecord, check: str) -> bool:
    """The search's own verdict on the base, by the metric of a check; the search went by one of the two metrics it stores."""
    by_metric = {"acc": record.acc[0], "acc_norm": record.acc_norm[0]}.get(check.partition(":")[2])
    return record.base_correct if by_metric is None else by_metric


Cells = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # of one table: title, header, rows


def render(stats: Sequence[TaskStats]) -> str:
    """The tables for a terminal, without colours, so that they can be piped and compared."""
    texts = [_table(*cells) for cells in tables(stats)]
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
    passes = ("task", "search", "a question", "control", "checks")
    checks = ("task", "check", "kept routes", "wrong", "%", "base routes", "other verdict", "%")
    found: list[Cells] = [
        ("labels: the kept routes", labels, [_labels(row) for row in stats]),
        (
            "solved, % of what the base gets wrong; control: as many random routes, blind to the question; 95 % intervals",
            ("task", "by search", "by the control", "search minus control, points"),
            [(row.task, _shown(row.search), _shown(row.control), _difference(row.difference)) for row in stats],
        ),
        ("forward passes: routes evaluated", passes, [_passes(row) for row in stats]),
    ]
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


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = Table(box=box.SIMPLE)
    for name in header:
        table.add_column(name, justify="left" if name in ("task", "check") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # a plain string would be read as markup
    return f"{title}\n{as_text(table)}"


def _percent(count: int, n: int) -> str:
    return percent(count / n) if n else ""


def _shown(share: Share | None) -> str:
    if share is None:
        return "none drawn"
    if not share.n:
        return "0 of 0"
    return f"{percent(share.n_right / share.n)} ({percent(share.low)} to {percent(share.high)}), {share.n_right:,} of {share.n:,}"


def _difference(difference: tuple[float, float, float] | None) -> str:
    return "" if difference is None else with_interval(*difference)
