"""The plan of a task folder: all that determines its records, so that none made otherwise get in among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drllm.core.errors import ArtifactError
from drllm.core.files import remove_partials, write_json

MANIFEST_FILE = "_plan.json"
MANIFEST_KEYS = {"task", "data", "model", "fingerprint", "config", "questions", "ids"}  # what other jobs read from a plan
PART_KEYS = {"folder", "data", "questions", "ids"}  # what a merged plan says of each plan in it
PLACE_KEYS = ("dtype", "device", "threads")  # how it was computed, not what
_MISSING = object()


def check_manifest(folder: Path, plan: dict[str, Any]) -> None:
    """Write what determines a folder's records, or refuse to mix them with records made otherwise.

    Also removes what killed processes left half written in the folder.
    """
    path = folder / MANIFEST_FILE
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    plan = json.loads(json.dumps(plan))
    if not path.is_file():
        if shards := sorted(folder.glob("*.parquet")):
            raise ArtifactError(
                f"{folder} holds records ({shards[0].name}, ...) but no {MANIFEST_FILE}: what made them is unknown, give another --out"
            )
        write_json(path, plan)
        return
    for key, before, now in differences(read_manifest(folder), plan):
        raise ArtifactError(f"{folder} was searched with {key} = {before}, now it is {now}: use another --out, or the same settings")


def computed_otherwise(folder: Path, plan: dict[str, Any]) -> str:
    """The type of the weights that a folder's records were made with, where its plan differs from this one in how it was computed alone;
    else empty."""
    if not (folder / MANIFEST_FILE).is_file():
        return ""
    before, now = read_manifest(folder), json.loads(json.dumps(plan))
    found = {key.partition(".")[0] for key, *_ in differences(before, now)}
    return str(before["dtype"]).removeprefix("torch.") if "dtype" in found and found <= set(PLACE_KEYS) else ""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What determines the records of a folder; `ArtifactError` when it is corrupt or foreign."""
    path = folder / MANIFEST_FILE
    again = f"delete {folder} and search again"
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}): {again}") from None
    if not _is_plan(plan):
        raise ArtifactError(f"{path} is not the plan of a drllm search: {again}")
    return plan


def search_manifests(run: Path) -> dict[Path, dict[str, Any]]:
    """The plan of each searched task of a run, by its task folder; `ArtifactError` when one is corrupt or foreign."""
    return _plans(run / "search")


def path_manifests(run: Path) -> dict[Path, dict[str, Any]]:
    """As `search_manifests`, of the dense matrices that `search --paths` made."""
    return _plans(run / "paths")


def _plans(folder: Path) -> dict[Path, dict[str, Any]]:
    return {path.parent: read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST_FILE}"))}


def parts_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What a merged plan was put together from, each with its `data`, `ids` and `questions`; a plan that was not is its own part."""
    return plan.get("merged") or [plan]


def _is_plan(plan: Any) -> bool:
    if not isinstance(plan, dict) or MANIFEST_KEYS - plan.keys():
        return False
    ids, parts = plan["ids"], plan.get("merged", [])
    if not isinstance(ids, list) or not isinstance(parts, list) or not isinstance(plan["config"], dict):
        return False
    return all(isinstance(name, str) for name in ids) and all(isinstance(part, dict) and not PART_KEYS - part.keys() for part in parts)


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two plans differ, in the order of the second: (dotted key, value before, value now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*now, *(name for name in before if name not in now)]:
            yield from differences(before.get(name, _MISSING), now.get(name, _MISSING), f"{key}.{name}" if key else str(name))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{key}[{index}]")
    elif before != now:
        yield key, _shown(before), _shown(now)


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "(not set)"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:100]
