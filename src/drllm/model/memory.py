"""Memory that the allocator keeps, handed back to the system."""

import ctypes
import gc
import sys


def give_memory_back() -> bool:
    """Hand back what was freed but is kept for later (glibc's `malloc_trim`); whether this system can.

    What a sweep leaves in the process that starts workers is some GB on a large model, which the workers need.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return False
    trim(0)
    return True
