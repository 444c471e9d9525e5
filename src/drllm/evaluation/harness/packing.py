"""Log-likelihood requests as packed prompts: continuations of one context share one, and a context has one route. No model here."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.scoring.packing import PackedPrompt, pack_choices, separate_choices

Request = tuple[Any, list[int], list[int]]  # (the strings, or None for a window of a longer text; context ids; continuation ids)


@dataclass(frozen=True)
class Packed:
    """One packed prompt."""

    sequence: PackedPrompt  # a tree of continuations where there are several
    requests: tuple[int, ...]  # indices of the requests it answers, in the order of its scored tokens
    context: tuple[int, ...]  # the whole context's ids
    is_whole: bool  # it holds all that is asked about its context, and all of its context: it may decide its route as it runs
    group: tuple[int, ...]  # on the first prompt of a context, all requests about it; else empty
    route: Route | None = None  # decided before, where it is not whole, or one for all prompts

    @property
    def is_tree(self) -> bool:
        """Whether it needs a tree-shaped mask: continuations of one token each are all read off the context's end."""
        return any(self.sequence.branches)


def pack_requests(requests: Sequence[Request], max_length: int, packs: bool) -> list[Packed]:
    """Packed prompts that together answer all requests; `packs`: whether the family takes trees.

    A sequence of more than `max_length` + 1 tokens loses its beginning, as in the stock model. Raises `InputError` for a request without
    context or continuation, or with a continuation that does not fit.
    """
    groups: defaultdict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
    for index, (text, context, continuation) in enumerate(requests):
        if not context or not continuation or len(continuation) > max_length:
            found = f"a request has {len(context)} context and {len(continuation)} continuation tokens"
            raise InputError(f"{found}, expected at least one each and at most {max_length}: raise max_length or drop it")
        # Windows of texts begin alike, with the prefix token, but would only make each other's sequences wide.
        groups[tuple(context), -1 if text is not None else index].append(index)
    packed = []
    for (context, _), members in groups.items():
        longest = len(context) + max(len(requests[index][2]) for index in members)
        fits = longest <= max_length + 1
        chunks = _chunks(len(context), members, requests, 2 * longest + 128 if packs else 0) if fits else [[index] for index in members]
        for chunk in chunks:
            pairs = []
            for index in chunk:
                tail = list(requests[index][2])
                pairs.append((list(context[max(0, len(context) + len(tail) - max_length - 1) :]), tail))
            sequence = pack_choices(pairs) if len(pairs) > 1 else separate_choices(pairs)[0]
            group = tuple(members if chunk is chunks[0] else ())
            packed.append(Packed(sequence, tuple(chunk), context, fits and len(chunks) == 1, group))
    return packed


def _chunks(n_context: int, members: list[int], requests: Sequence[Request], limit: int) -> list[list[int]]:
    """The requests of one context in sequences of at most `limit` tokens: wider ones pay more for attention than sharing saves.

    `limit` 0: no trees. Continuations of one token add none to a sequence, so they share one in every family.
    """
    n_more = {index: len(requests[index][2]) - 1 for index in members}
    if not limit:
        short = [index for index in members if not n_more[index]]
        return [*([short] if short else []), *([index] for index in members if n_more[index])]
    chunks: list[list[int]] = []
    for index in members:
        if not chunks or n_context + sum(n_more[other] for other in chunks[-1]) + n_more[index] > limit:
            chunks.append([])
        chunks[-1].append(index)
    return chunks
