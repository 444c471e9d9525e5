"""Rows of what is given with --data: JSON lines, CSV or Parquet, or a data set on the Hub. No torch."""

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.tasks.base import LETTERS, Example, Kind, Task
from drllm.tasks.hub import is_on_hub, named_rows
from drllm.tasks.layouts import accepted_answers, background, gsm8k_answer, level_of, of_level, subject_line
from drllm.tasks.splits import PARTS

SUFFIXES = (".jsonl", ".csv", ".parquet")  # any other is read as JSON lines


def own_name(data: str | Path) -> str:
    """The name of a task that only this file or folder has: its own, with - for what a folder's name should not hold."""
    path = Path(data)
    return re.sub(r"[^\w.-]+", "-", path.stem if path.suffix in SUFFIXES else path.name).strip("-.") or "questions"


def kind_of(data: Path) -> Kind:
    """Whether the questions of a file or folder have choices, by the first row."""
    found = _files(data) if data.is_dir() else [data]
    if not found:
        raise InputError(f"{data}: no train.jsonl, dev.jsonl or test.jsonl; name the tasks, with --tasks, where each has a folder there")
    path = found[0]
    first = next(_raw_rows(path), None)
    if first is None:
        raise InputError(f"{path}: no questions; expected rows with question, answer and, for multiple choice, choices")
    _, where, row = first
    if "choices" not in row and (name := next((name for name, value in row.items() if _looks_like_choices(name, value, row)), "")):
        raise InputError(f'{where}: "{name}" looks like choices: two or more are read from a list "choices" or from columns A, B, C, ...')
    return "choice" if "choices" in row else "math"


def _looks_like_choices(name: str, value: Any, row: dict[str, Any]) -> bool:
    """By name, or since it holds the answer."""
    if not isinstance(value, list) and value is not None:
        return name == "A" or re.fullmatch(r"(?i)(choice|option|candidate|alternative|ending)s?[ _.-]?([0-9]|[a-j])", name) is not None
    if not isinstance(value, list) or len(value) < 2 or name == "answers":  # those of a passage's question
        return False
    return name.lower().rstrip("s") in ("choice", "option", "candidate", "alternative", "ending") or row.get("answer") in value


def _files(folder: Path) -> list[Path]:
    return sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}"))


def _raw_rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number, where it stands in words, keys with values) of each row; `options`, or columns A, B, C, ..., are taken for `choices`."""
    try:
        if is_on_hub(path):
            found: Iterable[tuple[int, str, Any]] = (
                (number, f"{path}, {part} row {number}", row | {"part": _part_of(part)})
                for number, (part, row) in enumerate(named_rows(path), 1)
            )
        elif path.suffix == ".parquet":
            import pyarrow.parquet

            numbered = enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
            found = ((number, f"{path}, row {number}", row) for number, row in numbered)
        elif path.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
            _check_separator(path, reader.fieldnames or ())
            numbered = ((number, f"{path}, line {reader.line_num}", row) for number, row in enumerate(reader, 1))
            found = ((number, where, _cells(row, where)) for number, where, row in numbered)
        else:
            lines = enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
            found = ((number, f"{path}, line {number}", line) for number, line in lines if line.strip())
        for number, where, row in found:
            yield number, where, _with_choices(row if isinstance(row, dict) else _json_object(row, where))
    except FileNotFoundError:
        on_hub = f"; of the Hub it is hub:{path}" if re.fullmatch(r"[\w-]+/[\w-]+", str(path)) else ""
        raise InputError(
            f"{path}: no such file; --data expects a JSON-lines, CSV or Parquet file with one question a row{on_hub}"
        ) from None
    except OSError as error:  # pyarrow's say no strerror
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); --data expects a JSON-lines, CSV or Parquet file") from None
    except InputError:  # a ValueError, too: of one line, which it names
        raise
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); save it as UTF-8 text, or as Parquet") from None


def _check_separator(path: Path, header: Sequence[str]) -> None:
    """Refuse a table whose one column holds the names of several, as spreadsheets of some languages write them."""
    if "question" not in header and (found := [mark for mark in (";", "\t", "|") if any(f"question{mark}" in name for name in header)]):
        raise InputError(f"{path}: its columns are separated by {found[0]!r}, expected commas: save it with commas, or as Parquet")


def _cells(row: dict[Any, Any], where: str) -> dict[str, Any]:
    """A row of a CSV file: cells that are empty are not there, and choices are a list written as JSON."""
    if None in row:
        raise InputError(f"{where}: more cells than the header has columns; put quotes around a cell with a comma")
    cells = {name: value for name, value in row.items() if name and value not in (None, "")}
    for name in ("choices", "options", "answers"):
        if isinstance(text := cells.get(name), str):
            with contextlib.suppress(json.JSONDecodeError):  # refused as no list, with its line
                cells[name] = json.loads(text)
    return cells


def _with_choices(row: dict[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in row.items() if value is not None or name not in ("choices", "options")}  # as Parquet fills gaps
    if "choices" not in row and "options" in row:
        row = row | {"choices": row["options"]}
    if "choices" not in row and row.get("A") is not None:
        row = row | {"choices": [row[letter] for letter in LETTERS if row.get(letter) is not None]}
    return row


def file_rows(task: Task, path: Path, dropped: Counter[str]) -> list[Example]:
    """Rows of a file: question, answer, choices (choice tasks), optional id, context, part, level. InputError names the line."""
    rows: list[tuple[Example, int | None]] = []
    ids: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for number, where, raw in _raw_rows(path):
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
        raise InputError(f"{path}: no questions for {task.name}{why}; expected one question a row")
    dropped.update(left_out)
    return kept


LEVELLED = "math"  # the folder of questions of all levels, which every dart-k may read


def _own_folder(folder: Path, task: Task) -> Path:
    names = (task.name, LEVELLED) if task.level else (task.name,)
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def serves(folder: Path, task: Task) -> bool:
    """Whether a folder holds a part of a task, itself or in the task's own folder."""
    return _own_folder(folder, task) != folder or any(_part_of(path.stem) for path in _files(folder))


