"""What a GGUF file says about itself, and a copy of it with other entries and other tensors. No torch.

A header of 262,000 tokens takes the gguf package's reader a minute on a slow core and this one a second, since it steps over what nobody
asks for. A tensor is the bytes from its offset to the next one's, whatever its type: copies are exact, also of types that come later.
Format: version 2 and 3 of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian.
"""

import itertools
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from drllm.core.errors import ArtifactError

STRING, ARRAY, BOOL, UINT32 = 8, 9, 7, 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_MAGIC = b"GGUF"
_CHUNK = 1 << 24  # bytes copied at a time
# Architectures whose stated period llama.cpp was seen to follow (tests/real/test_real_llama_cpp.py).
STATES_PERIOD = ("gemma3",)
PATTERN_KEY = "attention.sliding_window_pattern"  # behind the architecture: a flag a block, or the period of the last that is not sliding


@dataclass(frozen=True)
class Entry:
    """One entry of the metadata.

    Attributes:
        raw: type and value, as in the file.
        value: a number, a string, or a tuple of numbers; None for arrays of anything else.
        kind, item_kind: types by the format's numbers; the second of an array's items.
    """

    raw: bytes
    value: Any
    kind: int
    item_kind: int | None = None

    @property
    def is_list(self) -> bool:
        """Whether this is an array of numbers or flags."""
        return isinstance(self.value, tuple)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: its name, what the header says of it besides (dimensions and type, raw), and where its bytes lie, padded."""

    name: str
    shape_and_type: bytes
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file."""

    path: Path
    version: int
    entries: dict[str, Entry]
    tensors: tuple[StoredTensor, ...]
    alignment: int = field(default=32)

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the family."""
        entry = self.entries.get("general.architecture")
        return str(entry.value) if entry else ""

    def of_architecture(self, name: str) -> Entry | None:
        """The entry of this name behind the architecture's."""
        return self.entries.get(f"{self.architecture}.{name}")


class _Reader:
    def __init__(self, data: mmap.mmap, place: int):
        self.data, self.place = data, place

    def number(self, code: str) -> Any:
        value = struct.unpack_from(f"<{code}", self.data, self.place)[0]
        self.place += struct.calcsize(f"<{code}")
        return value

    def text(self) -> bytes:
        size = self.number("Q")
        start = self.place
        self.place += size
        if self.place > len(self.data):
            raise struct.error("a string ends behind the file")
        return self.data[start : self.place]

    def entry(self) -> Entry:
        start = self.place
        kind = self.number("I")
        item_kind, value = None, None
        if kind == STRING:
            value = self.text().decode("utf-8", "replace")
        elif kind == ARRAY:
            item_kind, size = self.number("I"), self.number("Q")
            value = self._array(item_kind, size)
        else:
            value = self.number(_SCALARS[kind])
        return Entry(self.data[start : self.place], value, kind, item_kind)

    def _array(self, kind: int, size: int) -> tuple[Any, ...] | None:
        if kind == STRING:
            for _ in range(size):
                self.place += 8 + struct.unpack_from("<Q", self.data, self.place)[0]
            return None
        if kind == ARRAY:
            for _ in range(size):
                self._array(self.number("I"), self.number("Q"))
            return None
        values = struct.unpack_from(f"<{size}{_SCALARS[kind]}", self.data, self.place)
        self.place += struct.calcsize(f"<{size}{_SCALARS[kind]}")
        return values


