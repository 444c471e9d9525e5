"""Contexts that begin alike, such as a description and its shots: the tokens they share run once for each route.

Shapes: B sequences, T tokens of a step, W tokens of whole sequences.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from drllm.core.route import Route
from drllm.evaluation.harness.packing import Packed
from drllm.model.cache import new_slots
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import is_plain, share_prefix
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import RouteSource
from drllm.scoring.packing import PackedPrompt, make_batch, pack_choices, sample_token, separate_choices

RUN_COST = 64  # tokens that a prefix must save beyond its own, at least: a step of its own costs as much as these
SIGHT = 4  # sequences of a step see at most this many times the tokens that the step computes: a block's keys and values take memory, too
# Positions that depend on how long the whole sequence is: what ran before would have run otherwise.
LENGTH_ROPES = ("dynamic", "longrope")


def share_prefixes(waiting: Sequence[Packed], step_tokens: int = 0) -> list[Packed]:
    """The same prompts, those that begin alike next to each other with `n_prefix` set where that leaves fewer tokens to run.

    Contexts are sorted; their common beginnings form a tree of intervals (Abouelhoda et al. 2004), of which each is either one prefix
    or what its parts are. A prefix costs a step of its own, and its prompts a step that they may not fill: an eighth of `step_tokens`.
    """
    cost = max(RUN_COST, step_tokens // 8)
    waiting = sorted(waiting, key=lambda packed: packed.sequence.tokens[: packed.sequence.n_context])
    open_intervals: list[tuple[int, int, int, list[tuple[int, int, int]]]] = []  # (shared, start, tokens saved, [(start, end, shared)])
    for end in range(1, len(waiting) + 1):
        shared = _n_common(waiting[end - 1], waiting[end]) if end < len(waiting) else 0
        start, saved = end - 1, 0
        groups: list[tuple[int, int, int]] = []
        while open_intervals and open_intervals[-1][0] >= shared:
            length, start, saved_inside, inside = open_intervals.pop()
            saved, groups = saved_inside + saved, inside + groups
            whole = (end - start - 1) * length - cost
            if length > shared and whole > saved:
                saved, groups = whole, [(start, end, length)]
        open_intervals.append((shared, start, saved, groups))
    ordered, at = [], 0
    for start, end, shared in open_intervals[0][3] if waiting else ():
        ordered += waiting[at:start]
        ordered += [replace(packed, n_prefix=shared) for packed in waiting[start:end]]
        at = end
    return ordered + waiting[at:]


class Prefixes:
    """Runs prefixes and keeps the last one of each route, the base's (None) among them.

    `packs` says whether the family's sequences may be trees.
    """

    def __init__(self, routed: RoutedModel, packs: bool):
        self.routed = routed
        self._kept: dict[Route | None, tuple[tuple[int, ...], Cache]] = {}
        self._can_share = _can_share(self, packs)
        self.drop()

    def arrange(self, waiting: Sequence[Packed], policy: RouteSource | None, step_tokens: int = 0) -> list[Packed]:
        """The prompts as `share_prefixes` orders them where the family allows it and one route is everybody's.

        What a policy reads must enter in one step, so prompts that are read share nothing.
        """
        one_route = policy is None or policy.route is not None
        return share_prefixes(waiting, step_tokens) if self._can_share and one_route else list(waiting)

    @torch.no_grad()
    def prepare(self, route: Route | None, tokens: tuple[int, ...]) -> Cache:
        """The cache behind a prefix under a route; None is the plain base."""
        kept = self._kept.get(route)
        if kept is not None and kept[0] == tokens:
            return kept[1]
        ids = torch.tensor([tokens], device=self.routed.device)
        if route is None:
            cache: Cache = DynamicCache(config=self.routed.config)
        else:
            cache = self.routed.new_cache(RoutePolicy(route), torch.ones_like(ids))
        self.routed.decoder_forward(cache, input_ids=ids)
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)  # what is timed next must not wait for it
        self._kept[route] = (tokens, cache)
        return cache

    def caches(self, route: Route | None, tokens: tuple[int, ...], n_sequences: int) -> Cache:
        """A cache of its own for `n_sequences` that all begin with `tokens`."""
        return _spread(self.prepare(route, tokens), n_sequences)

    def drop(self) -> None:
        """Free what is kept."""
        self._kept.clear()


def _can_share(prefixes: Prefixes, packs: bool) -> bool:
    """Whether this family's sequences compute the same behind a prefix that ran before; asked of the base model itself, as `can_pack`.

    Slots of a sliding window keep no whole prefix.
    """
    routed = prefixes.routed
    if not all(is_plain(slot) for slot in new_slots(routed.config, routed.n_layers)):
        return False
    if getattr(routed.config, "keep_window_size", 0):  # Doge's
        return False
    if any(getattr(module, "rope_type", None) in LENGTH_ROPES for module in routed.model.modules()):
        return False
    n_vocab = routed.model.get_input_embeddings().num_embeddings
    head = [sample_token(seed, n_vocab) for seed in range(12)]
    context = [*head, sample_token(50, n_vocab)]
    pairs = [(context, [sample_token(100 * choice + at, n_vocab) for at in range(1 + choice)]) for choice in range(1, 4)]
    kinds = [(False, separate_choices(pairs)), *([(True, [pack_choices(pairs)])] if packs else [])]
    try:
        return all(_agrees(prefixes, sequences, tree, len(head)) for tree, sequences in kinds)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # the family's forward does not take a mask of another width than its tokens


@torch.no_grad()
def _agrees(prefixes: Prefixes, sequences: list[PackedPrompt], tree: bool, n_prefix: int) -> bool:
    """Whether the scored tokens' likeliest next tokens and their logits are the same with and without a prefix."""
    routed = prefixes.routed
    dtype, device = routed.model.dtype, routed.device
    whole, rest = make_batch(sequences, tree, dtype, device), make_batch(sequences, tree, dtype, device, n_seen=n_prefix)
    wanted = routed.model(**whole.inputs, use_cache=False).logits.flatten(0, 1)[whole.scored].float()
    cache = prefixes.caches(None, sequences[0].tokens[:n_prefix], len(sequences))
    got = routed.model(**rest.inputs, **{routed.cache_argument: cache}, use_cache=True).logits.flatten(0, 1)[rest.scored].float()
    spread = wanted.std()
    return bool(((got - wanted).abs() <= (1e-3 if dtype == torch.float32 else 0.2) * spread).all())


def _spread(cache: Any, n_sequences: int) -> Any:
    """The cache for one step of more sequences."""
    wide = copy.copy(cache)
    wide.layers = [share_prefix(slot, n_sequences) for slot in cache.layers]
    if hasattr(cache, "later"):
        wide.later = [_spread(slots, n_sequences) for slots in cache.later]
    return wide


def _n_common(first: Packed, second: Packed) -> int:
    """Tokens with which both contexts begin; at least the last one of each is left to run."""
    limit = min(first.sequence.n_context, second.sequence.n_context) - 1
    pairs = zip(first.sequence.tokens[:limit], second.sequence.tokens[:limit], strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), limit)
