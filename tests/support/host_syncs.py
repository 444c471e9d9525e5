"""Counts what would make a GPU's host wait, on tensors of the CPU: there the same calls are made, and cost nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Called from Python, with values that only the host can use; and operations whose result's size depends on the values.
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero", "unique")
SIZED = ("nonzero", "masked_select", "_unique2", "unique_consecutive", "equal", "is_nonzero", "_local_scalar_dense")


class _Reads(TorchFunctionMode):
    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(function, "__name__", "")) in READS:
            self.found[name] += 1
            with torch._C.DisableTorchFunction():  # what it is made of is one wait
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


class _Sized(TorchDispatchMode):
    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        picks = name in ("index", "index_put", "index_put_") and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1] if one is not None
        )
        if name in SIZED or picks:
            self.found[f"aten.{name}"] += 1
        return function(*args, **(kwargs or {}))


class HostSyncs:
    """Counts while it is open: `found`, by name."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._modes = (_Reads(self.found), _Sized(self.found))

    def __enter__(self) -> Counter[str]:
        for mode in self._modes:
            mode.__enter__()
        return self.found

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
