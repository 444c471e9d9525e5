"""What earlier evaluations of a split left beside the latest, whose summary knows its own methods and tasks only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from drllm.core.config import EvaluateConfig
from drllm.policies.saved_config import CONFIG_FILE, policy_digest
from drllm.runs.layout import RunFolder
from drllm.runs.names import BASE, owner_of
from drllm.runs.summary import Summary, SummaryRow, rows_of
from drllm.runs.verdicts import Verdicts

OTHER_TASKS = "-other-tasks"  # behind a split's name: of the comparisons on tasks that the latest left out


Files = Mapping[tuple[str, str, str], Verdicts]  # by (split, method, task)


def with_earlier(folder: Path, summary: Summary, files: Files) -> tuple[dict[str, Summary], list[str]]:
    """A split's summary with rows of every method that earlier evaluations left, and a second one of the tasks that only they had.

    A method is left out, and named in a line, where its verdicts cannot be compared with those of the base that stand there now: on other
    questions, under other settings, or of a policy that has been trained again since.

    Returns:
        Summaries by name: the split's, and with `OTHER_TASKS` behind it if there are other tasks; and the lines. Their member `earlier`
        lists the methods that the latest evaluation left out.
    """
    split, tasks = summary.split, list(summary.tasks)
    bases = [task for where, method, task in files if (where, method) == (split, BASE)]
    known = {(row.method, row.task) for row in summary.rows}
    compared = {method for method, _ in known}
    odd: dict[str, None] = {}
    found: dict[str, list[str]] = {}
    for where, method, task in files:
        if where != split or method == BASE or task not in bases:
            continue
        if _belongs(folder, method, task, files, split):
            found.setdefault(method, []).append(task)
        elif (method, task) not in known:
            odd[method] = None
    # Verdicts of two versions of a policy are no method's.
    mixed = [name for name, theirs in found.items() if len({files[split, name, task].metadata.get("policy") for task in theirs}) > 1]
    for method in [name for name in found if name in mixed or owner_of(name) in mixed]:
        del found[method]
        if method not in compared:
            odd[method] = None
    layers = summary.rows[0].n_layers if summary.rows else 0
    others = [task for task in bases if task not in tasks]
    added = [method for method, theirs in found.items() if method not in compared and all(task in theirs for task in tasks)]
    rows = [*summary.rows, *_rows(files, split, added, tasks, layers)]
    summaries = {split: summary.changed(rows=rows, earlier=added)}
    elsewhere = [method for method, theirs in found.items() if others and all(task in theirs for task in others)]
    if elsewhere:
        beside = _rows(files, split, [BASE, *elsewhere], others, layers)
        summaries[split + OTHER_TASKS] = summary.changed(split=split + OTHER_TASKS, tasks=others, rows=beside, earlier=elsewhere)
    lines = [f"Left out, since its verdicts are of other settings, questions or a policy trained anew since: {name}." for name in odd]
    for method, theirs in found.items():
        shown = [*(tasks if method in (*compared, *added) else ()), *(others if method in elsewhere else ())]
        if lost := [task for task in theirs if task not in shown]:
            lines.append(f"Left out, since it was asked of some of the tasks alone: {method} ({', '.join(lost)}).")
    lacking = {name for (where, name, _), file in files.items() if where == split and "comparable" not in file.metadata}
    if silent := [method for method in dict.fromkeys((*added, *elsewhere)) if method in lacking]:
        lines.append(f"Their files, of an older version, do not say with which settings and policy they were made: {', '.join(silent)}.")
    return summaries, lines


def _belongs(folder: Path, method: str, task: str, files: Files, split: str) -> bool:
    """Whether verdicts are on the base's questions, under its settings, and of the policy that stands there now."""
    file, base = files[split, method, task], files[split, BASE, task]
    if (file.ids, file.metadata.get("comparable")) != (base.ids, base.metadata.get("comparable")):
        return False
    if owner := owner_of(method):  # a blind baseline makes its owner's passes: of another version of the owner it would not
        theirs = files.get((split, owner, task))
        return theirs is not None and Counter(file.passes) == Counter(theirs.passes) and _belongs(folder, owner, task, files, split)
    saved = RunFolder(folder).policy(method)
    is_there = (saved / CONFIG_FILE).is_file()  # else nothing says that it has changed
    return not is_there or file.metadata.get("policy") in (None, policy_digest(saved))


def _rows(files: Files, split: str, methods: Sequence[str], tasks: Sequence[str], n_layers: int) -> list[SummaryRow]:
    """Rows as `evaluate` makes them."""
    if not methods:
        return []  # where the base's files are gone, no method of earlier evaluations is comparable either
    verdicts = {(method, task): files[split, method, task] for method in (BASE, *methods) for task in tasks}
    return rows_of(methods, tasks, verdicts, n_layers, EvaluateConfig())
