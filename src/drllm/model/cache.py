"""The cache carries the routing state: actions, one key-value slot for each (block, pass), and the clock.

A stock `DynamicCache` is wrong under a route: it has one slot a block, so a second pass would attend to the first pass's keys,
and it counts tokens by the length of block 0's slot, which a skipped block 0 leaves empty (`docs/how-it-works.md`).

Shapes: B sequences, T tokens of this step, L blocks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.route import Route
from drllm.model import transformers_private as private
from drllm.policies.given import GivenRoutes
from drllm.policies.policy import RouteSource

# Called at prefill with what enters each block: its index, the states (B, T, D), its other arguments. States it returns go on instead.
Observer = Callable[[int, Tensor, dict[str, Any]], Tensor | None]
RowsPerPass = tuple[Tensor | None, ...]  # for each pass of a block, the sequences that make it: an index tensor, or None for all
ALL_ONCE: RowsPerPass = (None,)
_UNIFORM: tuple[RowsPerPass, ...] = ((), ALL_ONCE, (None, None))  # where all sequences take one action

_CAUSES = "hooks were removed, another object unwrapped it, or gradient checkpointing dropped the cache"
STRAYED = f"the model's blocks did not follow the route ({_CAUSES}): wrap the model again, or switch that off"


def new_slots(config: PreTrainedConfig, n_layers: int) -> list[private.Slot]:
    """One empty slot a block, of the class the family's own cache uses; refuses anything but plain and sliding-window attention."""
    slots = private.family_slots(config, n_layers)
    for slot in slots:
        if not private.is_supported(slot):
            why = "its recurrent or shared state is not per block, so blocks cannot be skipped or repeated exactly"
            found = f"{type(slot).__name__} state, expected plain or sliding-window attention"
            raise UnsupportedModelError(f"model_type {config.model_type!r} keeps {found}: {why}")
    if len(slots) != n_layers:
        found = f"{n_layers} blocks but {len(slots)} cache slots"
        raise UnsupportedModelError(f"model_type {config.model_type!r} has {found}: blocks that share keys and values cannot be routed")
    return slots


