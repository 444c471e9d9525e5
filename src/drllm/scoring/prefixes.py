"""Run many (sequence, route) pairs through the blocks; every prefix that paths of a sequence share is computed once.

Shapes: W width (tokens of a sequence, padded), R sequences of a step, B sequences of a bucket, D hidden size.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from drllm.core.route import Route
from drllm.core.span import Span, block_span
from drllm.model.blocks import SEQUENCE_ARGUMENTS, pick_sequences
from drllm.model.cache import PassSlots, new_slots
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import fill, keys_values
from drllm.policies.constant import RoutePolicy

Inputs = Callable[[list[Any], int], dict[str, Tensor]]  # what the model's forward takes of sequences padded to one width
WIDTH_STEP = 8  # sequences are padded to a multiple of this many tokens: wider classes fill steps better, narrower ones waste less
MIN_FILL = 0.5  # share of a step's sequences below which it waits for the next sweep


def padded_width(sequence: Any) -> int:
    return -len(sequence) // WIDTH_STEP * -WIDTH_STEP


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


class PrefixRunner:
    """Applies blocks to sequences along their paths.

    The states after k blocks of a path depend on those k blocks alone, so a sequence's paths form a trie. Nodes wait at their block. A
    sweep goes through the blocks in order and runs what waits there: sequences of any question and depth together, in steps of one fixed
    shape. A step that is not full may wait for the next sweep.

    Fixed shapes are what makes a verdict depend on the question and the route alone: a matrix product in bfloat16 can round differently
    when the batch size changes, but not at another place in a batch of the same size. So neither the other sequences, nor the order, nor
    what was evicted from memory can flip a verdict. Mixtures of experts are the exception: an expert's batch holds whatever tokens of the
    step were sent to it, so the last bits may differ.

    Sequences may begin with tokens that all of them share: a stem, a trie of its own, each of whose nodes runs once a path.

    Args:
        routed: the model; its policy is not used.
        max_step_tokens: tokens of a step; sequences a step follow from it and the width, so they are fixed for a width.
        cache_bytes: states (and keys and values) kept for later paths; the least recently used go first. What running paths need stays.
        keep_keys_values: keep each application's keys and values too, for generation.
        fills: fill every step to its fixed shape; else it has the sequences that are there.
    """

    def __init__(self, routed: RoutedModel, max_step_tokens: int, cache_bytes: int, keep_keys_values: bool = False, fills: bool = True):
        self.routed, self.fills = routed, fills
        self.max_step_tokens, self.cache_bytes, self.keep_keys_values = max_step_tokens, cache_bytes, keep_keys_values
        self._skip = RoutePolicy(Route([0] * routed.n_layers))
        self._waiting: list[list[Node]] = [[] for _ in range(routed.n_layers)]
        # Nodes that nothing waits for, by id, the least recently used first. Those that later nodes stand on go last: an early prefix
        # serves more paths. Of these only the states go. Keys and values stay: a path is complete only with those of all of its nodes.
        self._leaves: OrderedDict[int, Node] = OrderedDict()
        self._inner: OrderedDict[int, Node] = OrderedDict()
        self._ended: list[tuple[Hashable, Node]] = []
        self._cache_names: list[set[str]] = []
        self.n_applied = self.n_padded = 0  # block applications of real sequences, and of those that only fill a step
        self.n_tokens = 0  # tokens of all of them, pads among them
        self.n_bytes = self.peak_bytes = 0  # of the states kept now, and at most

    def open(self, inputs: dict[str, Tensor], stem: Node | None = None) -> list[Node]:
        """Take sequences of one width in: the model's own inputs (B, W), B at least 2. The roots of their tries, which begin empty.

        With the root of a `stem` these are inputs of what follows its tokens; W counts the pads between.
        """
        ids = inputs["input_ids"]
        bucket, roots = Bucket(len(ids), ids.shape[1], 0 if stem is None else stem.bucket.width), []
        self._cache_names = []

        def capture(block: int, x_BTD: Tensor, arguments: dict[str, Any]) -> None:
            if block == 0:
                roots.extend(Node(bucket, index, stem=stem, state=state) for index, state in enumerate(x_BTD))
            bucket.arguments.append({name: value for name, value in arguments.items() if not isinstance(value, Cache)})
            self._cache_names.append({name for name, value in arguments.items() if isinstance(value, Cache)})

        cache = self.routed.new_cache(self._skip, torch.ones_like(ids), capture)
        if stem is not None:
            cache.go_on_behind(bucket.n_before)
            inputs = inputs | {"attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (bucket.n_before, 0), value=1)}
            if "position_ids" in inputs:
                inputs["position_ids"] = inputs["position_ids"] + bucket.n_before
        self.routed.decoder_forward(cache, **inputs)
        return roots

    def open_stem(self, tokens: Sequence[int], inputs: Inputs, filler: Any) -> Node:
        """The root of the tokens that sequences to come begin with; `close` forgets it, after those."""
        [stem] = self.open_all([tokens], inputs, filler, len)
        stem.bucket.is_stem = True
        return stem

    def open_all(
        self, sequences: Sequence[Any], inputs: Inputs, filler: Any, width_of: Callable[[Any], int], stem: Node | None = None
    ) -> list[Node]:
        """The root of each sequence's trie, those of one width opened together; behind a stem, their own tokens alone are given.

        A short filler stands behind them: it makes every family build an explicit mask. Without one attention can round differently.
        """
        by_width: dict[int, list[int]] = defaultdict(list)
        for place, sequence in enumerate(sequences):
            by_width[width_of(sequence)].append(place)
        roots: dict[int, Node] = {}
        for width, places in by_width.items():
            roots |= zip(places, self.open(inputs([*(sequences[place] for place in places), filler], width), stem), strict=False)
        return [roots[place] for place in range(len(sequences))]

    def close(self, roots: Iterable[Node]) -> None:
        """Forget the tries of some sequences, none of which may be waited for."""
        for root in roots:
            stack = list(root.children.values())
            while stack:
                node = stack.pop()
                stack += node.children.values()
                self._keep(node)
                self.n_bytes -= bytes_of(node)
            root.children.clear()

    def submit(self, root: Node, route: Route, tag: Hashable) -> None:
        """Ask for the states at the end of a route; `sweep` brings the last node under the tag."""
        self.routed.check_adapter(route)
        node = root
        for span in route.spans:
            before = node
            for block in span.blocks:
                node = child_of(node, block_span(block, span.adapter))
            if span.strength != 1:
                node = child_of(node, span, before)
        node.tags.append(tag)
        if node.state is not None:
            self._end(node)
        needed = [node]
        while needed:
            node = needed.pop()
            if node.state is not None or any(node in source.dependents for source in node.sources):
                continue
            for source in node.sources:
                source.dependents.append(node)
                self._keep(source)
                needed.append(source)
            self._wait_if_ready(node)

    def _wait_if_ready(self, node: Node) -> None:
        if all(source.state is not None for source in node.sources):
            self._waiting[node.span.last].append(node)

    def release(self, node: Node) -> None:
        """The results of an evaluation that ended at this node have been read."""
        node.pins -= 1
        self._offer(node)

    @property
    def n_waiting(self) -> int:
        return sum(map(len, self._waiting))

    def sweep(self, force: bool = False) -> list[tuple[Hashable, Node]]:
        """Run what waits, but without `force` no step filled to less than half; (tag, last node) of every route that reached its end."""
        for block in range(self.routed.n_layers):
            while self._run_block(block, force):
                pass
        ended, self._ended = self._ended, []
        return ended

    def ends(self, n: int) -> Iterator[tuple[Hashable, Node]]:
        """(tag, last node) of `n` routes as they reach their ends; steps that are not full run only where nothing else can."""
        force = False
        while n:
            n_applied = self.n_applied
            found = self.sweep(force)
            n -= len(found)
            yield from found
            force = self.n_applied == n_applied

    def _run_block(self, block: int, force: bool) -> bool:
        """One round over what waits at a block now; True when something ran (second passes may wait at it then)."""
        alike: dict[tuple[int, int, str], list[Node]] = defaultdict(list)  # of one width, behind as many tokens, under one adapter
        ends = [node for node in self._waiting[block] if node.before is not None]
        for node in self._waiting[block]:
            if node.before is None:
                alike[node.bucket.width, node.bucket.n_before, node.span.adapter].append(node)
        self._waiting[block] = []
        self._damp(ends)
        ran = bool(ends)
        for (width, *_), nodes in alike.items():
            n_sequences = max(1, self.max_step_tokens // width)  # R
            for start in range(0, len(nodes), n_sequences):
                step = nodes[start : start + n_sequences]
                if len(step) < n_sequences * MIN_FILL and not force and not step[0].bucket.is_stem:
                    self._waiting[block] += step
                    continue
                self._apply(block, step, n_sequences if self.fills else len(step))
                ran = True
        return ran

    def _damp(self, nodes: list[Node]) -> None:
        """Take states to h + s (F(h) - h) where spans of a strength s end. Number by number, so whatever else runs changes no rounding."""
        for node in nodes:
            after, before = (source.state for source in node.sources)
            node.state = before + node.span.strength * (after - before)  # type: ignore[operator]
        self._settle(nodes)

    def _apply(self, block: int, nodes: list[Node], n_sequences: int) -> None:
        """Run one step of `n_sequences` sequences, the last of `nodes` repeated to fill it."""
        nodes.sort(key=lambda node: id(node.bucket))
        filled = nodes + [nodes[-1]] * (n_sequences - len(nodes))
        parents: list[Any] = [node.parent for node in filled]
        slots = PassSlots(new_slots(self.routed.config, self.routed.n_layers)) if self.keep_keys_values else None
        if slots is not None and nodes[0].stem is not None:
            stems: list[Any] = [node.stem for node in filled]
            keys, values = (torch.stack([stem.keys_values[0][part] for stem in stems]) for part in (0, 1))
            slots.n_seen = nodes[0].bucket.n_before
            fill(slots.layers[block], keys, values, slots.n_seen)
        arguments = gather(block, filled) | dict.fromkeys(self._cache_names[block], slots)
        x_RWD = self.routed.run_block(block, torch.stack([parent.state for parent in parents]), arguments, nodes[0].span.adapter)
        self.n_applied += len(nodes)
        self.n_padded += n_sequences - len(nodes)
        self.n_tokens += n_sequences * nodes[0].bucket.width
        for index, node in enumerate(nodes):
            self.n_bytes -= bytes_of(node)  # its keys and values, where only its states were evicted
            # A copy: a view would keep the whole step's states alive.
            node.state = x_RWD[index].clone()
            if slots is not None:
                node.keys_values = (keys_values(slots.layers[block], index),)
        self._settle(nodes)

    def _settle(self, nodes: list[Node]) -> None:
        """These nodes have their states now: let what waits for them go on, and keep to the memory there is."""
        for node in nodes:
            self.n_bytes += bytes_of(node)
            for source in node.sources:
                source.dependents.remove(node)
                self._offer(source)
            for dependent in node.dependents:
                self._wait_if_ready(dependent)
            self._end(node)
        self.peak_bytes = max(self.peak_bytes, self.n_bytes)
        while self.n_bytes > self.cache_bytes and (candidates := self._leaves or self._inner):
            self._evict(candidates.popitem(last=False)[1])

    def _end(self, node: Node) -> None:
        """Hand the node to the evaluations that end there; its states stay until each is released."""
        self._ended += [(tag, node) for tag in node.tags]
        node.pins += len(node.tags)
        node.tags = []
        self._offer(node)

    def _offer(self, node: Any) -> None:
        """Let the node be evicted if nobody needs its states: no reader and no child that waits for it."""
        self._keep(node)
        if node.parent is None or not node.is_held or node.pins or node.dependents:
            return
        if not node.is_stood_on:
            self._leaves[id(node)] = node
        elif node.state is not None and (node.keys_values or not self.keep_keys_values):
            self._inner[id(node)] = node

    def _keep(self, node: Node) -> None:
        self._leaves.pop(id(node), None)
        self._inner.pop(id(node), None)

    def _evict(self, node: Node) -> None:
        """Drop a node's states, and its keys and values where no path that is kept runs through it."""
        self.n_bytes -= bytes_of(node)
        node.state = None
        if node.bucket.is_stem or not node.is_stood_on:  # who ran behind a stem has its keys and values
            node.keys_values = ()
        self.n_bytes += bytes_of(node)
        self._offer(node.parent)

    def finish(self, states_ND: Tensor) -> Tensor:
        """Logits (N, V) of final states: whatever the model does behind its last block. N should be a fixed number too."""
        ids = torch.zeros((len(states_ND), 1), dtype=torch.long, device=self.routed.device)

        def put(block: int, x_BTD: Tensor, _: dict[str, Any]) -> Tensor | None:
            return states_ND[:, None].to(x_BTD.device) if block == self.routed.n_layers - 1 else None

        return self.routed.forward(self.routed.new_cache(self._skip, torch.ones_like(ids), put), input_ids=ids).logits[:, 0]
