"""The folder of an export, in any format: whole or not at all, and replaced only where all in it came from an earlier export."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.files import read_json, whole_folder, write_json
from drllm.core.route import Action, Route
from drllm.core.route_words import in_words
from drllm.core.span import fewest_spans
from drllm.core.text import type_name
from drllm.model.load import hub_or_folder
from drllm.model.routed import RoutedModel
from drllm.runs.layout import EXPORT_FILE
from drllm.runs.provenance import versions

IN_MEMORY = "a model in memory"  # what a card calls a base without a name


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    route: str
    n_blocks: int  # of the model that the export loads as
    n_bytes: int  # of its weights
    copied_bytes: int  # of them: later passes, which most formats cannot store once
    difference: float  # largest absolute difference of a logit from the routed model's
    n_checked: int  # tokens that were compared
    format: str = "checkpoint"

    @property
    def size(self) -> str:
        whole = f"{self.n_bytes / 1e6:.1f} MB" if self.n_bytes >= 1e5 else f"{self.n_bytes / 1e3:.1f} KB"
        return whole + (f", of which {self.copied_bytes / 1e6:.1f} MB are second copies of repeated blocks" if self.copied_bytes else "")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place to write and to check an export in; it becomes `folder` when the body ends well, and is gone when it does not.

    `InputError` where `folder` is a file, or holds what no export wrote.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a new folder")
    earlier = {EXPORT_FILE, *(name.partition("/")[0] for name in (read_export(folder) or {}).get("files", {}))}
    if folder.exists() and (foreign := sorted({path.name for path in folder.iterdir()} - earlier)):
        raise InputError(f"{folder} holds {foreign[0]!r}, which no export wrote: give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_folder(folder) as place:
            yield place
            if folder.exists():
                shutil.rmtree(folder)
    except (OSError, SafetensorError) as error:  # a write that fails, as for want of room, does not know the file's name
        what = getattr(error, "errno", None), getattr(error, "strerror", None) or first_line(error)
        raise OSError(*what, getattr(error, "filename", None) or str(folder)) from error


def finish(place: Path, routed: RoutedModel, route: Route, done: Exported, library: str, use: str) -> None:
    """Write the card and, last, what was exported with the size of every file; `use` is how `library` loads it."""
    (place / "README.md").write_text(_card(routed, route, done, library, use), encoding="utf-8")
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    for path in files:  # safetensors' can be read by their owner alone
        path.chmod((place / "README.md").stat().st_mode)
    sizes = {path.relative_to(place).as_posix(): path.stat().st_size for path in files}
    base = {"base": routed.base_id, "fingerprint": routed.fingerprint}
    write_json(place / EXPORT_FILE, asdict(done) | {"folder": done.folder.name, "files": sizes} | base | {"versions": versions()})


def read_export(folder: Path) -> dict[str, Any] | None:
    """What `export` wrote about a folder, or None when it is no export; `ArtifactError` when that is unreadable."""
    path = folder / EXPORT_FILE
    return read_json(path, "export again", dict) if path.is_file() else None


def check_export(folder: Path) -> None:
    """Refuse an exported folder of which a file is missing or has another size; weights are too large to digest each time."""
    for name, size in (read_export(folder) or {}).get("files", {}).items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ArtifactError(f"{folder / name} is missing or not the file that was exported: export again")


def _card(routed: RoutedModel, route: Route, done: Exported, library: str, use: str) -> str:
    """The README, by whose head the Hub files it: `rys` is the tag under which people look for repeated blocks."""
    base, name = hub_or_folder(routed.base_id) or "", routed.base_id or IN_MEMORY
    tags = ["drllm", "adaptive-depth", *(["rys"] if max(route) > Action.EXECUTE else [])]
    named = f"base_model: {base}\n" if "/" in base and not Path(base).exists() else ""
    trained, which = "nothing was trained", f'--model {name} --route "{route}"'
    if route.adapter:
        rank, which = routed.adapters[route.adapter].rank, "--policy THE HEALED POLICY"
        merged = "" if done.format == "peft" else ", merged in,"
        trained = f"low-rank weights of rank {rank}{merged} were trained to say what the base says (`drllm heal`)"
    how = "one digit a block: 0 skip, 1 execute, 2 repeat" if route.bare.has_digits else "the blocks in the order they run"
    chosen = "" if done.format == "checkpoint" else f"--format {done.format} "
    if done.format != "gguf":
        chosen += f"--dtype {type_name(routed.model.dtype)} "
    checked = f"logits of {done.n_checked} tokens differ from the routed model's by at most {done.difference:.1e}"
    return (
        f"---\nlibrary_name: {library}\ntags: [{', '.join(tags)}]\n{named}---\n\n# {name}, on one route of blocks\n\n"
        f"The base's blocks in another order: {in_words(route)} (counted from 0). {done.n_blocks} blocks instead of "
        f"{routed.n_layers}; {trained}. {use}\n- base: `{name}`, weights `{routed.fingerprint}`\n- route: `{route}` ({how})\n"
        f"- made by: `drllm export {chosen}{which} --out {done.folder.name}`\n- size: {done.size}\n"
        f"- checked: {checked} ({type_name(routed.model.dtype)})\n\nThe licence is the base model's.\n"
    )


def slices(route: Route) -> list[tuple[int, int]]:
    """The path as (first block, one behind the last), as PEFT takes it: the fewest spans that run upwards."""
    return [(span.first, span.last + 1) for span in fewest_spans(route.spans)]