class PassSlots(Cache):
    """One slot a block for one pass; sizes come from the clock, since a slot that no sequence uses stays empty."""

    def __init__(self, slots: list[private.Slot]):
        super().__init__(layers=list(slots))
        self.n_seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this step: the clock, whichever blocks ran."""
        return self.n_seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(key length, key offset) that a slot of this kind has after `n_seen` tokens, used or not."""
        return private.mask_sizes(self.layers[layer_idx], self.n_seen, query_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: a slot holds only the sequences that execute its block."""
        raise InputError("beam search reorders the cached sequences, which a mixed route cannot follow: use greedy search or sampling")


class RoutedCache(PassSlots):
    """The cache of one routed forward or generation.

    Routes that are given, not decided from the prompt's states, are taken as they are: no block asks for them.

    Args:
        config: the base model's text configuration.
        n_layers: L.
        source: a policy that decides each block's actions at prefill, or given routes.
        prompt_mask: (B, T) true on the prompt tokens the policy may read; T is the prefill's length.
        observe: called with what enters each block at prefill.
    """

    def __init__(self, config: PreTrainedConfig, n_layers: int, source: RouteSource, prompt_mask: Tensor, observe: Observer | None = None):
        super().__init__(new_slots(config, n_layers))
        if source.n_layers != n_layers:
            raise InputError(f"the policy or route has {source.n_layers} blocks, the model has {n_layers}: use one made for this model")
        self.n_layers = n_layers
        self._config = config
        self._prompt_mask = prompt_mask.bool()
        self._observe = observe
        known = source.known_actions(len(prompt_mask))
        self._decider = source.start(self._prompt_mask) if known is None else None
        self._actions: list[list[int]] = known or []  # B a block
        self.rows_per_pass: list[RowsPerPass] = []  # of each block entered; `ALL_ONCE` itself where each sequence makes one pass
        self._n_entered = 0  # blocks that prefill has come to
        self._picked: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}  # one tensor for equal ones, whatever the block
        self._selected: dict[tuple[int, int], tuple[Any, Any]] = {}

    @functools.cached_property
    def second_pass(self) -> PassSlots:
        """The slots of second passes: made when first wanted, since few routes repeat."""
        slots = PassSlots(new_slots(self._config, self.n_layers))
        slots.n_seen = self.n_seen
        return slots

    def enter(self, block: int, x_BTD: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Called with the states entering each block and its other arguments, before it runs; decides its actions at prefill."""
        if block > self._n_entered:
            raise InputError(STRAYED)
        if block == self._n_entered:
            if self.n_seen:
                raise InputError("the cache met new blocks after prefill: use one RoutedCache a generation")
            if x_BTD.shape[:2] != self._prompt_mask.shape:
                found = f"states of {tuple(x_BTD.shape[:2])} sequences and tokens, the prompt mask has {tuple(self._prompt_mask.shape)}"
                raise InputError(f"prefill saw {found}: the whole prompt must enter in one step, with one route a sequence")
            if self._observe is not None and (replaced := self._observe(block, x_BTD, arguments)) is not None:
                x_BTD = replaced
            if self._decider is not None:
                self._actions.append(check_actions(self._decider.decide(block, x_BTD), x_BTD.shape[0], block))
            elif len(self._actions[block]) != len(x_BTD):
                raise InputError(f"got {len(self._actions[block])} routes for {len(x_BTD)} sequences, expected one each")
            self.rows_per_pass.append(self.split_actions(self._actions[block], x_BTD.device))
            self._n_entered += 1
        return x_BTD

    def of_pass(self, n_pass: int) -> PassSlots:
        """The slots of first or of second passes."""
        return self.second_pass if n_pass else self

    def split_actions(self, actions: Sequence[int], device: torch.device) -> RowsPerPass:
        """Turn one block's actions into the sequences of each pass."""
        most = max(actions)
        if most == min(actions):
            return _UNIFORM[most]
        passes: list[Tensor | None] = []
        for n_pass in range(most):
            picked = tuple(index for index, action in enumerate(actions) if action > n_pass)
            if len(picked) == len(actions):
                passes.append(None)
                continue
            if (device, picked) not in self._picked:
                self._picked[device, picked] = torch.tensor(picked, device=device)
            passes.append(self._picked[device, picked])
        return tuple(passes)

    def once_a_step(self, picked: Tensor, value: Any, select: Callable[[], Any]) -> Any:
        """What `select` makes of a block's argument for some sequences; blocks with equal ones are given the same argument in a step."""
        key = (id(picked), id(value))
        if key not in self._selected:
            self._selected[key] = (value, select())  # the value, too: while it lives, nothing else has its id
        return self._selected[key][1]

    def leave(self, block: int, n_tokens: int) -> None:
        """The clock advances when the last block is done."""
        if block == self.n_layers - 1:
            self._tell(self.n_seen + n_tokens)
            self._selected.clear()

    def _tell(self, n_seen: int) -> None:
        self.n_seen = n_seen
        if "second_pass" in vars(self):
            self.second_pass.n_seen = n_seen

    def check_complete(self, n_before: int = 0) -> None:
        """Refuse a result whose blocks did not all follow the route: something stands between the model and its routed blocks."""
        if self._n_entered != self.n_layers or self.n_seen <= n_before:
            raise InputError(STRAYED)

    @property
    def routes(self) -> list[Route]:
        """The routes decided, one a sequence; complete once prefill is over."""
        return [Route(actions) for actions in zip(*self._actions, strict=True)]


class PrefilledCache(RoutedCache):
    """A cache whose prompts have run already: decoding goes on from given keys and values.

    Args:
        routes: one a sequence.
        keys_values: for each sequence, the keys and values of each pass of its path, in order: (heads, W or fewer, head size) each. Fewer
            where a prompt was padded less, or a sliding window kept less; they are aligned on the right.
        width: W of the longest; the mask of the steps to come must begin with as many columns, pads on the left.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        n_layers: int,
        routes: Sequence[Route],
        keys_values: Sequence[Sequence[tuple[Tensor, Tensor]]],
        width: int,
        device: torch.device,
    ):
        super().__init__(config, n_layers, GivenRoutes(routes), torch.ones((len(routes), width), dtype=torch.bool, device=device))
        lines = [iter(line) for line in keys_values]
        for block, actions in enumerate(self._actions):
            self.rows_per_pass.append(self.split_actions(actions, device))
            for n_pass in range(max(actions)):
                pairs = [next(line) for line, action in zip(lines, actions, strict=True) if action > n_pass]
                layers = self.of_pass(n_pass).layers
                if private.is_plain(layers[block]):
                    layers[block] = private.RoomySlot()
                elif not private.is_window(layers[block]):
                    why = f"{config.model_type!r}: its attention keeps more than keys and values"
                    raise UnsupportedModelError(f"generated rewards cannot be searched on {why}; use reward loglik")
                kept = private.kept_tokens(layers[block], width)
                keys, values = (torch.stack([_right_align(part, kept) for part in parts]) for parts in zip(*pairs, strict=True))
                private.fill(layers[block], keys, values, width)
        self._n_entered = n_layers
        self._tell(width)

    def select(self, indices: Sequence[int]) -> None:
        """Keep only some sequences, in that order."""
        self._picked.clear()  # every block is split anew
        for block, actions in enumerate(self._actions):
            for n_pass in range(max(actions)):
                members = [index for index, action in enumerate(actions) if action > n_pass]
                places = [members.index(index) for index in indices if index in members]
                private.select_sequences(self.of_pass(n_pass).layers[block], places)
            self._actions[block] = [actions[index] for index in indices]
            self.rows_per_pass[block] = self.split_actions(self._actions[block], self._prompt_mask.device)


def _right_align(part: Tensor, width: int) -> Tensor:
    """(heads, T, size) cut or zero-padded on the left to (heads, width, size)."""
    return torch.nn.functional.pad(part, (0, 0, width - part.shape[1], 0))


def check_actions(actions: Tensor, n_sequences: int, block: int) -> list[int]:
    """A policy's decision as B whole numbers; `InputError` for another shape or any value but 0, 1 and 2."""
    if not isinstance(actions, Tensor) or actions.shape != (n_sequences,) or actions.is_floating_point():
        found = f"{actions.dtype} {tuple(actions.shape)}" if isinstance(actions, Tensor) else type(actions).__name__
        raise InputError(f"the policy decided {found} at block {block}, expected one whole action a sequence, ({n_sequences},)")
    found = [int(action) for action in actions.tolist()]  # a bool is an action, too
    if not {0, 1, 2}.issuperset(found):
        raise InputError(f"the policy decided {found} at block {block}, expected 0 (skip), 1 (execute) or 2 (repeat)")
    return found
