"""The trie of one sequence's paths: its nodes, and what the base model passes to a block for the sequences of some of them.

Shapes: W width (tokens of a sequence, padded), B sequences of a bucket, D hidden size.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Span
from drllm.model.blocks import SEQUENCE_ARGUMENTS, pick_sequences


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """One application of a block, or the end of a span of a strength below 1. The root holds a sequence's embeddings: it is its trie.

    The blocks of such a span are nodes like any others, which the same span at full strength shares; behind the last of them comes a node
    that takes the states back towards those before the span.
    """

    bucket: Bucket
    index: int  # of the sequence in its bucket
    parent: Node | None = None
    span: Span = Span(-1, -1)
    before: Node | None = None  # where a span of a strength below 1 ends: the node before it
    stem: Node | None = None  # of the same path, in the trie of the tokens that run before the sequence's own: it attends to those, too
    children: dict[Span, Node] = field(default_factory=dict)
    state: Tensor | None = None  # (W, D), the states after it; None before it ran and after it was evicted
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()  # what the block's attention cached, (heads, W, head size); only when asked for
    dependents: list[Node] = field(default_factory=list)  # nodes made from this one that are still to run
    tags: list[Hashable] = field(default_factory=list)  # evaluations that end here
    pins: int = 0  # ended evaluations whose results are still being read

    @property
    def is_held(self) -> bool:
        """Whether anything of it is in memory."""
        return self.state is not None or bool(self.keys_values)

    @property
    def is_stood_on(self) -> bool:
        """Whether anything of a path that goes on from it is in memory."""
        return any(child.is_held for child in self.children.values())

    @property
    def sources(self) -> tuple[Node, ...]:
        """The nodes whose states it is made from."""
        stem = None if self.before is not None else self.stem  # where a span ends nothing is attended to
        return tuple(node for node in (self.parent, self.before, stem) if node is not None)

    @property
    def line(self) -> list[Node]:
        """The nodes of this path, the root left out, first block first."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@dataclass(eq=False)
class Bucket:
    """Sequences of one width, with the arguments that the base model passes to each block for them."""

    n_sequences: int
    width: int
    n_before: int = 0  # tokens before theirs, which run as a stem
    is_stem: bool = False
    arguments: list[dict[str, Any]] = field(default_factory=list)  # a block: name -> value for all B sequences


def child_of(parent: Node, span: Span, before: Node | None = None) -> Node:
    """The node behind another on a path, made where there is none yet."""
    if (child := parent.children.get(span)) is None:
        stem = parent.stem and child_of(parent.stem, span, before and before.stem)
        child = parent.children[span] = Node(parent.bucket, parent.index, parent, span, before, stem)
    return child


def gather(block: int, nodes: Sequence[Node]) -> dict[str, Any]:
    """A block's arguments for the sequences of some nodes, which lie bucket by bucket."""
    parts = [(bucket, [node.index for node in group]) for bucket, group in itertools.groupby(nodes, key=lambda node: node.bucket)]
    picks = [(torch.tensor(indices), bucket.n_sequences) for bucket, indices in parts]
    return {
        name: value if name not in SEQUENCE_ARGUMENTS else _pick([bucket.arguments[block][name] for bucket, _ in parts], picks)
        for name, value in parts[0][0].arguments[block].items()
    }


def _pick(values: list[Any], picks: list[tuple[Tensor, int]]) -> Any:
    """One argument with an entry a sequence, given for each bucket, for some of each; what they share is the same in every bucket."""
    first = values[0]
    if isinstance(first, tuple):
        return tuple(_pick(list(parts), picks) for parts in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _pick([value[key] for value in values], picks) for key in first}
    if not isinstance(first, Tensor) or first.ndim == 0 or first.shape[0] != picks[0][1]:
        return pick_sequences(first, *picks[0])
    return torch.cat([pick_sequences(value, indices, n_sequences) for value, (indices, n_sequences) in zip(values, picks, strict=True)])


def bytes_of(node: Node) -> int:
    tensors = [node.state, *(part for pair in node.keys_values for part in pair)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
