"""Linear maps whose bfloat16 weights lie in memory as oneDNN multiplies them: the same bits, without laying them out again at each call.

For work that computes and never trains, on a CPU. The plain weights stay where they are, so it costs the linear maps' memory once more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drllm.model.adapters import AdaptedLinear, give_back

OPS: Any = torch.ops.mkldnn
CHECKED = (2, 7, 16, 33, 64, 257, 512)  # rows of the products that are compared
SMALL = 4096  # rows times inputs times outputs up to which torch does not ask oneDNN
CGROUP = Path("/sys/fs/cgroup")  # says how much memory a container may have, and how much it has


class LaidOutLinear:
    """Stands for a linear map's `forward`; x is (..., I).

    The plain weights are used where torch would multiply in another way, which rounds otherwise: for another type, one row, few numbers, or
    rows that do not lie one behind the other; and while gradients are recorded.
    """

    had_own_forward = False

    def __init__(self, module: nn.Linear, original: Callable[[Tensor], Tensor]):
        self.original, self.bias, self.n_out = original, module.bias, module.out_features
        self.weight = OPS._reorder_linear_weight(module.weight.detach())

    def __call__(self, x: Tensor) -> Tensor:
        is_alike = x.dtype == torch.bfloat16 and x.dim() in (2, 3) and x.is_contiguous() and not torch.is_grad_enabled()
        if not is_alike or x.numel() == x.shape[-1] or x.numel() * self.n_out <= SMALL:
            return self.original(x)
        return OPS._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module computes with its own weights, which may be converted."""
        return copy.deepcopy(self.original, memo)


@contextmanager
def laid_out(model: nn.Module) -> Iterator[None]:
    """While active, a model's linear maps take such weights, as `lay_out` says."""
    placed = lay_out(model)
    try:
        yield
    finally:
        _undo(placed)


def lay_out(model: nn.Module, n_processes: int = 1) -> list[tuple[Any, LaidOutLinear]]:
    """Give linear maps in bfloat16 on the CPU such weights: which took them.

    None where memory has no room for it in so many processes, or this torch has no such operators; a map whose products have other bits
    with as many threads as torch has now is left out.
    """
    modules: list[Any] = [module for module in model.modules() if _can_be(module)]
    if not modules or not _is_there() or (1 + n_processes) * sum(module.weight.nbytes for module in modules) > _free_bytes():
        return []
    placed: list[tuple[Any, LaidOutLinear]] = []
    try:
        for module in modules:
            if _is_same(*module.weight.shape, module.bias is not None, torch.get_num_threads()):
                adapted = vars(module).get("forward")
                one = LaidOutLinear(module, adapted.original if adapted else module.forward)
                placed.append((module, one))
                if adapted:
                    adapted.original = one
                else:
                    module.forward = one
    except BaseException:
        _undo(placed)
        raise
    return placed


def _undo(placed: list[tuple[Any, LaidOutLinear]]) -> None:
    for module, one in placed:
        stands = vars(module).get("forward")
        if stands is one:
            give_back(module, one)
        elif getattr(stands, "original", None) is one:  # an adapter, perhaps one that came meanwhile
            stands.original, stands.had_own_forward = one.original, False


def _can_be(module: Any) -> bool:
    """A plain linear map, whose forward nothing but an adapter stands for."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or not module.weight.numel():
        return False
    stands = vars(module).get("forward")
    is_own = stands is None or (isinstance(stands, AdaptedLinear) and not stands.had_own_forward)
    return is_own and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"


@cache
@torch.no_grad()
def _is_same(n_out: int, n_in: int, has_bias: bool, n_threads: int) -> bool:
    """Whether products of this shape have the same bits, of sums that cancel: nothing is left of them but how they were rounded."""
    generator, half = torch.Generator().manual_seed(n_threads), n_in // 2
    order = torch.randperm(half, generator=generator)
    module = nn.Linear(n_in, n_out, has_bias, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    some = torch.randn(min(n_out, 1024), n_in, generator=generator).bfloat16()
    module.weight.copy_(some.repeat(-(-n_out // len(some)), 1)[:n_out])
    if has_bias:
        module.bias.zero_()
    module.weight[:, half : 2 * half] = module.weight[:, :half][:, order]
    one = LaidOutLinear(module, module.forward)
    for rows in CHECKED:
        x = torch.randn(rows, n_in, generator=generator).bfloat16()
        x[:, half : 2 * half] = -x[:, :half][:, order]
        if not torch.equal(one(x), module(x)):
            return False
    return True


def _is_there() -> bool:
    """Whether this torch multiplies 16-bit numbers by oneDNN, and has the operators, which are not public."""
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    mkldnn: Any = torch.backends.mkldnn
    has = mkldnn.is_available() and mkldnn.enabled and all(hasattr(OPS, name) for name in names)
    return has and bool(OPS._is_mkldnn_bf16_supported())


def _free_bytes() -> int:
    """Memory that a process can still have, where Linux says it; else 0."""
    file = Path("/proc/meminfo")
    lines = dict(line.split(":") for line in file.read_text().splitlines()) if file.is_file() else {}
    left = [1024 * int(lines.get("MemAvailable", "0 kB").split()[0])]
    most = CGROUP / "memory.max"
    if most.is_file() and (limit := most.read_text().strip()).isdigit():
        left.append(int(limit) - int((CGROUP / "memory.current").read_text()))
    return min(left)
