"""SHA-256 of bytes, text, files and JSON, whole or as the 16 hexadecimal digits that name things."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHORT = 16  # hexadecimal digits


def digest(data: bytes | str) -> str:
    """All 64 hexadecimal digits; text in UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def short_digest(data: bytes | str) -> str:
    """The first 16 hexadecimal digits."""
    return digest(data)[:SHORT]


def file_digest(path: Path) -> str:
    """Of a file's bytes, all 64 digits."""
    return digest(path.read_bytes())


def json_digest(value: Any, sort_keys: bool = False, default: Callable[[Any], Any] | None = None) -> str:
    """Of a value as JSON, 16 digits; `default` as `json.dumps` takes it."""
    return short_digest(json.dumps(value, sort_keys=sort_keys, default=default))


def number_of(text: str) -> int:
    """A seed from a text: the first 8 bytes of its digest, the highest first."""
    return int(digest(text)[:16], 16)
