"""Find a model's decoder blocks and stand a `RoutedBlock` before each one's forward. Shapes: B sequences, T tokens, D hidden size."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from drllm.core.errors import InputError, UnsupportedModelError, first_line
from drllm.model.adapters import give_back, switched_on
from drllm.model.cache import RoutedCache
from drllm.model.sub_batches import SubBatch
from drllm.model.transformers_private import FORWARD_NAMES

# Arguments of a block that carry one entry a sequence when their first dimension is B. Chosen by name: a square attention mask or a
# position table may have B entries by accident, and an argument missing here must be refused, never guessed at.
SEQUENCE_ARGUMENTS = frozenset({"attention_mask", "causal_mask", "position_ids", "position_embeddings", "head_mask", "attention_scaling"})
SHARED_ARGUMENTS = frozenset({"cache_position"})


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the only `ModuleList` with as many modules as the model has layers; else `UnsupportedModelError`."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    n_layers = getattr(config, "num_hidden_layers", None)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    # A list nested in a block (experts, heads) is not a candidate: keep the outermost ones.
    outer = [(name, module) for name, module in found if not any(name.startswith(f"{other}.") for other, _ in found)]
    if len(outer) != 1:
        names = ", ".join(name for name, _ in outer) or "none"
        what = f"found {len(outer)} lists of {n_layers} blocks ({names}), expected exactly one"
        raise UnsupportedModelError(f"model_type {config.model_type!r}: {what}; drllm routes decoder-only models with one stack of blocks")
    return outer[0][1]


class RoutedBlock:
    """Stands for one block's `forward`: without a `RoutedCache` among the arguments, the base block, bit for bit.

    With one, it runs what the cache's `sub_batches` say for this block: the block 0, 1 or 2 times, or spans of earlier blocks, each
    only on the sequences whose routes say so. Only the instance's `forward` is replaced: `state_dict` keys, device maps, hooks, adapters
    and `isinstance` checks keep working.
    """

    def __init__(self, block: nn.Module, index: int, returns_tuple: bool):
        self.block: Any = block
        self.index, self.returns_tuple = index, returns_tuple
        self.original: Callable[..., Any] = block.forward
        self.had_own_forward = "forward" in vars(block)  # accelerate's device hooks put one there
        self.parameters = tuple(inspect.signature(self.original).parameters)
        self.all: Mapping[int, RoutedBlock] = {index: self}  # of the model, by their indices
        self.adapters: Mapping[str, Any] = {}  # those that the model has, by their names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = find_cache(args, kwargs)
        if cache is None:
            return self.original(*args, **kwargs)
        if len(args) == 1:
            x_BTD, named = args[0], kwargs
        else:
            named = dict(zip(self.parameters, args, strict=False)) | kwargs
            x_BTD = named.pop(self.parameters[0])
        x_BTD = cache.enter(self.index, x_BTD, named)
        sub_batches = cache.sub_batches[self.index]
        if sub_batches is None:  # nearly every call: nothing is selected, nothing put back
            out = self.original(x_BTD, **named)
            cache.leave(self.index, x_BTD.shape[1])
            return out
        rest = None  # what a block returned beside the states, for families that return tuples
        for part in sub_batches:
            states, rest = self._take(part, cache, x_BTD)
            # A device map may have moved the block's output: the other sequences follow it.
            x_BTD = states if part.picked is None else x_BTD.to(states.device).index_copy(0, part.picked.to(states.device), states)
        cache.leave(self.index, x_BTD.shape[1])
        return (x_BTD, *(rest or (None,))) if self.returns_tuple else x_BTD

    def _take(self, part: SubBatch, cache: RoutedCache, x_BTD: Tensor) -> tuple[Tensor, tuple[Any, ...] | None]:
        before = states = x_BTD if part.picked is None else x_BTD[part.picked]
        rest = None
        for block, n_set in zip(part.span.blocks, part.sets, strict=True):
            named = cache.arguments[block].items()
            passed = {key: _argument(key, value, part.picked, n_set, cache, x_BTD.shape[0]) for key, value in named}
            states, rest = self.all[block].run(states, passed, part.span.adapter)
        if part.span.strength != 1:
            before = before.to(states.device)
            states = before + part.span.strength * (states - before)
        return states, rest

    def run(self, x_BTD: Tensor, arguments: dict[str, Any], adapter: str = "") -> tuple[Tensor, tuple[Any, ...] | None]:
        """One pass of the block, the base's or under an adapter: (states, what families that return tuples return beside them)."""
        if adapter and adapter not in self.adapters:
            raise InputError(f"a route asks for adapter {adapter}, which this model was not given: load the policy that holds it")
        with switched_on(adapter):
            out = self.original(x_BTD, **arguments)
        return (out[0], out[1:]) if isinstance(out, tuple) else (out, None)

    def remove(self) -> None:
        """Give the block its own forward back."""
        give_back(self.block, self)


