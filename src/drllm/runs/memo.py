"""Finished work, remembered in JSON files under a key of all that determines it, so that the same call again takes seconds. No torch."""

from pathlib import Path
from typing import Any

from drllm.core.digest import json_digest
from drllm.core.errors import ArtifactError
from drllm.core.files import read_json, write_json


def key_of(value: Any) -> str:
    """Names a JSON value, whatever the order of its keys."""
    return json_digest(value, sort_keys=True)


def read_kept(path: Path, key: str, advice: str, member: str = "key") -> dict[str, Any] | None:
    """The content of a JSON file that was written under this key, which stands in `member`.

    Returns None where there is no file, or it was written under another key; `ArtifactError`, which ends in the advice, for a corrupt one.
    """
    found = read_json(path, advice, dict) if path.is_file() else {}
    return found if found.get(member) == key else None


class Memo:
    """Several pieces of finished work in one file, by name: `{name: {"key": ..., ...}}`."""

    def __init__(self, path: Path):
        self.path = path

    def __contains__(self, name: str) -> bool:
        """Whether work of this name was ever kept, under whichever key."""
        return name in self._read()

    def find(self, name: str, key: str) -> dict[str, Any] | None:
        """What was kept under this name and key, else None; `ArtifactError` for a corrupt file."""
        entry = self._read().get(name)
        return entry if entry is not None and entry.get("key") == key else None

    def keep(self, name: str, key: str, **entry: Any) -> None:
        """Write what work of this name gave, in place of what it gave before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self._read() | {name: {"key": key, **entry}})

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        advice = "delete it, finished work is found again"
        found = read_json(self.path, advice, dict)
        if not all(isinstance(entry, dict) for entry in found.values()):
            raise ArtifactError(f"{self.path} is not a list of finished work by name: {advice}")
        return found
