"""Files that are whole or absent: written beside their place, flushed, then renamed over it. And the readers of JSON."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drllm.core.errors import ArtifactError

TEMPORARY_SUFFIX = ".partial"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically; a crash leaves the old one, or none, and at most a `.partial` beside it."""
    write_pieces(path, (data,))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")  # with a dot pandas passes it by
    try:
        with unfinished.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        # A full disk is noticed by write or fsync, which do not know the file's name.
        error.filename = error.filename or str(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A place to write in beside a new folder; it becomes the folder when the body ends well, and is gone when it does not."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        place = Path(temporary) / "whole"
        place.mkdir()
        yield place
        place.rename(folder)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, indented, keys in their own order."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, advice: str, kind: type = object) -> Any:
    """The content of a JSON file, of this Python type; `ArtifactError`, which ends in the advice, where it is not that."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}): {advice}") from None
    if not isinstance(value, kind):
        raise ArtifactError(f"{path} holds a {type(value).__name__}, expected a {kind.__name__}: {advice}")
    return value


def read_json_lines(path: Path, advice: str) -> list[tuple[int, Any]]:
    """(line, value) of each line of a file of JSON lines that is not blank; errors as of `read_json`."""
    number, values = 0, []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # splitlines() would also break inside strings
            values += [(number, json.loads(line))] if line.strip() else []
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON lines{f', line {number}' if number else ''} ({error}): {advice}") from None
    return values


def remove_partials(folder: Path) -> None:
    """Delete what killed processes left behind; what another process of this machine writes now stays."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        writer = path.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[2]
        if not (writer.isdecimal() and int(writer) != os.getpid() and _is_alive(int(writer))):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