def _argument(name: str, value: Any, picked: Tensor | None, n_set: int, cache: RoutedCache, n_sequences: int) -> Any:
    if value is cache:
        return cache.slots(n_set)
    if picked is None or value is None or name not in SEQUENCE_ARGUMENTS:
        return value
    return cache.once_a_step(picked, value, lambda: pick_sequences(value, picked, n_sequences))


def find_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> RoutedCache | None:
    """The `RoutedCache` among a block's arguments, found by type: families name the argument differently."""
    return next((value for value in (*kwargs.values(), *args) if isinstance(value, RoutedCache)), None)


def is_routed(block: nn.Module) -> bool:
    """Whether a block is wrapped already, also under an accelerate hook added later."""
    return any(isinstance(vars(block).get(name), RoutedBlock) for name in FORWARD_NAMES)


def pick_sequences(value: Any, picked: Tensor, n_sequences: int) -> Any:
    """What an argument holds for some sequences; a first dimension of 1 is shared by all."""
    if isinstance(value, tuple):
        return tuple(pick_sequences(part, picked, n_sequences) for part in value)
    if isinstance(value, dict):
        return {key: pick_sequences(part, picked, n_sequences) for key, part in value.items()}
    if isinstance(value, Tensor):
        split = value.ndim and value.shape[0] == n_sequences and n_sequences > 1
        return value[picked.to(value.device)] if split else value
    if value is None or isinstance(value, bool | int | float):
        return value
    what = f"a {type(value).__name__} by sequence for a mixed batch"
    raise UnsupportedModelError(f"cannot split {what}: load the model with attn_implementation='sdpa' or 'eager'")


def probe_blocks(model: nn.Module, blocks: nn.ModuleList) -> bool:
    """Run two tokens through the base and refuse, by name, what cannot be routed exactly; return whether blocks return tuples."""
    model_type = model.config.model_type  # type: ignore[union-attr]
    calls: list[tuple[int, Any, dict[str, Any], Any]] = []

    def refuse(why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"model_type {model_type!r} cannot be routed exactly: {why}; see `drllm models` for what can")

    def record(index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        parameters = tuple(inspect.signature(block.forward).parameters)
        named = dict(zip(parameters, args, strict=False)) | kwargs
        calls.append((index, named.pop(parameters[0]), named, out))

    handles = [block.register_forward_hook(partial(record, index), with_kwargs=True) for index, block in enumerate(blocks)]
    modes = [(module, module.training) for module in model.modules()]
    device = model.get_input_embeddings().weight.device  # type: ignore[operator, union-attr]
    try:
        model.eval()
        with torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=device)
            model(ids, attention_mask=torch.ones_like(ids), use_cache=True)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise refuse(f"its forward fails on two plain tokens ({first_line(error)})") from error
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()

    if [index for index, *_ in calls] != list(range(len(blocks))):
        raise refuse("its blocks do not run once each, in order")
    for (index, _, named, out), (_, next_x, *_) in zip(calls, [*calls[1:], (0, None, {}, None)], strict=True):
        states = out[0] if isinstance(out, tuple) else out
        if not isinstance(states, Tensor):
            raise refuse(f"block {index} returns a {type(out).__name__}")
        moved_on = states if next_x is None else next_x
        if moved_on is not states and not (moved_on.shape == states.shape and torch.equal(moved_on.to(states.device), states)):
            raise refuse(f"the states change between blocks {index} and {index + 1}")
        if not any(isinstance(value, Cache) for value in named.values()):
            raise refuse(f"block {index} takes no key-value cache")
        for name, value in named.items():
            known = name in SEQUENCE_ARGUMENTS or name in SHARED_ARGUMENTS or isinstance(value, (Cache, bool, int, float, str, type(None)))
            if not known and holds_tensor(value):
                raise refuse(f"its blocks exchange {name!r} ({type(value).__name__}) beside the hidden states")
    return isinstance(calls[0][3], tuple)


def holds_tensor(value: Any) -> bool:
    """Whether an argument may carry tensors, or is a container that blocks could write tensors to."""
    return any(map(holds_tensor, value)) if isinstance(value, tuple) else isinstance(value, (Tensor, dict, set, list))
