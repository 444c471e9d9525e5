"""Freed memory is handed back to the system."""

import sys
from pathlib import Path

import pytest
import torch

from drllm.model.memory import give_memory_back


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_freed_between_what_is_kept_goes_back():
    """Blocks of 100 KB, which the allocator keeps in its heap; every hundredth stays, so that the heap cannot shrink from its end."""
    blocks = [torch.ones(25_000) for _ in range(2000)]
    kept = blocks[::100]
    before = resident()
    del blocks
    freed = resident()
    if not give_memory_back():
        pytest.skip("not glibc")
    after = resident()
    assert before - after > 0.7 * 2000 * 100_000
    assert after <= freed
    assert all(float(block.sum()) == 25_000 for block in kept)
