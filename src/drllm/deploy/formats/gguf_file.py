"""GGUF to GGUF: the base's own file with its blocks in another order, quantised tensors bit for bit, for llama.cpp and Ollama.

A block that runs again is stored again: llama.cpp refuses a tensor whose offset is not the sum of the sizes before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.files import write_text
from drllm.core.route import Route
from drllm.deploy.formats.folder import IN_MEMORY, Exported, finish, new_folder
from drllm.model.copies import BUILD_ERRORS, INSTEAD, difference_from, inexpressible
from drllm.model.load import PATTERN_KEY, gguf_path, load_base, sliding
from drllm.model.routed import RoutedModel

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFValueType, ReaderTensor

CANNOT = "cannot express this route as a GGUF file"
# llama.cpp's names, by its source of build 10257: those in which a block is what its own tensors and the arrays by layer say ...
PLAIN = frozenset(
    {"llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "phi3", "falcon", "stablelm", "gpt2", "starcoder2", "nemotron", "bloom"}
)
# ... and those in which every n-th block is full attention (llama.cpp passes over a list of the sliding ones); and the number of blocks
# by which llama.cpp takes a model for the largest of its family, whose attention it scales otherwise.
PERIODS = {"gemma2": 2, "gemma3": 6}
LARGEST = {"gemma2": 46, "gemma3": 62}
STATES_PERIOD = "gemma3"  # whose stated period llama.cpp was seen to follow
NOT_BY_LAYER = ("rope.dimension_sections",)  # arrays that may have as many entries as there are blocks by accident
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


class Entry(NamedTuple):
    """One entry of a file's metadata, as the gguf package writes it; `item` is the type of an array's items."""

    value: Any
    kind: GGUFValueType
    item: GGUFValueType | None = None


def write_gguf(routed: RoutedModel, route: Route, folder: Path) -> Exported:
    """The .gguf file, a Modelfile for Ollama and README; `InputError` where the base was not loaded from a GGUF file."""
    source = gguf_path(routed.base_id) if routed.base_id else None
    if source is None:
        raise InputError(f"{routed.base_id or IN_MEMORY!r} is no .gguf file: export a checkpoint, then convert it (docs/export.md)")
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(source)
    told = {"drllm.route": str(route), "drllm.base": routed.fingerprint}
    entries = changed_entries(reader, route) | {name: Entry(text, GGUFValueType.STRING) for name, text in told.items()}
    tensors = along(reader, route)
    with new_folder(folder) as place:
        file = place / f"{folder.name}.gguf"
        write_copy(reader, file, entries, [(name, tensor.tensor_type, tensor.data) for name, tensor in tensors])
        difference, n_checked = _check(routed, route, file)
        once = {tensor.name: tensor.n_bytes for _, tensor in tensors}
        copied = sum(tensor.n_bytes for _, tensor in tensors) - sum(once.values())
        done = Exported(folder, str(route), route.n_passes, file.stat().st_size, copied, difference, n_checked, "gguf")
        write_text(place / "Modelfile", f"# ollama create {folder.name} -f Modelfile\nFROM ./{file.name}\n")
        use = f"```\nllama-cli -m {file.name}\nollama create {folder.name} -f Modelfile && ollama run {folder.name}\n```\n"
        finish(place, routed, route, done, "gguf", f"Nothing was quantised again.\n\n{use}")
    return done


def changed_entries(reader: GGUFReader, route: Route) -> dict[str, Entry]:
    """The entries of the metadata that follow the path: the number of blocks, every array by layer, and the period of windows.

    `UnsupportedModelError` where llama.cpp decides by a block's place or by the number of blocks what a block computes.
    """
    from gguf import GGUFValueType

    arch, n_layers = _value(reader, "general.architecture"), len(route)
    if arch not in PLAIN and arch not in PERIODS:
        known = ", ".join(sorted(PLAIN | PERIODS.keys()))
        raise UnsupportedModelError(f"GGUF architecture {arch!r} {CANNOT}: its code in llama.cpp was not read; these were: {known}")
    if (largest := LARGEST.get(arch)) and route.n_passes != n_layers and largest in (n_layers, route.n_passes):
        what = f"llama.cpp scales the attention of a {arch} of {largest} blocks otherwise, and this one would go from {n_layers}"
        raise UnsupportedModelError(f"GGUF architecture {arch!r} {CANNOT}: {what} to {route.n_passes}; {INSTEAD}")
    changed = {f"{arch}.block_count": Entry(route.n_passes, reader.fields[f"{arch}.block_count"].types[0])}
    for name, field in reader.fields.items():
        is_list = field.types[:1] == [GGUFValueType.ARRAY] and field.types[-1] not in (GGUFValueType.STRING, GGUFValueType.ARRAY)
        if is_list and name.startswith(f"{arch}.") and not name.endswith(NOT_BY_LAYER) and len(field.data) == n_layers:
            values = field.contents()
            changed[name] = Entry([values[block] for block in route.path], GGUFValueType.ARRAY, field.types[-1])
    return changed | _windows(reader, arch, route)


def _windows(reader: GGUFReader, arch: str, route: Route) -> dict[str, Entry]:
    """The period at which the blocks of the path are full attention, where it is not the usual one; refused where there is none."""
    from gguf import GGUFValueType

    if arch not in PERIODS or not (arch == "gemma2" or _value(reader, f"{arch}.attention.sliding_window")):
        return {}
    stated = _value(reader, f"{arch}.{PATTERN_KEY}")
    period = stated if isinstance(stated, int) else PERIODS[arch]
    own = stated if isinstance(stated, list) else sliding(len(route), period)
    wanted = [bool(own[block]) for block in route.path]
    tried = (period, *range(route.n_passes + 2)) if arch == STATES_PERIOD else (PERIODS[arch],)
    found = next((n for n in tried if sliding(route.n_passes, n) == wanted), None)
    if found is None:
        what = f"llama.cpp takes every n-th block for full attention (n = {period}), and on this path they come otherwise"
        advice = INSTEAD if stated else f"loop or skip {period} blocks in a row, or {INSTEAD}"
        raise UnsupportedModelError(f"GGUF architecture {arch!r} {CANNOT}: {what}: {advice}")
    return {f"{arch}.{PATTERN_KEY}": Entry(found, GGUFValueType.UINT32)} if stated or found != period else {}


def _value(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def along(reader: GGUFReader, route: Route) -> list[tuple[str, ReaderTensor]]:
    """The tensors of the new file with their names, in the order of the base's file: a block's tensors stand where the block stood."""
    blocks: dict[int, list[tuple[str, ReaderTensor]]] = {}
    ends: tuple[list[tuple[str, ReaderTensor]], list[tuple[str, ReaderTensor]]] = ([], [])
    for tensor in reader.tensors:
        if match := _BLOCK.fullmatch(tensor.name):
            blocks.setdefault(int(match[1]), []).append((match[2], tensor))
        else:
            ends[bool(blocks)].append((tensor.name, tensor))
    path = [(f"blk.{place}.{name}", tensor) for place, block in enumerate(route.path) for name, tensor in blocks[block]]
    return [*ends[0], *path, *ends[1]]


def write_copy(reader: GGUFReader, path: Path, changed: Mapping[str, Entry], tensors: Sequence[tuple[str, Any, Any]]) -> None:
    """A new file with the entries of another, but for those changed, and with these tensors: (name, type, array)."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, _value(reader, "general.architecture"))
    writer.data_alignment = reader.alignment
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.") and len(field.data)}
    kept = {name: Entry(field.contents(), field.types[0], field.types[-1]) for name, field in fields.items() if name not in changed}
    for name, entry in (kept | dict(changed)).items():
        if name != "general.architecture":
            writer.add_key_value(name, entry.value, entry.kind, entry.item if entry.kind == GGUFValueType.ARRAY else None)
    for name, kind, data in tensors:
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, data in tensors:
        writer.write_tensor_data(data)
    writer.close()


def _check(routed: RoutedModel, route: Route, file: Path) -> tuple[float, int]:
    """(largest difference of a logit, tokens compared) between the written file, unpacked by transformers, and the routed model."""
    try:
        loaded, _ = load_base(str(file), routed.model.dtype, routed.device, routed.tokenizer or object())
    except BUILD_ERRORS as error:
        raise inexpressible(routed.config, error, CANNOT) from None
    return difference_from(routed, route, loaded, CANNOT)
