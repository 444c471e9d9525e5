"""Shared prefixes that a front selector keeps: a system prompt, shots, or a conversation so far.

As in the engine's prefix cache, a prefix is a number of whole pieces of a prompt, and clients of another cache salt share none of it. It is
kept when a second prompt has it, so prompts that share nothing cost nothing; what follows a kept prefix is kept with it. Two prefixes that
begin alike share their first pieces, as in a tree.

Shapes: B prompts, T tokens of the longest, D hidden size, H heads, S size of a head.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from drllm.deploy.serving.traffic import beginnings
from drllm.model.transformers_private import ReadingSlot, cache_argument, cache_of

PIECE = 128  # tokens
MOST_SEEN = 1 << 16  # prefixes that are remembered, the latest
MOST_BYTES = 1 << 28  # of what is kept, the latest used


@dataclass(eq=False)
class Prompt:
    """A prompt to read.

    Attributes:
        ids: its tokens.
        salt: the cache salt of its client.
        hashes: of its prefixes, the shortest first. The last token is in none of them: it is always read.
    """

    ids: list[int]
    salt: str = ""
    hashes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.hashes = list(beginnings(self.ids[:-1], PIECE, self.salt))


@dataclass(eq=False)
class Piece:
    """`PIECE` tokens that were read.

    Attributes:
        before: the piece before it, None for a first one.
        slots: keys and values of each block that read it, (1, H, PIECE, S) each.
        sum_D: float32, the sum of its tokens' states after those blocks.
    """

    ids: list[int]
    salt: str
    before: "Piece | None"
    slots: list[tuple[Tensor, Tensor]]
    sum_D: Tensor

    @property
    def n_bytes(self) -> int:
        """Of its tensors."""
        tensors = [self.sum_D, *(tensor for slot in self.slots for tensor in slot)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def is_for(self, before: "Piece | None", ids: list[int], salt: str) -> bool:
        """Whether it is this piece, and no other one of the same hash."""
        return self.before is before and (self.ids, self.salt) == (ids, salt)


Prefix = list[Piece]  # the first piece first


def n_tokens(prefix: Prefix) -> int:
    """Of a prefix."""
    return PIECE * len(prefix)


class Prefixes:
    """Which prefixes prompts share, and those that are kept.

    `see` and `shared` are for the thread that takes prompts, the others for the one that reads them.

    Args:
        decoder: of the front selector: the embedding and the blocks that read a prompt, without the last norm.

    Attributes:
        n_bytes: of what is kept.
        n_most: how many pieces can be kept, known once one was.
    """

    def __init__(self, decoder: Any):
        self.decoder, self._argument = decoder, cache_argument(decoder.forward)
        self.n_bytes, self.n_most = 0, MOST_SEEN
        self._prompts: OrderedDict[int, int] = OrderedDict()  # by hash of a prefix: how many prompts had it, 2 for more
        self._kept: OrderedDict[int, Piece] = OrderedDict()  # by hash of the prefix that ends with it, the latest used last

    def see(self, prompt: Prompt) -> None:
        """Remember its prefixes."""
        for prefix in prompt.hashes:
            self._prompts[prefix] = min(2, self._prompts.pop(prefix, 0) + 1)
        while len(self._prompts) > MOST_SEEN:
            self._prompts.popitem(last=False)

    def shared(self, prompt: Prompt) -> int:
        """How many tokens its longest prefix has that two prompts had, and that can be kept."""
        n_shared = 0
        while n_shared < min(len(prompt.hashes), self.n_most) and self._prompts.get(prompt.hashes[n_shared], 0) > 1:
            n_shared += 1
        return PIECE * n_shared

    def kept(self, prompt: Prompt, n_most: int) -> Prefix:
        """The longest kept prefix of its first `n_most` tokens; empty where there is none."""
        found: Prefix = []
        for place, prefix in enumerate(prompt.hashes[: n_most // PIECE]):
            piece, before = self._kept.get(prefix), found[-1] if found else None
            ids = prompt.ids[place * PIECE : (place + 1) * PIECE]
            if piece is None or not piece.is_for(before, ids, prompt.salt):
                break
            found.append(piece)
        self._touch(prompt.hashes[: len(found)])
        return found

    def keep(self, prompt: Prompt, n_shared: int) -> Prefix:
        """The prefix of `n_shared` tokens, a number of whole pieces, read but for what is kept; shorter where not all of it can be kept."""
        prefix = self.kept(prompt, n_shared)
        if n_tokens(prefix) < n_shared:
            self._read([prompt.ids[:n_shared]], [prompt], prefix)
            prefix = self.kept(prompt, n_shared)
        return prefix

    def read(self, prompts: Sequence[Prompt], prefix: Prefix) -> Tensor:
        """(B, T, D): the states of what comes after a prefix that all of them have, padded on the right. Its whole pieces are kept, too."""
        return self._read([prompt.ids for prompt in prompts], prompts, prefix)

    @torch.inference_mode()
    def _read(self, tokens: Sequence[list[int]], prompts: Sequence[Prompt], prefix: Prefix) -> Tensor:
        """As `read`, of the first tokens of each prompt.

        Uncompiled, which takes up to a tenth longer: with a cache each block has graphs of its own, more than torch makes of one function.
        """
        ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(ids[n_tokens(prefix) :]) for ids in tokens], batch_first=True)
        held: list[Any] = [None] * len(self.decoder.layers)
        if prefix:
            parts = zip(*(piece.slots for piece in prefix), strict=True)  # a block's keys and values in all pieces
            held = [tuple(torch.cat(both, dim=2) for both in zip(*slots, strict=True)) for slots in parts]
        slots = [ReadingSlot(one, len(tokens)) for one in held]
        inputs = {"input_ids": ids_BT.to(self.decoder.device), self._argument: cache_of(slots)}
        with torch.compiler.set_stance("force_eager"):
            x_BTD = self.decoder(**inputs, use_cache=True).last_hidden_state
        for row, (ids, prompt) in enumerate(zip(tokens, prompts, strict=True)):
            self._store(prompt, len(ids), prefix, [tuple(part[row : row + 1] for part in slot.added or ()) for slot in slots], x_BTD[row])
        while self.n_bytes > MOST_BYTES:
            self.n_bytes -= self._kept.popitem(last=False)[1].n_bytes
        return x_BTD

    def _store(self, prompt: Prompt, n_read: int, prefix: Prefix, slots: Sequence[Any], x_TD: Tensor) -> None:
        """Keep the whole pieces among the first `n_read` tokens of a prompt, of which the prefix is kept already; finite ones alone."""
        before = prefix[-1] if prefix else None
        n_pieces = max(len(prefix), min(n_read // PIECE, len(prompt.hashes)))
        for place in range(len(prefix), n_pieces):
            here = slice((place - len(prefix)) * PIECE, (place + 1 - len(prefix)) * PIECE)
            ids, old = prompt.ids[place * PIECE : (place + 1) * PIECE], self._kept.get(prompt.hashes[place])
            if old is not None and old.is_for(before, ids, prompt.salt):  # another prompt of this reading had it, too
                before = old
                continue
            parts = [(keys[..., here, :].clone(), values[..., here, :].clone()) for keys, values in slots]
            piece = Piece(ids, prompt.salt, before, parts, x_TD[here].float().sum(0))
            if not bool(piece.sum_D.isfinite().all()):  # the padding's states may be at fault
                n_pieces = place
                break
            self._kept[prompt.hashes[place]] = before = piece
            self.n_bytes += piece.n_bytes - (old.n_bytes if old is not None else 0)
            self.n_most = MOST_BYTES // piece.n_bytes
        self._touch(prompt.hashes[:n_pieces])

    def _touch(self, prefixes: Sequence[int]) -> None:
        """These were used: the first piece is the last to go, since without it those after it are lost."""
        for prefix in reversed(prefixes):
            self._kept.move_to_end(prefix)
