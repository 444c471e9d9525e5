"""Linear maps whose 16-bit weights lie in memory as oneDNN multiplies them: the same bits, without laying them out again at each call.

For work that computes and never trains. The plain weights stay where they are, so it costs the linear maps' memory once more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drllm.model.adapters import AdaptedLinear, give_back

CHECKED = (1, 7, 64)  # rows of the product that is compared


class LaidOutLinear:
    """Stands for a linear map's `forward`; x is (..., I).

    The plain weights are used for another type, while gradients are recorded, and where torch adds the bias in a step of its own.
    """

    had_own_forward = False

    def __init__(self, module: nn.Linear, original: Callable[[Tensor], Tensor]):
        self.original, self.bias = original, module.bias
        self.weight = _ops()._reorder_linear_weight(module.weight.detach())

    def __call__(self, x: Tensor) -> Tensor:
        is_one_step = self.bias is None or (x.dim() in (2, 3) and x.is_contiguous())
        if x.dtype != torch.bfloat16 or torch.is_grad_enabled() or not is_one_step:
            return self.original(x)
        return _ops()._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module computes with its own weights, which may be converted."""
        return copy.deepcopy(self.original, memo)


def lay_out(model: nn.Module) -> list[tuple[Any, LaidOutLinear]]:
    """Give linear maps in bfloat16 on the CPU such weights: which took them.

    None where memory has no room, or this torch has no such operators; a map whose product has other bits is left out.
    """
    modules: list[Any] = [module for module in model.modules() if _can_be(module)]
    if not modules or not _is_there() or 2 * sum(module.weight.nbytes for module in modules) > _free_bytes():
        return []
    are_same: dict[tuple[int, ...], bool] = {}  # by the shape of the weights
    placed: list[tuple[Any, LaidOutLinear]] = []
    for module in modules:
        adapted = vars(module).get("forward")
        one = LaidOutLinear(module, adapted.original if adapted else module.forward)
        if (shape := tuple(module.weight.shape)) not in are_same:
            are_same[shape] = _is_same(one, module.in_features)
        if are_same[shape]:
            placed.append((module, one))
            if adapted:
                adapted.original = one
            else:
                module.forward = one
    return placed


@contextmanager
def laid_out(model: nn.Module) -> Iterator[None]:
    """Such weights while this is open."""
    placed = lay_out(model)
    try:
        yield
    finally:
        for module, one in placed:
            if module.forward is one:
                give_back(module, one)
            else:
                module.forward.original = one.original


def _can_be(module: Any) -> bool:
    """A plain linear map; not one with a hook around its forward, other than an adapter's."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
        return False
    if "forward" in vars(module) and not isinstance(module.forward, AdaptedLinear):
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"


@torch.no_grad()
def _is_same(one: LaidOutLinear, n: int) -> bool:
    rows = [torch.randn(m, n, generator=torch.Generator().manual_seed(m)).bfloat16() for m in CHECKED]
    return all(torch.equal(one(x), one.original(x)) for x in rows)


def _ops() -> Any:
    return torch.ops.mkldnn


def _is_there() -> bool:
    """Whether this torch multiplies 16-bit numbers by oneDNN, and has the two operators, which are not public."""
    has = torch.backends.mkldnn.is_available() and all(hasattr(_ops(), name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return has and bool(_ops()._is_mkldnn_bf16_supported())


def _free_bytes() -> int:
    """Memory that a process can still have, where Linux says it; else 0."""
    file = Path("/proc/meminfo")
    lines = dict(line.split(":") for line in file.read_text().splitlines()) if file.is_file() else {}
    return 1024 * int(lines.get("MemAvailable", "0 kB").split()[0])
