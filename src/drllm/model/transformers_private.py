"""Every part of transformers, accelerate and torch that drllm relies on and that a release may change without a word.

Checked on transformers 5.19 and 5.24, accelerate 1.15 and torch 2.13; `tests/model/test_transformers_private.py` names in one line what a
release has changed. Shapes: B sequences, H heads, T tokens, S size of a head.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.configuration_utils import PreTrainedConfig

Slot = DynamicLayer
# Keys and values of their own block, nothing recurrent. The last, keys plus an index for sparse attention, came with transformers 5.2x.
SUPPORTED_SLOTS = (DynamicLayer, DynamicSlidingWindowLayer, getattr(cache_utils, "DynamicIndexedLayer", DynamicLayer))
FORWARD_NAMES = ("forward", "_old_forward")  # the second is where accelerate's hooks keep a module's own forward
QUANTIZATION_ENTRIES = ("quantization_config", "_pre_quantization_dtype")  # of a configuration


def family_slots(config: PreTrainedConfig, n_layers: int) -> list[Any]:
    """One empty slot a block, as the family's own cache makes them."""
    return list(DynamicCache(config=config).layers) or [DynamicLayer() for _ in range(n_layers)]


def is_window(slot: Any) -> bool:
    """Whether a slot keeps a sliding window's tokens alone."""
    return isinstance(slot, DynamicSlidingWindowLayer)


def is_plain(slot: Any) -> bool:
    """Whether a slot keeps the keys and values of all tokens, and nothing else."""
    return type(slot) is DynamicLayer


def mask_sizes(slot: Any, n_seen: int, n_new: int) -> tuple[int, int]:
    """(key length, key offset) that the slot has once `n_new` tokens follow `n_seen`, whether or not it was used before."""
    if not is_window(slot):
        return n_seen + n_new, 0
    probe = copy.copy(slot)
    probe.cumulative_length = n_seen
    return probe.get_mask_sizes(n_new)


def kept_tokens(slot: Any, n_seen: int) -> int:
    """How many of `n_seen` tokens the slot keeps."""
    return min(n_seen, slot.sliding_window - 1) if is_window(slot) else n_seen


def fill(slot: Any, keys_BHTS: Tensor, values_BHTS: Tensor, n_seen: int) -> None:
    """Put keys and values of `n_seen` tokens, those that it keeps, into an empty slot; behind them room, where the slot has some."""
    slot.lazy_initialization(keys_BHTS, values_BHTS)
    if isinstance(slot, RoomySlot):
        slot.take((keys_BHTS, values_BHTS), n_seen)
    else:
        slot.keys, slot.values = keys_BHTS, values_BHTS
    if is_window(slot):
        slot.cumulative_length = n_seen


def keys_values(slot: Any, sequence: int) -> tuple[Tensor, Tensor]:
    """Copies of one sequence's keys and values (H, T, S)."""
    return slot.keys[sequence].clone(), slot.values[sequence].clone()


def select_sequences(slot: Any, places: Sequence[int]) -> None:
    """Keep some sequences of a filled slot, in that order."""
    slot.batch_select_indices(torch.tensor(places, dtype=torch.long, device=slot.keys.device))


def room(slot: Any) -> int:
    """Tokens that the slot is filled with room for."""
    return RoomySlot.ROOM if isinstance(slot, RoomySlot) else 0


class RoomySlot(DynamicLayer):
    """A plain slot with room for the tokens to come: growing by one token otherwise copies all keys and values, every step anew."""

    ROOM = 16  # tokens

    def take(self, roomy: tuple[Tensor, ...], n_tokens: int) -> tuple[Tensor, Tensor]:
        """Hold keys and values of so many tokens, and what room there is behind them."""
        self._roomy = roomy
        keys, values = (whole[..., :n_tokens, :] for whole in roomy)
        self.keys, self.values = keys, values
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, n_new = self.get_seq_length(), key_states.shape[-2]
        if self._roomy[0].shape[-2] < start + n_new:
            room = 0, 0, 0, n_new + self.ROOM
            self._roomy = tuple(torch.nn.functional.pad(whole[..., :start, :], room) for whole in self._roomy)
        for whole, part in zip(self._roomy, (key_states, value_states), strict=True):
            whole[..., start : start + n_new, :] = part
        return self.take(self._roomy, start + n_new)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.take(tuple(whole[indices] for whole in self._roomy), self.get_seq_length())


def cache_argument(forward: Any) -> str:
    """What a forward calls its cache: renamed in transformers 5.2x."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def dense_gguf() -> dict[str, Any]:
    """Options that unpack a GGUF file to dense weights: before 5.2x it always was; later releases keep it packed unless asked."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config is not None else {}


def commit_of(config: Any) -> str | None:
    """The Hub commit that a configuration was loaded from, if it was."""
    return getattr(config, "_commit_hash", None)


def attention_of(config: Any) -> str:
    """The attention implementation in use, such as "sdpa"."""
    return config._attn_implementation


def causal_lm(model: nn.Module) -> Any:
    """The language model itself, inside a compiled module or an adapter, whose own forward takes anything."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A parameter, or the tensors that a wrapper of quantised weights holds, each under a name of its own."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))
