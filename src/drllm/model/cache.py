"""The cache carries the routing state: what runs where, slots, and the clock. Shapes: B sequences, T tokens of this step, L blocks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.route import Route, Visit
from drllm.model import transformers_private as private
from drllm.model.prompts import prompts_of
from drllm.model.sub_batches import BatchSplitter, SubBatches, check_decision, every_sub_batch
from drllm.policies.constant import GivenRoutes
from drllm.policies.policy import RouteSource

Pairs = Sequence[tuple[Tensor, Tensor]]  # (heads, T, head size) each
# Called at prefill with what enters each block: its index, the states (B, T, D), its other arguments. States it returns go on instead.
Observer = Callable[[int, Tensor, dict[str, Any]], Tensor | None]

_CAUSES = "hooks were removed, another object unwrapped it, or gradient checkpointing dropped the cache"
STRAYED = f"the model's blocks did not follow the route ({_CAUSES}): wrap the model again, or switch that off"


def new_slots(config: PreTrainedConfig, n_layers: int) -> list[private.Slot]:
    """One empty slot a block, of the class the family's own cache uses; refuses anything but plain and sliding-window attention."""
    slots = private.family_slots(config, n_layers)
    for slot in slots:
        if type(slot) not in private.SUPPORTED_SLOTS:
            why = "its recurrent or shared state is not per block, so blocks cannot be skipped or repeated exactly"
            found = f"{type(slot).__name__} state, expected plain or sliding-window attention"
            raise UnsupportedModelError(f"model_type {config.model_type!r} keeps {found}: {why}; see `drllm models` for what can")
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
        return self.n_seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(key length, key offset) that a slot of this kind has after `n_seen` tokens, used or not."""
        return private.mask_sizes(self.layers[layer_idx], self.n_seen, query_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: a slot holds only the sequences that execute its block."""
        raise InputError("beam search reorders the cached sequences, which a mixed route cannot follow: use greedy search or sampling")


class RoutedCache(PassSlots):
    """The cache of one routed forward or generation, with a key-value slot for each (block, pass).

    A stock `DynamicCache` is wrong under a route: it has one slot a block, so a second pass would attend to the first pass's keys,
    and it counts tokens by the length of block 0's slot, which a skipped block 0 leaves empty (`docs/how-it-works.md`).

    Args:
        config: the base model's text configuration.
        n_layers: L.
        source: a policy that decides each block's actions at prefill, or routes that are given or decided from the prompts' tokens.
        prompt_mask: (B, T) true on the prompt tokens the policy may read; T is the prefill's length.
        observe: called with what enters each block at prefill.
        input_ids: (B, T) of the prefill, for a policy that reads the prompts' tokens.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        n_layers: int,
        source: RouteSource,
        prompt_mask: Tensor,
        observe: Observer | None = None,
        input_ids: Tensor | None = None,
    ):
        super().__init__(new_slots(config, n_layers))
        if source.n_layers != n_layers:
            raise InputError(f"the policy or route has {source.n_layers} blocks, the model has {n_layers}: use one made for this model")
        self.n_layers = n_layers
        self._config = config
        self._prompt_mask, self._n_before = prompt_mask.bool(), 0
        self._observe = observe
        routes = source.routes_for(prompts_of(input_ids, self._prompt_mask))
        self._visits: list[Sequence[Visit]] = []  # a block: what each of B sequences runs
        self._decider = source.start(self._prompt_mask) if routes is None else None
        if routes is not None:
            self._visits += zip(*(route.visits for route in routes), strict=True)
        self._splitter = BatchSplitter(n_layers)
        self.sub_batches: list[SubBatches] = []  # of each block that prefill has come to
        self.arguments: dict[int, dict[str, Any]] = {}  # of each block that this step has come to
        self.later: list[PassSlots] = []  # sets of slots beyond the first
        self._selected: dict[tuple[int, int], tuple[Any, Any]] = {}

    def slots(self, n: int) -> PassSlots:
        """The n-th set of slots: 0, this cache, for nearly all that runs; the others are made when first wanted."""
        while len(self.later) < n:
            self.later.append(PassSlots(new_slots(self._config, self.n_layers)))
            self.later[-1].n_seen = self.n_seen
        return self.later[n - 1] if n else self

    def enter(self, block: int, x_BTD: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Called with the states entering each block and its other arguments, before it runs; decides what runs at prefill."""
        self.arguments[block] = arguments
        n_entered = len(self.sub_batches)
        if block > n_entered:
            raise InputError(STRAYED)
        if block == n_entered:
            if self.n_seen != self._n_before:
                raise InputError("the cache met new blocks after prefill: use one RoutedCache a generation")
            if x_BTD.shape[:2] != self._prompt_mask.shape:
                found = f"states of {tuple(x_BTD.shape[:2])} sequences and tokens, the prompt mask has {tuple(self._prompt_mask.shape)}"
                raise InputError(f"prefill saw {found}: the whole prompt must enter in one step, with one route a sequence")
            if self._observe is not None and (replaced := self._observe(block, x_BTD, arguments)) is not None:
                x_BTD = replaced
            if self._decider is not None:
                self._visits.append(check_decision(self._decider.decide(block, x_BTD), x_BTD.shape[0], block))
            elif len(self._visits[block]) != len(x_BTD):
                raise InputError(f"got {len(self._visits[block])} routes for {len(x_BTD)} sequences, expected one each")
            self.sub_batches.append(self._splitter.split(block, self._visits[block], x_BTD.device))
        return x_BTD

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
            self.arguments.clear()

    def go_on_behind(self, n_tokens: int) -> None:
        """Prefill stands behind so many tokens, of which the slots hold nothing: for a forward in which no block runs."""
        self._n_before = n_tokens
        self._tell(n_tokens)

    def _tell(self, n_seen: int) -> None:
        for slots in (self, *self.later):
            slots.n_seen = n_seen

    def check_complete(self, n_before: int = 0) -> None:
        """Refuse a result whose blocks did not all follow the route: something stands between the model and its routed blocks."""
        if len(self.sub_batches) != self.n_layers or self.n_seen <= n_before:
            raise InputError(STRAYED)

    @property
    def routes(self) -> list[Route]:
        """The routes decided, one a sequence; complete once prefill is over."""
        return [Route.of_visits(visits) for visits in zip(*self._visits, strict=True)]


