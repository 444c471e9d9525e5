"""A copy of a routed model in another float type, for checks: the weights of its blocks are the model's own, converted while a block runs.

So a twin costs the memory of one block, the embedding and the head, not that of a second model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn

from drllm.model.routed import RoutedModel


def float32_twin(routed: RoutedModel) -> RoutedModel:
    """A routed copy of a model in float32; the model itself is left as it is."""
    return twin_in(routed, torch.float32)


def twin_in(routed: RoutedModel, dtype: torch.dtype) -> RoutedModel:
    """A routed copy of a model in another float type, without a policy; the model itself is left as it is.

    What the model holds in its own type is converted, but the frequencies of rotary positions, which transformers keeps in float32 in a
    bfloat16 model, too. A model with packed weights is copied whole.
    """
    held = [*routed.model.parameters(), *routed.model.buffers()]
    if any(type(part) not in (nn.Parameter, Tensor) for part in held):
        whole = copy.deepcopy(routed, {id(routed.tokenizer): routed.tokenizer}).unwrap()
        return _with_adapters(RoutedModel.wrap(whole.to(dtype), routed.tokenizer), routed)
    own = routed.model.dtype
    in_blocks = {id(parameter) for block in routed.blocks for parameter in block.parameters()}
    shared: dict[int, Any] = {id(routed.tokenizer): routed.tokenizer}
    for parameter in routed.model.parameters():
        converts = parameter.dtype == own and id(parameter) not in in_blocks
        data = parameter.detach().to(dtype) if converts else parameter.detach()
        shared[id(parameter)] = nn.Parameter(data, requires_grad=False)
    for name, buffer in routed.model.named_buffers():
        if buffer.dtype == own and "inv_freq" not in name:
            shared[id(buffer)] = buffer.to(dtype)
    twin = copy.deepcopy(routed, shared)
    model: Any = twin.unwrap()
    spare: dict[tuple[str, torch.Size], Tensor] = {}
    for block in twin.blocks:
        block.forward = _Converting(block, own, dtype, spare)
    return _with_adapters(RoutedModel.wrap(model, routed.tokenizer), routed)


def _with_adapters(twin: RoutedModel, routed: RoutedModel) -> RoutedModel:
    for adapter in routed.adapters.values():
        twin.adopt(adapter)
    return twin


class _Converting:
    """A block's forward with its weights in another type while it runs.

    They are written to `spare`, which the blocks of a twin share: one runs at a time, and new memory for each would take longer than the
    conversion.
    """

    def __init__(self, block: nn.Module, own: torch.dtype, dtype: torch.dtype, spare: dict[tuple[str, torch.Size], Tensor]):
        self._forward: Callable[..., Any] = block.forward
        self._dtype, self._spare = dtype, spare
        self._weights = [(name, parameter) for name, parameter in block.named_parameters() if parameter.dtype == own]
        update_wrapper(self, self._forward)  # `inspect.signature` finds the block's own arguments

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kept = [parameter.data for _, parameter in self._weights]
        try:
            for (name, parameter), weight in zip(self._weights, kept, strict=True):
                parameter.data = self._place(name, weight).copy_(weight)
            return self._forward(*args, **kwargs)
        finally:
            for (_, parameter), weight in zip(self._weights, kept, strict=True):
                parameter.data = weight

    def _place(self, name: str, weight: Tensor) -> Tensor:
        place = self._spare.get((name, weight.shape))
        if place is None or place.device != weight.device:
            place = self._spare[name, weight.shape] = torch.empty_like(weight, dtype=self._dtype)
        return place
