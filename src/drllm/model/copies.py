"""Copies of the base: with the blocks of one path alone, in another float type; and whether an export's logits are the route's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from drllm.core.errors import DrllmError, InputError, UnsupportedModelError
from drllm.core.route import Route
from drllm.model.adapters import drop_all
from drllm.model.blocks import RoutedBlock
from drllm.model.load import is_out_of_memory
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import QUANTIZATION_ENTRIES

INDEX_LISTS = ("mlp_only_layers", "moe_layers")  # of mixtures: which blocks, not one entry a block
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}  # of the largest logit; below, what two kernels may differ by
HALF_TOLERANCE = 2e-2
MAX_CHECKED = 2048  # tokens of the check, if a sliding window makes it long
# What a family's own code raises on a configuration that it cannot build, or on weights that do not fit it.
BUILD_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, StrictDataclassError)
INSTEAD = "serve it with drllm instead"


def path_config(model: Any, path: Sequence[int]) -> Any:
    """The base's configuration with the blocks of a path: their number, and every list and count that says which block is which."""
    config = copy.deepcopy(model.config)
    config.name_or_path = ""
    for name in QUANTIZATION_ENTRIES:  # of a GGUF file, whose weights are dense by now
        if hasattr(config, name):
            delattr(config, name)
    text = config.get_text_config(decoder=True)
    n_layers = text.num_hidden_layers
    fields = vars(text)
    for name, value in list(fields.items()):
        if name in INDEX_LISTS and isinstance(value, list):
            fields[name] = [place for place, block in enumerate(path) if block in value]
        elif isinstance(value, list | tuple) and len(value) == n_layers and name != "architectures" and not name.endswith("token_id"):
            # Not setattr: strict configurations compare lists with num_hidden_layers on the way.
            fields[name] = type(value)(value[block] for block in path)
    if isinstance(n_dense := fields.get("first_k_dense_replace"), int):  # a count of leading blocks
        fields["first_k_dense_replace"] = sum(block < n_dense for block in path)
    fields[text.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(path)
    return config


def block_list(routed: RoutedModel) -> str:
    """The name of the list that holds the blocks, such as "model.layers"."""
    return next(name for name, module in routed.model.named_modules() if module is routed.blocks)


def plain_twin(routed: RoutedModel) -> Any:
    """The base as it was before it was wrapped, sharing its weights, frozen; its modules and its configuration are its own."""
    model: Any = routed.model
    shared: dict[int, Any] = {id(part): part for part in (*model.parameters(), *model.buffers())}
    shared |= {id(part): nn.Parameter(part.detach(), requires_grad=False) for part in model.parameters() if type(part) is nn.Parameter}
    twin = copy.deepcopy(model, shared)
    blocks = twin.get_submodule(block_list(routed))
    drop_all(blocks)
    for index, block in enumerate(blocks):
        if not isinstance(stands := vars(block).get("forward"), RoutedBlock):
            raise InputError(f"block {index} was hooked after wrapping: remove that hook first")
        stands.remove()  # the twin's own, which gives a hook of before back
    return twin


def shortened(routed: RoutedModel, route: Route) -> Any:
    """The blocks of a path in its order, in a transformers model that shares the base's weights; a block that runs again is one module.

    It uses no cache: blocks keep the numbers by which they would look for their slots.
    """
    twin, name = plain_twin(routed), block_list(routed)
    blocks = twin.get_submodule(name)
    twin.set_submodule(name, nn.ModuleList([blocks[block] for block in route.path]))
    text = vars(twin.config.get_text_config(decoder=True))
    text |= vars(path_config(routed.model, route.path).get_text_config(decoder=True)) | {"use_cache": False}
    return twin


def twin_in(routed: RoutedModel, dtype: torch.dtype) -> RoutedModel:
    """A routed copy of a model in another float type, without a policy, for checks; the model itself is left as it is.

    The weights of its blocks are the model's own, converted while a block runs: so it costs the memory of one block, the embedding and the
    head. A model with packed weights is copied whole.
    """
    held = [*routed.model.parameters(), *routed.model.buffers()]
    if any(type(part) not in (nn.Parameter, Tensor) for part in held):
        model: Any = copy.deepcopy(routed, {id(routed.tokenizer): routed.tokenizer}).unwrap().to(dtype)
    else:
        model = _converted(routed, dtype)
    twin = RoutedModel.wrap(model, routed.tokenizer)
    for adapter in routed.adapters.values():
        twin.adopt(adapter)
    return twin


def _converted(routed: RoutedModel, dtype: torch.dtype) -> Any:
    own = routed.model.dtype
    in_blocks = {id(parameter) for block in routed.blocks for parameter in block.parameters()}
    shared: dict[int, Any] = {id(routed.tokenizer): routed.tokenizer}
    for parameter in routed.model.parameters():
        converts = parameter.dtype == own and id(parameter) not in in_blocks
        data = parameter.detach().to(dtype) if converts else parameter.detach()
        shared[id(parameter)] = nn.Parameter(data, requires_grad=False)
    for name, buffer in routed.model.named_buffers():
        if buffer.dtype == own and "inv_freq" not in name:  # rotary frequencies are float32 in transformers' bfloat16 models, too
            shared[id(buffer)] = buffer.to(dtype)
    twin = copy.deepcopy(routed, shared)
    model = twin.unwrap()
    spare: dict[tuple[str, torch.Size, torch.device], Tensor] = {}
    for block in twin.blocks:
        block.forward = _Converting(block, own, dtype, spare)
    return model


class _Converting:
    """A block's forward with its weights in another type while it runs.

    They are written to `spare`, which all blocks share: one runs at a time, and new memory for each would take longer than converting.
    """

    def __init__(self, block: nn.Module, own: torch.dtype, dtype: torch.dtype, spare: dict[tuple[str, torch.Size, torch.device], Tensor]):
        self._forward: Callable[..., Any] = block.forward
        self._dtype, self._spare = dtype, spare
        self._weights = [(name, parameter) for name, parameter in block.named_parameters() if parameter.dtype == own]
        update_wrapper(self, self._forward)  # `inspect.signature` finds the block's own arguments

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kept = [parameter.data for _, parameter in self._weights]
        try:
            for (name, parameter), weight in zip(self._weights, kept, strict=True):
                key = name, weight.shape, weight.device
                if key not in self._spare:
                    self._spare[key] = torch.empty_like(weight, dtype=self._dtype)
                parameter.data = self._spare[key].copy_(weight)
            return self._forward(*args, **kwargs)
        finally:
            for (_, parameter), weight in zip(self._weights, kept, strict=True):
                parameter.data = weight


def checked_ids(routed: RoutedModel) -> Tensor:
    """Random tokens (1, T), past a sliding window where there is one that is not too long."""
    text = routed.config
    windows = [value for name in ("sliding_window", "attention_window_size") if isinstance(value := getattr(text, name, None), int)]
    return random_ids(routed, max([16, *(window + 8 for window in windows if window + 8 <= MAX_CHECKED)]))


def random_ids(routed: RoutedModel, n_tokens: int) -> Tensor:
    """The same random tokens each time (1, T), no more than the model has positions for."""
    n_tokens = min(n_tokens, getattr(routed.config, "max_position_embeddings", None) or n_tokens)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, routed.model.get_input_embeddings().num_embeddings, (1, n_tokens), generator=generator).to(routed.device)


