"""GGUF to GGUF: the base's own file with its blocks in another order, quantised tensors bit for bit, for llama.cpp and Ollama.

A block that runs again is stored again: llama.cpp refuses a tensor whose offset is not the sum of the sizes before it.
"""

import re
from pathlib import Path

from drllm.core.errors import ArtifactError, InputError, UnsupportedModelError
from drllm.core.files import write_text
from drllm.core.route import Route
from drllm.deploy.formats.folder import (
    Exported,
    end_of_card,
    finish,
    heading,
    in_another_order,
    made_by,
    made_of,
    new_folder,
    size_line,
    title,
)
from drllm.model.equal_logits import BUILD_ERRORS, INSTEAD, difference_from, inexpressible
from drllm.model.gguf_header import (
    PATTERN_KEY,
    STATES_PERIOD,
    UINT32,
    Entry,
    Header,
    StoredTensor,
    list_entry,
    number_entry,
    read_header,
    same_bytes,
    sliding,
    text_entry,
    write_copy,
)
from drllm.model.load import gguf_path, load_base
from drllm.model.routed import RoutedModel

CANNOT = "cannot express this route as a GGUF file"
# llama.cpp's names, by its source of build 10257: those in which a block is what its own tensors and the arrays by layer say ...
PLAIN = frozenset(
    {"llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "phi3", "falcon", "stablelm", "gpt2", "starcoder2", "nemotron", "bloom"}
)
# ... and those in which every n-th block is full attention (llama.cpp passes over a list of the sliding ones); and the number of blocks
# by which llama.cpp takes a model for the largest of its family, whose attention it scales otherwise.
PERIODS = {"gemma2": 2, "gemma3": 6}
LARGEST = {"gemma2": 46, "gemma3": 62}
NOT_BY_LAYER = ("rope.dimension_sections",)  # arrays that may have as many entries as there are blocks by accident
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def write_gguf(routed: RoutedModel, route: Route, folder: Path) -> Exported:
    """The .gguf file, a Modelfile for Ollama and README; see `drllm.deploy.export.export`.

    Raises:
        InputError: the base was not loaded from a GGUF file.
        UnsupportedModelError: an architecture of llama.cpp in which a block's place decides what it computes.
    """
    source = gguf_path(routed.base_id) if routed.base_id else None
    if source is None:
        raise InputError(f"the base {title(routed)!r} is no .gguf file: export a checkpoint, then convert it (docs/export.md)")
    header = read_header(source)
    entries = changed_entries(header, route) | {"drllm.route": text_entry(str(route)), "drllm.base": text_entry(routed.fingerprint)}
    tensors = along(header, route)
    with new_folder(folder) as place:
        file = place / f"{folder.name}.gguf"
        write_copy(header, file, header.entries | entries, tensors)
        written = read_header(file)
        _compare(header, written, tensors)
        difference, n_checked = _check(routed, route, file)
        again = {name for name, tensor in tensors if name != tensor.name and _is_later(name, route)}
        copied = sum(tensor.n_bytes for name, tensor in tensors if name in again)
        done = Exported(folder, str(route), route.n_passes, file.stat().st_size, copied, difference, n_checked, "gguf")
        write_text(place / "Modelfile", f"# ollama create {folder.name} -f Modelfile\nFROM ./{file.name}\n")
        finish(place, routed, done, _readme(routed, route, done, len(tensors)))
    return done


def changed_entries(header: Header, route: Route) -> dict[str, Entry]:
    """The entries of the metadata that follow the path: the number of blocks, every array by layer, and the period of windows.

    Raises:
        UnsupportedModelError: llama.cpp decides by a block's place or by the number of blocks what a block computes.
    """
    arch = header.architecture
    if arch not in PLAIN and arch not in PERIODS:
        known = ", ".join(sorted(PLAIN | PERIODS.keys()))
        raise UnsupportedModelError(f"GGUF architecture {arch!r} {CANNOT}: its code in llama.cpp was not read; these were: {known}")
    n_layers, key = len(route), f"{arch}.block_count"
    stated = header.entries.get(key)
    if stated is None or stated.value != n_layers or "split.count" in header.entries:
        found = "is one of several" if "split.count" in header.entries else f"states {stated.value if stated else 'no number of'} blocks"
        raise ArtifactError(f"{header.path} {found}, expected one file of {n_layers} blocks: merge the parts (llama-gguf-split --merge)")
    if (largest := LARGEST.get(arch)) and route.n_passes != n_layers and largest in (n_layers, route.n_passes):
        what = f"llama.cpp scales the attention of a {arch} of {largest} blocks otherwise, and this one would go from {n_layers}"
        raise UnsupportedModelError(f"GGUF architecture {arch!r} {CANNOT}: {what} to {route.n_passes}; {INSTEAD}")
    changed = {key: number_entry(stated.kind, route.n_passes)}
    for name, entry in header.entries.items():
        by_layer = name.startswith(f"{arch}.") and not name.endswith(NOT_BY_LAYER)
        if by_layer and entry.is_list and entry.item_kind is not None and len(entry.value) == n_layers:
            changed[name] = list_entry(entry.item_kind, [entry.value[block] for block in route.path])
    return changed | _windows(header, route)


def _windows(header: Header, route: Route) -> dict[str, Entry]:
    """The period at which the blocks of the path are full attention, where it is not the usual one.

    Raises:
        UnsupportedModelError: they do not come at even steps, or llama.cpp was not seen to read a period of this architecture.
    """
    arch, window = header.architecture, header.of_architecture("attention.sliding_window")
    if arch not in PERIODS or not (arch == "gemma2" or (window and window.value)):
        return {}
    stated = header.of_architecture(PATTERN_KEY)
    if stated and stated.is_list and len(stated.value) != len(route):
        raise ArtifactError(f"{header.path} lists windows of {len(stated.value)} blocks, expected {len(route)}: get a complete copy")
    period = PERIODS[arch] if stated is None or stated.is_list else int(stated.value)
    own = list(map(bool, stated.value)) if stated and stated.is_list else sliding(len(route), period)
    wanted = [own[block] for block in route.path]
    usual = arch in STATES_PERIOD or period == PERIODS[arch]
    tried = (period, *range(route.n_passes + 2)) if arch in STATES_PERIOD else (period,) * usual
    found = next((n for n in tried if sliding(route.n_passes, n) == wanted), None)
    if found is None:
        what = f"llama.cpp takes every n-th block for full attention (n = {period}), and on this path they come otherwise"
        advice = INSTEAD if stated else f"loop or skip {period} blocks in a row, or {INSTEAD}"
        raise UnsupportedModelError(f"GGUF architecture {arch!r} {CANNOT}: {what}: {advice}")
    return {f"{arch}.{PATTERN_KEY}": number_entry(UINT32, found)} if stated or found != period else {}


def along(header: Header, route: Route) -> list[tuple[str, StoredTensor]]:
    """The tensors of the new file with their names, in the order of the base's file: a block's tensors stand where the block stood."""
    blocks: dict[int, list[tuple[str, StoredTensor]]] = {}
    ends: tuple[list[tuple[str, StoredTensor]], list[tuple[str, StoredTensor]]] = ([], [])
    for tensor in header.tensors:
        if match := _BLOCK.fullmatch(tensor.name):
            blocks.setdefault(int(match[1]), []).append((match[2], tensor))
        else:
            ends[bool(blocks)].append((tensor.name, tensor))
    if sorted(blocks) != list(range(len(route))):
        raise ArtifactError(f"{header.path} holds tensors of {len(blocks)} blocks, expected {len(route)}: get a complete copy")
    path = [(f"blk.{place}.{name}", tensor) for place, block in enumerate(route.path) for name, tensor in blocks[block]]
    return [*ends[0], *path, *ends[1]]


def _is_later(name: str, route: Route) -> bool:
    match = _BLOCK.fullmatch(name)
    return match is not None and route.path[int(match[1])] in route.path[: int(match[1])]


def _compare(header: Header, written: Header, tensors: list[tuple[str, StoredTensor]]) -> None:
    twins = {tensor.name: tensor for tensor in written.tensors}
    if wrong := [name for name, tensor in tensors if name not in twins or not same_bytes(header, tensor, written, twins[name])]:
        raise ArtifactError(f"tensor {wrong[0]!r} was not written as it was read: check the disk and export again")


def _check(routed: RoutedModel, route: Route, file: Path) -> tuple[float, int]:
    """(largest difference of a logit, tokens compared) between the written file, unpacked by transformers, and the routed model."""
    try:
        loaded, _ = load_base(str(file), routed.model.dtype, routed.device, routed.tokenizer or object())
    except BUILD_ERRORS as error:
        raise inexpressible(routed.config, error, CANNOT) from None
    return difference_from(routed, route, loaded, CANNOT)


def _readme(routed: RoutedModel, route: Route, done: Exported, n_tensors: int) -> str:
    """What the file is, for whoever finds it."""
    name, order = done.folder.name, in_another_order(routed, route, done, "base file's own tensors")
    return (
        f"{heading(routed, route, 'gguf')}{order}; nothing was trained, and nothing was quantised again.\n\n"
        f"```\nllama-cli -m {name}.gguf\nollama create {name} -f Modelfile && ollama run {name}\n```\n\n"
        f"{made_of(routed, route, 'unpacked weights')}{made_by(routed, route, done)}"
        f"{size_line(done, 'size', 'llama.cpp reads no tensor under two names')}"
        f"- {n_tensors} tensors, each compared with the base's byte for byte\n{end_of_card(routed, done)}"
    )
