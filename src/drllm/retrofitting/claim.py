"""The folder of a retrofit: what it was asked for stands there, and nothing else may. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drllm.core.digest import file_digest, short_digest
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import read_json, write_json
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import search_manifests
from drllm.tasks.files import SUFFIXES
from drllm.tasks.hub import is_on_hub


@contextmanager
def claimed_if_begun(run: RunFolder) -> Iterator[None]:
    """A retrofit that is refused before its first stage is done does not keep its folder: other minutes may be given there."""
    try:
        yield
    except InputError:
        if not run.finished.is_file():
            run.asked.unlink(missing_ok=True)
            run.under_way.unlink(missing_ok=True)
        raise


def data_key(data: str | Path | None) -> str | None:
    """A digest of the files' bytes: another content under the same name is other data. A missing file is refused by `load_task`."""
    if data is None or not Path(data).exists():
        return str(data) if data is not None and is_on_hub(data) else None
    root = Path(data)
    paths = sorted(root.rglob("*.jsonl")) if root.is_dir() else [root]
    others = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES[1:]) if root.is_dir() else []
    named = "".join(f"{path.relative_to(root)} {file_digest(path)}" for path in others)
    return short_digest(b"".join(bytes.fromhex(file_digest(path)) for path in paths) + named.encode())


def claim_folder(run: RunFolder, settings: dict[str, Any]) -> None:
    """Write once what a retrofit is asked for; `ArtifactError`, before anything is touched, for a folder that holds something else."""
    where, other = run.root, "give another --out"
    if not run.asked.is_file():
        if search_manifests(where) or run.finished.is_file():
            raise ArtifactError(f"{where} holds a search, or another command's work: go on with that, or {other}")
        where.mkdir(parents=True, exist_ok=True)
        write_json(run.asked, settings)
        return
    before = read_json(run.asked, "remove that folder and try again", dict)
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        name = changed[0]
        raise ArtifactError(f"{where} was asked for with {name} {before.get(name)}, now it is {settings[name]}: {other}")
