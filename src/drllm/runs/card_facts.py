"""What a run folder tells of one of its policies, for the policy's model card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.errors import ArtifactError
from drllm.core.files import read_json
from drllm.core.text import p_value, percent, with_interval
from drllm.policies.card import CardFacts
from drllm.policies.saved_config import policy_digest
from drllm.runs.layout import RunFolder
from drllm.runs.provenance import typed_commands
from drllm.runs.summary import Summary

if TYPE_CHECKING:
    from drllm.policies.saved import SavedPolicy


def card_facts(folder: Path) -> CardFacts:
    """Of the policy in `folder`, whose parent is the run folder, if it is one: figures of these very files, and the run's commands."""
    run = RunFolder(folder.parent)
    if not run.jobs.is_file():
        return CardFacts()
    found = list(_evaluations(run, folder.name, policy_digest(folder)))
    tasks = dict.fromkeys(task for of, _ in found for task in of)
    figures = [line for _, lines in found for line in lines]
    return CardFacts(folder.name, tuple(tasks), figures, typed_commands(_read(run.jobs, list)), tuple(_of_healing(run, folder)))


def refresh_card(folder: Path) -> SavedPolicy:
    """Write the card of a saved policy anew, with what its run folder tells by now; the policy, whose files were found whole."""
    from drllm.policies.saved import open_folder

    saved = open_folder(folder)
    saved.write_card(card_facts(folder))
    return saved


def _evaluations(run: RunFolder, method: str, digest: str) -> Iterator[tuple[list[str], list[str]]]:
    """(tasks, Markdown) of every evaluation of these very files; a torn or foreign file is no evaluation of them."""
    for path in [*run.summaries(), *run.harness_summaries()]:
        found = _read(path, dict)
        if found.get("policies", {}).get(method) != digest:
            continue
        with contextlib.suppress(ArtifactError):
            yield found["tasks"], _in_harness(found, method) if "routing" in found else _compared(Summary.of(found, path), method)


def _of_healing(run: RunFolder, folder: Path) -> Iterator[str]:
    """How near to the base a healing brought these very routes."""
    names = {text.rpartition("@")[2] for text in _read(folder / "codebook.json", dict).get("routes", [])}
    names.add(_read(folder / "healed.json", dict).get("adapter"))
    for found in (one for one in (_read(path, dict) for path in run.healed()) if one.get("route", "").rpartition("@")[2] in names):
        tasks = _read(run.healing.settings, dict).get("tasks", [])
        of = f"the fit questions of {', '.join(tasks)}" if tasks else "a file"
        route = found["route"].split("@")[0]
        yield f"route {route}: healed on {found['n_prompts']} prompts of {of}, without answers; on other tasks it may do worse"
        where = f"on {found['n_held_out']} held-out prompts (they also chose when to stop), without and with the adapter"
        yield f"KL to the base, nats a token, {where}: {found['kl_before']:.3f}, {found['kl_after']:.3f}"
        yield f"the same most likely next token as the base, {where}: {found['same_before']:.1%}, {found['same_after']:.1%}"


def _compared(summary: Summary, method: str) -> list[str]:
    base = {row.task: row.accuracy for row in summary.rows if row.method == summary.reference}
    rows = [
        (row.method, row.task, "accuracy", row.n, base[row.task], row.accuracy, row.change, row.mcnemar_p)
        for row in summary.rows
        if row.method != summary.reference
    ]
    passes = [f"It runs {row.mean_passes:.2f} block passes a prompt." for row in summary.pooled if row.method == method]
    return [*_table(f"{summary.split} split", method, rows), *passes[:1], ""]


def _in_harness(summary: dict[str, Any], method: str) -> list[str]:
    """Of lm-evaluation-harness, whose tasks have metrics of their own."""
    rows = []
    for row in (row for row in summary["rows"] if row["method"] != summary["reference"]):
        change = with_interval(row["difference"], row["difference_low"], row["difference_high"])
        rows.append((*(row[name] for name in ("method", "task", "metric", "n", "reference", "value")), change, row["mcnemar_p"]))
    return _table(f"in lm-evaluation-harness, {summary['split']} split", method, rows)


def _table(place: str, method: str, rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """The method and, beside it, its baselines and rivals in the same evaluation."""
    lines = [f"Against the base, question by question, {place}; in brackets 95 % intervals:", ""]
    lines += ["| method | task | metric | n | base, % | method, % | points | McNemar p |", "|---|---|---|---|---|---|---|---|"]
    for name, task, metric, n, base, value, change, p in rows:
        first, last = f"**{name}**" if name == method else name, "" if p is None else p_value(p)
        shown = (first, task, metric, n, percent(base), percent(value), change, last)
        lines.append(f"| {' | '.join(map(str, shown))} |")
    return [*lines, ""]


def _read(path: Path, kind: type) -> Any:
    """Empty for a torn or foreign file."""
    try:
        return read_json(path, "", kind)
    except ArtifactError:
        return kind()