@torch.no_grad()
def difference_from(routed: RoutedModel, route: Route, loaded: Any, cannot: str, merged: bool = False) -> tuple[float, int]:
    """(largest difference of a logit, tokens compared) of a loaded export; `UnsupportedModelError`, saying what it `cannot`, for more.

    Where 16-bit weights have an adapter `merged` into them both compute in float32, and the loaded model stays so. They are not the same
    arithmetic, and two computations of one function differ by more in bfloat16 than a merge rounds: SmolLM2 from itself by 1.4.
    """
    ids = checked_ids(routed)
    stock = loaded.model if isinstance(loaded, RoutedModel) else loaded
    exact = merged and routed.model.dtype not in TOLERANCE
    wanted = (twin_in(routed, torch.float32) if exact else routed)(ids, routes=route).logits.float()
    try:
        if exact:
            stock.float()
        got = loaded(ids.to(stock.get_input_embeddings().weight.device)).logits.float().to(wanted.device)
    except BUILD_ERRORS as error:
        raise inexpressible(routed.config, error, cannot) from None
    return compared(got, wanted, routed, cannot), ids.shape[1]


def compared(got: Tensor, wanted: Tensor, routed: RoutedModel, cannot: str) -> float:
    """The largest difference of two logits; `UnsupportedModelError` for more than rounding, `InputError` for any that is not finite."""
    if not bool(wanted.isfinite().all()):
        raise InputError("the route's logits are NaN or infinite: load the base in bfloat16 or float32")
    difference = float((got - wanted).abs().max())
    if not difference <= TOLERANCE.get(routed.model.dtype, HALF_TOLERANCE) * max(1.0, float(wanted.abs().max())):
        what = f"model_type {routed.config.model_type!r} {cannot}: its logits are off by {difference:.3g}"
        raise UnsupportedModelError(f"{what}, since a block's place decides what it computes; {INSTEAD}")
    return difference


def inexpressible(config: Any, error: Exception, cannot: str) -> DrllmError:
    """The error to raise where a family's or another package's code fails on an export."""
    reason = " ".join(str(error).split())[:160]
    if is_out_of_memory(error):
        return InputError(f"out of memory ({reason}): an export needs room for a second copy of the weights; nothing was written")
    return UnsupportedModelError(f"model_type {config.model_type!r} {cannot} ({reason}): {INSTEAD}")
