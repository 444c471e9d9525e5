"""What prompts begin with alike, kept: a front selector reads a system prompt, shots or a conversation so far once.

As in the engine's prefix cache, a beginning is a number of whole pieces of a prompt. It is kept once two prompts had it, so that prompts
which share nothing cost nothing. A client's own cache salt sets its beginnings apart here as it does there.

Shapes: D hidden size.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from drllm.deploy.serving.traffic import beginnings
from drllm.model.transformers_private import cache_argument

PIECE = 64  # tokens
MOST_SEEN = 1 << 16  # beginnings that are remembered, the latest
MOST_BYTES = 1 << 28  # of keys and values that are kept, the latest; the last one stays however long


@dataclass(eq=False)
class Prefix:
    """A beginning that was read.

    Attributes:
        ids, salt: its tokens, and the cache salt of the clients that may share it.
        cache: keys and values of the blocks that read it, of one sequence.
        sum_D: float32, the sum of its tokens' states after those blocks.
    """

    ids: list[int]
    salt: str
    cache: DynamicCache
    sum_D: Tensor

    @property
    def n_bytes(self) -> int:
        """Of its keys and values."""
        layers: list[Any] = self.cache.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Prefixes:
    """The beginnings that a front selector keeps.

    Args:
        decoder: of the front selector: the embedding and the blocks that read a prompt, without the last norm.
    """

    def __init__(self, decoder: Any):
        self.decoder, self._argument = decoder, cache_argument(decoder.forward)
        self._prompts: OrderedDict[int, int] = OrderedDict()  # by hash of a beginning: how many prompts had it, 2 for more
        self._kept: OrderedDict[int, Prefix] = OrderedDict()  # by the same, the latest used last

    def see(self, ids: Sequence[int], salt: str) -> None:
        """Remember what a prompt begins with."""
        for beginning in beginnings(ids, PIECE, salt):
            self._prompts[beginning] = min(2, self._prompts.pop(beginning, 0) + 1)
        while len(self._prompts) > MOST_SEEN:
            self._prompts.popitem(last=False)

    def shared(self, ids: Sequence[int], salt: str) -> int:
        """Tokens of the longest beginning that two prompts had; less than the prompt's, whose last token is always read."""
        times = [self._prompts.get(beginning, 0) for beginning in beginnings(ids[:-1], PIECE, salt)]
        return PIECE * next((place for place, n_prompts in enumerate(times) if n_prompts < 2), len(times))

    def longest(self, ids: list[int], salt: str) -> Prefix | None:
        """The longest beginning of these tokens that is kept."""
        for beginning in reversed(list(beginnings(ids, PIECE, salt))):
            prefix = self._kept.get(beginning)
            if prefix is not None and (prefix.ids, prefix.salt) == (ids[: len(prefix.ids)], salt):  # no other of the same hash
                self._kept.move_to_end(beginning)
                return prefix
        return None

    @torch.inference_mode()
    def keep(self, ids: list[int], salt: str) -> Prefix:
        """These tokens, a number of whole pieces, read: what is kept of them is not read again."""
        before = self.longest(ids, salt)
        if before is not None and len(before.ids) == len(ids):
            return before
        cache = DynamicCache(config=self.decoder.config) if before is None else copy.deepcopy(before.cache)
        sum_D = self._read(torch.tensor([ids[len(before.ids) if before else 0 :]]), cache)[0].float().sum(0)
        prefix = Prefix(ids, salt, cache, sum_D if before is None else before.sum_D + sum_D)
        *_, last = beginnings(ids, PIECE, salt)
        self._kept[last] = prefix
        while len(self._kept) > 1 and sum(kept.n_bytes for kept in self._kept.values()) > MOST_BYTES:
            self._kept.popitem(last=False)
        return prefix

    @torch.inference_mode()
    def follow(self, ids_BT: Tensor, prefix: Prefix) -> Tensor:
        """(B, T, D): the states of tokens that come after a beginning."""
        cache = copy.deepcopy(prefix.cache)
        cache.batch_repeat_interleave(len(ids_BT))
        return self._read(ids_BT, cache)

    def _read(self, ids_BT: Tensor, cache: DynamicCache) -> Tensor:
        """(B, T, D): states of what comes after the tokens in the cache; their keys and values are added to it.

        Uncompiled, which takes up to a tenth longer: with a cache each block has graphs of its own, more than torch makes of one function.
        """
        with torch.compiler.set_stance("force_eager"):
            inputs = {"input_ids": ids_BT.to(self.decoder.device), self._argument: cache}
            return self.decoder(**inputs, use_cache=True).last_hidden_state