def read_header(path: Path) -> Header:
    """The header of a GGUF file; `ArtifactError` where it is not one, or is cut off."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ArtifactError(f"{path} is not a readable GGUF file ({error}): get a complete copy") from None


def _parse(path: Path, data: mmap.mmap) -> Header:
    version = struct.unpack_from("<I", data, 4)[0]
    if data[:4] != _MAGIC or version not in (2, 3):
        raise ValueError(f"it begins with {bytes(data[:4])!r} and version {version}, expected {_MAGIC!r} and 2 or 3, little-endian")
    reader = _Reader(data, 8)
    n_tensors, n_entries = reader.number("Q"), reader.number("Q")
    entries = {reader.text().decode("utf-8"): reader.entry() for _ in range(n_entries)}
    found: list[tuple[str, bytes, int]] = []
    for _ in range(n_tensors):
        name, start = reader.text().decode("utf-8"), reader.place
        reader.place += 4 + 8 * struct.unpack_from("<I", data, start)[0] + 4
        found.append((name, data[start : reader.place], reader.number("Q")))
    stated = entries.get("general.alignment")
    alignment = int(stated.value) if stated else 32
    base = reader.place + -reader.place % alignment
    ends = sorted({offset for _, _, offset in found} | {len(data) - base})
    following = dict(itertools.pairwise(ends))
    if ends and ends[-1] != len(data) - base:
        raise ValueError("its tensors end behind the file")
    tensors = tuple(StoredTensor(name, raw, base + offset, following[offset] - offset) for name, raw, offset in found)
    return Header(path, version, entries, tensors, alignment)


def number_entry(kind: int, value: Any) -> Entry:
    """An entry that holds one number or flag."""
    return Entry(struct.pack(f"<I{_SCALARS[kind]}", kind, value), value, kind)


def list_entry(item_kind: int, values: Sequence[Any]) -> Entry:
    """An entry that holds an array of numbers or flags."""
    raw = struct.pack(f"<IIQ{len(values)}{_SCALARS[item_kind]}", ARRAY, item_kind, len(values), *values)
    return Entry(raw, tuple(values), ARRAY, item_kind)


def text_entry(value: str) -> Entry:
    """An entry that holds a string."""
    return Entry(struct.pack("<I", STRING) + _text(value), value, STRING)


def write_copy(header: Header, path: Path, entries: Mapping[str, Entry], tensors: Sequence[tuple[str, StoredTensor]]) -> None:
    """A new file with these entries, and with tensors of the file of `header` under these names, in this order, byte for byte.

    Nothing is held in memory but the header and one piece of a tensor.
    """
    with path.open("wb") as file, header.path.open("rb") as source:
        file.write(_MAGIC + struct.pack("<IQQ", header.version, len(tensors), len(entries)))
        for key, entry in entries.items():
            file.write(_text(key) + entry.raw)
        offset = 0
        for name, tensor in tensors:
            file.write(_text(name) + tensor.shape_and_type + struct.pack("<Q", offset))
            offset += tensor.n_bytes + -tensor.n_bytes % header.alignment
        for _, tensor in tensors:
            file.write(bytes(-file.tell() % header.alignment))
            _copy_bytes(source, file, tensor)
        file.write(bytes(-file.tell() % header.alignment))
        file.flush()
        os.fsync(file.fileno())


def same_bytes(one: Header, tensor: StoredTensor, other: Header, twin: StoredTensor) -> bool:
    """Whether two tensors of two files have the same shape, type and bytes; padding behind the last may differ."""
    if tensor.shape_and_type != twin.shape_and_type or abs(tensor.n_bytes - twin.n_bytes) >= one.alignment:
        return False
    left = min(tensor.n_bytes, twin.n_bytes)
    with one.path.open("rb") as file, other.path.open("rb") as second:
        file.seek(tensor.start)
        second.seek(twin.start)
        while left:
            piece = file.read(min(left, _CHUNK))
            if not piece or piece != second.read(len(piece)):
                return False
            left -= len(piece)
    return True


def _copy_bytes(source: BinaryIO, file: BinaryIO, tensor: StoredTensor) -> None:
    source.seek(tensor.start)
    left = tensor.n_bytes
    while left:
        piece = source.read(min(left, _CHUNK))
        if not piece:
            raise ArtifactError(f"{source.name} ends inside tensor {tensor.name!r}: get a complete copy")
        file.write(piece)
        left -= len(piece)


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def sliding_blocks(path: Path) -> tuple[bool, ...] | None:
    """Which blocks of a GGUF file see a sliding window alone, where it lists them, or a Gemma 3 states their period; else None.

    transformers 5.24 reads neither, and takes each family's usual pattern.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(PATTERN_KEY.encode(), 0, 1 << 26) < 0:
            return None
    header = read_header(path)
    found, count = header.of_architecture(PATTERN_KEY), header.of_architecture("block_count")
    if found is None or found.is_list or count is None:
        return tuple(map(bool, found.value)) if found and found.is_list else None
    return tuple(sliding(count.value, found.value)) if header.architecture in STATES_PERIOD else None


def sliding(n_blocks: int, period: int) -> list[bool]:
    """The pattern that llama.cpp makes of a period: the last of each so many blocks is full attention; 0: none is."""
    return [period == 0 or block % period < period - 1 for block in range(n_blocks)]