class PrefilledCache(RoutedCache):
    """A cache whose prompts have run already: decoding goes on from given keys and values.

    Args:
        routes: one a sequence.
        of_each: for each sequence, the keys and values of each pass of its path, in order: (heads, W or fewer, head size) each. Fewer
            where a prompt was padded less, or a sliding window kept less; they are aligned on the right.
        width: W of the longest; the mask of the steps to come must begin with as many columns, pads on the left.
    """

    def __init__(
        self, config: PreTrainedConfig, n_layers: int, routes: Sequence[Route], of_each: Sequence[Pairs], width: int, device: torch.device
    ):
        super().__init__(config, n_layers, GivenRoutes(routes), torch.ones((len(routes), width), dtype=torch.bool, device=device))
        lines = [iter(line) for line in of_each]
        for block, visits in enumerate(self._visits):
            self.sub_batches.append(self._splitter.split(block, visits, device))
            for part in every_sub_batch(block, self.sub_batches[block]):
                running = lines if part.sequences is None else [lines[row] for row in part.sequences]
                for of_block, n_set in zip(part.span.blocks, part.sets, strict=True):
                    self._fill(of_block, self.slots(n_set).layers, [next(line) for line in running], width)
        self._tell(width)

    def _fill(self, block: int, layers: list[Any], pairs: Pairs, width: int) -> None:
        if private.is_plain(layers[block]):
            layers[block] = private.RoomySlot()
        elif not private.is_window(layers[block]):
            why = f"{self._config.model_type!r}: its attention keeps more than keys and values"
            raise UnsupportedModelError(f"generated rewards cannot be searched on {why}; use reward loglik")
        kept = private.kept_tokens(layers[block], width)
        keys, values = (_right_aligned(parts, kept, private.room(layers[block])) for parts in zip(*pairs, strict=True))
        private.fill(layers[block], keys, values, width)

    def select(self, indices: Sequence[int]) -> None:
        """Keep only some sequences, in that order."""
        self._splitter.forget()
        for block, sub_batches in enumerate(self.sub_batches):
            for part in every_sub_batch(block, sub_batches):
                members = range(len(self._visits[block])) if part.sequences is None else part.sequences
                places = [members.index(index) for index in indices if index in members]
                for of_block, n_set in zip(part.span.blocks, part.sets, strict=True):
                    private.select_sequences(self.slots(n_set).layers[of_block], places)
            self.sub_batches[block] = self._splitter.select(block, sub_batches, indices, self._prompt_mask.device)
            self._visits[block] = [self._visits[block][index] for index in indices]


def _right_aligned(parts: Sequence[Tensor], width: int, room: int) -> Tensor:
    """N of (heads, T, size), each cut or zero-padded on the left, as (N, heads, width + room, size); nothing is written to the room."""
    n_heads, _, size = parts[0].shape
    whole = parts[0].new_empty((len(parts), n_heads, width + room, size))
    for of_one, part in zip(whole, parts, strict=True):
        n_pads = max(0, width - part.shape[1])
        of_one[:, :n_pads] = 0
        of_one[:, n_pads:width] = part[:, n_pads - width :]
    return whole
