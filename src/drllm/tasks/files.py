"""Rows of a JSON-lines file given with --data. No torch."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.tasks.base import Example, Task
from drllm.tasks.layouts import gsm8k_answer, level_of, of_level, subject_line
from drllm.tasks.splits import PARTS


def file_rows(task: Task, path: Path, dropped: Counter[str]) -> list[Example]:
    """Rows of a JSON-lines file: question, answer, choices (choice tasks), optional id, context, part, level. InputError names the line."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; --data expects a JSON-lines file with one question a line") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --data expects a JSON-lines file") from None
    rows: list[tuple[Example, int | None]] = []
    ids: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        raw = _json_object(line, where)
        row = _file_row(task, raw, f"{path.stem}-{number}", where)
        if ids.setdefault(row.id, number) != number:
            raise InputError(f"{where}: id {row.id!r} already stands in line {ids[row.id]}; give each question its own id")
        if row.answer == "":
            left_out["empty answer"] += 1
            continue
        if rows and (rows[0][0].part == "") != (row.part == ""):
            raise InputError(f'{where}: some rows have a "part" and some have none; give it on every row or on none')
        rows.append((row, level_of(raw.get("level"))))
    # A file without any level is taken whole.
    levels = task.level and any(level is not None for _, level in rows)
    kept = [row for row, level in rows if not levels or of_level(task, level, left_out)]
    if not kept:
        why = f" (left out: {', '.join(f'{count} {reason}' for reason, count in left_out.items())})" if left_out else ""
        raise InputError(f"{path}: no questions for {task.name}{why}; expected one JSON object a line")
    dropped.update(left_out)
    return kept


def folder_rows(task: Task, folder: Path, dropped: Counter[str]) -> list[Example]:
    """Rows of a folder's train.jsonl, dev.jsonl (or validation.jsonl) and test.jsonl, those that are there; the file's name is the part.

    A folder of task folders (`<folder>/<task>/train.jsonl`) serves several tasks.
    """
    folder = folder / task.name if (folder / task.name).is_dir() else folder
    rows: list[Example] = []
    for path in sorted(folder.glob("*.jsonl")):
        part = _PART_NAMES.get(path.stem, path.stem)
        if part in PARTS:
            rows += [replace(row, part=part) for row in file_rows(task, path, dropped)]
    if not rows:
        raise InputError(f"{folder}: no train.jsonl, dev.jsonl or test.jsonl; --data expects a JSON-lines file or a folder with these")
    ids = Counter(row.id for row in rows)
    if twice := [name for name, count in ids.items() if count > 1]:
        raise InputError(f"{folder}: id {twice[0]!r} stands in two files; give each question its own id")
    return rows


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
    if task.description and not context and isinstance(raw.get("subject"), str):
        context = subject_line(task, raw["subject"])
    part = raw.get("part") or ""
    part = _PART_NAMES.get(part, part) if isinstance(part, str) else part
    if part not in (*PARTS, ""):
        raise InputError(f"{where}: part is {part!r}, expected train, validation or test")
    choices, answer = _choices(raw, where) if task.kind == "choice" else ((), _free_answer(task, raw, where))
    name = str(default_id if raw.get("id") is None else raw["id"])
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise InputError(f"{where}: id {name!r} holds half of a surrogate pair, which no file can store; give it another")
    return Example(name, question, choices, answer, task.name, context, part)


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