def folder_rows(task: Task, folder: Path, dropped: Counter[str]) -> list[Example]:
    """Rows of a folder's train.jsonl, dev.jsonl (or validation.jsonl) and test.jsonl, or .csv or .parquet: the file's name is the part.

    A folder of task folders (`<folder>/<task>/train.jsonl`) serves several tasks; levels of DART-Math may lie together in `<folder>/math`.
    """
    folder = _own_folder(folder, task)
    rows: list[Example] = []
    for path in _files(folder):
        if part := _part_of(path.stem):
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
    for key in ("question", *_NEEDED[task.kind]):
        if key not in raw:
            there = ", ".join(name for name in raw if name != "choices" or "A" not in raw)
            more = "; each kind of question needs a file of its own" if key == "choices" else ""
            more += "".join(f'; if "{name}" is it, call it "{key}"' for name in _OTHERWISE.get(key, ()) if name in raw)
            raise InputError(f'{where}: key "{key}" is missing; a {task.kind} row has {_KEYS[task.kind]}, this one has {there}{more}')
    question, context = raw["question"], raw.get("context") or ""
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: question is {question!r}, expected text")
    if not isinstance(context, str):
        raise InputError(f"{where}: context is {context!r}, expected text")
    if task.description and not context and isinstance(raw.get("subject"), str):
        context = subject_line(task, raw["subject"])
    if task.kind == "passage":
        context = background(context, raw.get("title"))
    part = raw.get("part") or ""
    part = _PART_NAMES.get(part, part) if isinstance(part, str) else part
    if part not in (*PARTS, ""):
        raise InputError(f"{where}: part is {part!r}, expected train, validation or test")
    choices, answer = _ANSWERS[task.kind](task, raw, where)
    name = str(default_id if raw.get("id") is None else raw["id"])
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise InputError(f"{where}: id {name!r} holds half of a surrogate pair, which no file can store; give it another")
    solution = raw.get("solution") or ""
    if not isinstance(solution, str):
        raise InputError(f"{where}: solution is {solution!r}, expected text")
    return Example(name, question, choices, answer, task.name, context, part, solution)


_PART_NAMES: dict[str, str] = dict.fromkeys(("dev", "valid", "val"), "validation")


def _part_of(name: str) -> str:
    """The part that a file of a folder, or a split of the Hub, is by its name; none for another name."""
    part = _PART_NAMES.get(name, name)
    return part if part in PARTS else ""


_KEYS = {
    "choice": "question, choices, answer (an index from 0, a letter or the text of a choice), optionally id",
    "math": "question, answer, optionally id",
    "passage": "context, question, answers (texts that count as right, none where the passage does not answer), optionally id, title",
}
_OTHERWISE = {"answer": ("label", "target", "gold", "answerKey"), "question": ("prompt", "query", "input")}  # as other files call them
_NEEDED = {"choice": ("answer", "choices"), "math": ("answer",), "passage": ("context", "answers")}


def _choices(task: Task, raw: dict[str, Any], where: str) -> tuple[tuple[str, ...], int | str]:
    choices, answer = raw["choices"], raw["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"{where}: choices is {choices!r}, expected two texts or more: add a wrong answer, or leave it out")
    if answer is None or answer == "":
        return tuple(choices), ""
    index = _index(choices, answer, where)
    # Of published sets some have such rows, and their accuracies count them.
    if task.is_own and (blank := [place for place, choice in enumerate(choices) if not choice.strip()]):
        raise InputError(f"{where}: choice {blank[0]} (0 is the first) is empty: fill it or leave it out")
    if task.is_own and choices.count(choices[index]) > 1:
        raise InputError(f"{where}: the right choice {choices[index]!r} stands there twice: leave one out")
    return tuple(choices), index


def _index(choices: list[str], answer: Any, where: str) -> int:
    """An index, the text of one choice, its letter, or an index written as text, in this order."""
    found = answer
    if isinstance(answer, str):
        places = [place for place, choice in enumerate(choices) if choice.strip() == answer.strip()]
        letter = LETTERS.find(answer.strip().upper()) if len(answer.strip()) == 1 else -1
        found = places[0] if places else letter if letter >= 0 else int(answer) if answer.strip().isdecimal() else None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < len(choices):
        expected = f"an index from 0 to {len(choices) - 1}, a letter, or the text of a choice"
        raise InputError(f"{where}: answer is {answer!r}, expected {expected}")
    return found


def _free_answer(task: Task, raw: dict[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    answer = raw["answer"]
    if task.is_own and "choices" in raw:
        raise InputError(f"{where}: this row has choices, the first row has none: give each kind a file of its own")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise InputError(f"{where}: answer is {answer!r}, expected text or a number")
    text = "" if answer is None else str(answer).strip()
    return (), gsm8k_answer(text) if task.name == "gsm8k" else text


def _accepted(task: Task, raw: dict[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    answers = raw["answers"]
    answers = answers.get("text") if isinstance(answers, dict) else answers  # as the Hub's rows have them
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"{where}: answers is {raw['answers']!r}, expected a list of texts, empty where the passage does not answer")
    return accepted_answers(answers)


_ANSWERS: dict[Kind, Callable[[Task, dict[str, Any], str], tuple[tuple[str, ...], int | str]]]
_ANSWERS = {"choice": _choices, "math": _free_answer, "passage": _accepted}
