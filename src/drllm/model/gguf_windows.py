"""Which blocks of a GGUF file see a sliding window alone, where the file says so. No torch.

The gguf package's reader takes a minute for a vocabulary of 262,000 tokens on a slow core, so the one entry is read where it stands.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian.
"""

import mmap
import struct
from pathlib import Path

PATTERN_KEY = "attention.sliding_window_pattern"  # behind the architecture: a flag a block, or the period of the last that is not sliding
_BOOL, _ARRAY = 7, 9  # types by the format's numbers


def stated_pattern(path: Path) -> tuple[bool, ...] | int | None:
    """A flag a block, or the period of full attention; None where the file states neither. transformers 5.24 reads neither."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (place := data.find(PATTERN_KEY.encode(), 0, 1 << 26)) < 0:
            return None
        place += len(PATTERN_KEY)
        kind, first = struct.unpack_from("<II", data, place)
        if kind != _ARRAY:
            return first
        (size,) = struct.unpack_from("<Q", data, place + 8)
        return tuple(map(bool, struct.unpack_from(f"<{size}{'?' if first == _BOOL else 'I'}", data, place + 16)))


def sliding(n_blocks: int, period: int) -> list[bool]:
    """The pattern that llama.cpp makes of a period: the last of each so many blocks is full attention; 0: none is."""
    return [period == 0 or block % period < period - 1 for block in range(n_blocks)]
