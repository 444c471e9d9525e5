"""Low-rank adapters on the linear maps of wrapped blocks: on while a block runs under one, else nothing of them is computed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from drllm.core.errors import InputError
from drllm.policies.adapter import Adapter

# .adapter: the name of the one that is on in this thread. Sequences under different ones are different sub-batches, so one at a time is.
_running = threading.local()


@contextmanager
def switched_on(adapter: str) -> Iterator[None]:
    """While active, linear maps of this thread add what the adapter holds for them."""
    before, _running.adapter = getattr(_running, "adapter", ""), adapter
    try:
        yield
    finally:
        _running.adapter = before


class AdaptedLinear:
    """Stands for a linear map's `forward`: adds scale B A x (..., O) of the adapter that is on, in float32, as PEFT does; x is (..., I)."""

    def __init__(self, module: Any):
        self.original, self.had_own_forward = module.forward, "forward" in vars(module)  # accelerate's device hooks put one there
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}  # by the adapter's name: A (r, I), and B times the scale (O, r)

    def __call__(self, x_TI: Tensor) -> Tensor:
        out_TO, pair = self.original(x_TI), self.pairs.get(getattr(_running, "adapter", ""))
        if pair is None:
            return out_TO
        a, b = pair
        return (out_TO + linear(linear(x_TI.to(a.dtype), a), b)).to(out_TO.dtype)


def adopt(blocks: nn.ModuleList, adapter: Adapter) -> None:
    """Put an adapter's weights at the linear maps they are for; `InputError` where these blocks have no such map."""
    found: list[tuple[Any, Tensor, Tensor]] = []
    for (block, name), (a, b) in adapter.weights.items():
        module = dict(blocks[block].named_modules()).get(name) if block < len(blocks) else None
        if not isinstance(module, nn.Linear) or (module.out_features, module.in_features) != (b.shape[0], a.shape[1]):
            shape = f"{b.shape[0]} x {a.shape[1]}"
            raise InputError(f"the adapter is for a linear map {name} of {shape} in block {block}, which is not there: load its base")
        found.append((module, a, b))
    for module, a, b in found:
        if not isinstance(stands := vars(module).get("forward"), AdaptedLinear):
            stands = module.forward = AdaptedLinear(module)
        device = module.weight.device
        stands.pairs[adapter.name] = (a.to(device).float(), adapter.scale * b.to(device).float())


def drop_all(blocks: nn.ModuleList) -> None:
    """Take every adapter off some blocks."""
    for module in blocks.modules():
        if isinstance(stands := vars(module).get("forward"), AdaptedLinear):
            give_back(module, stands)


def give_back(module: Any, stands: Any) -> None:
    """Give a module its own forward back, which something stands before that has kept it."""
    if stands.had_own_forward:
        module.forward = stands.original
    else:
        del module.forward
