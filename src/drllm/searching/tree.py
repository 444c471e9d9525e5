"""Monte Carlo tree search over the routes of one question: algorithm 1 of arXiv 2510.12773, as a pure ask / tell object.

A node is a route and the root is the base route. An edit skips a run of 1 to `max_skip_run` executed blocks or repeats one executed
block, so every block is edited at most once and no edit is a no-op. A route reached by two orders of edits is one node.

Departure: with about 3 L edits at every node, 50 simulations would never leave the root's children. A node therefore holds at most
`widening * sqrt(visits)` children (progressive widening, Coulom 2007) and the search goes deeper under the best of them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from drllm.config import SearchConfig
from drllm.routes import Action, Route


@dataclass(slots=True)
class _Node:
    route: Route
    value: float = 0.0  # Q: sum of the rewards seen below and at this node
    visits: int = 0
    children: list[_Node] = field(default_factory=list)
    untried: list[tuple[int, Action, int]] | None = None  # (first block, action, length); None until the node is first expanded


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One told route."""

    route: Route
    reward: float
    margin: float


class RouteTree:
    """The search tree of one question.

    `ask()` gives the next route to evaluate, the base route first, or None when the search is over; `tell()` answers it. The base does
    not count as one of the `n_simulations`.

    Args:
        n_layers: L.
        config: every knob of algorithm 1.
        seed: of the tree's own random choices.
    """

    def __init__(self, n_layers: int, config: SearchConfig, seed: int):
        self._config = config
        self._max_passes = int(config.max_passes_ratio * n_layers)
        self._n_layers = n_layers
        self._random = random.Random(seed)
        self._root = _Node(Route.full(n_layers))
        self._nodes = {self._root.route: self._root}
        self._line: list[_Node] = []  # root to the node asked last
        self.evaluated: list[Evaluation] = []

    def ask(self) -> Route | None:
        """The next route to evaluate, never one asked before; None when the budget is spent, the tree exhausted, or a fix found early."""
        if self._line:
            raise RuntimeError("ask() came twice in a row: tell() the last route's reward first")
        if not self.evaluated:
            self._line = [self._root]
            return self._root.route
        if len(self.evaluated) > self._config.n_simulations or self._stopped():
            return None
        line = self._descend()
        if line is None:
            return None
        self._line = line
        return line[-1].route

    def tell(self, route: Route, reward: float, margin: float = math.nan) -> None:
        """The reward (in [0, 1]; 1 is right) of the route asked last, and its margin if the reward has one."""
        if not self._line or route != self._line[-1].route:
            raise RuntimeError(f"tell() got {route}, which was not the route asked last")
        for node in self._line:
            node.value += reward
            node.visits += 1
        self._line = []
        self.evaluated.append(Evaluation(route, reward, margin))

    @property
    def chosen(self) -> Route | None:
        """The shortest right route (ties: the larger margin, then the first told); None when no route was right.

        When the base was right, it competes too, so a route is only chosen over it for being shorter.
        """
        right = [(e.route.n_passes, -e.margin if not math.isnan(e.margin) else 0.0, i, e.route) for i, e in enumerate(self.evaluated) if _is_right(e)]
        return min(right)[3] if right else None

    def _stopped(self) -> bool:
        """Early stop of algorithm 1: the base was wrong and a route is right."""
        return self._config.early_stop and not _is_right(self.evaluated[0]) and _is_right(self.evaluated[-1])

    def _descend(self) -> list[_Node] | None:
        """Select down to a node that may grow and give it a new child: the line from the root to that child."""
        while True:
            node, line = self._root, [self._root]
            while not self._may_grow(node):
                if not node.children:
                    break  # a leaf with nothing legal left
                node = self._select(node)
                line.append(node)
            child = self._expand(node) if self._may_grow(node) else None
            if child is not None:
                return [*line, child]
            # The node had nothing new. Every dead end is remembered by `untried`, so this ends.
            if not self._prune(line):
                return None

    def _may_grow(self, node: _Node) -> bool:
        if node.untried is None:
            node.untried = self._edits(node.route)
            self._random.shuffle(node.untried)
        return bool(node.untried) and len(node.children) < math.ceil(self._config.widening * math.sqrt(node.visits))

    def _expand(self, node: _Node) -> _Node | None:
        """The node's next untried edit that leads to a new route; edits to known routes become links on the way."""
        assert node.untried is not None
        while node.untried:
            start, action, length = node.untried.pop()
            route = node.route.edit(start, *([action] * length))
            known = self._nodes.get(route)
            if known is None:
                child = self._nodes[route] = _Node(route)
                node.children.append(child)
                return child
            node.children.append(known)
            if not self._may_grow(node):
                return None
        return None

    def _prune(self, line: list[_Node]) -> bool:
        """After a fruitless descent: cut an exhausted leaf from its parents, or let a widened-out node's parent look elsewhere."""
        node = line[-1]
        if node.untried or node.children:
            node.visits += 1  # a link was added: the visit counts, so that selection moves on
            return True
        if len(line) == 1:
            return False
        for parent in self._nodes.values():
            if node in parent.children:
                parent.children.remove(node)
        return True

    def _select(self, node: _Node) -> _Node:
        if self._random.random() < self._config.random_prob:
            return self._random.choice(node.children)
        return max(node.children, key=lambda child: self._ucb(node, child))

    def _ucb(self, parent: _Node, child: _Node) -> float:
        """Q / v + c sqrt(ln V / v) - lambda * passes / L."""
        explore = self._config.exploration * math.sqrt(math.log(max(parent.visits, 1)) / child.visits)
        return child.value / child.visits + explore - self._config.length_penalty * child.route.n_passes / self._n_layers

    def _edits(self, route: Route) -> list[tuple[int, Action, int]]:
        """Every legal edit: no no-op, no block edited twice, no path longer than the cap, none empty."""
        edits: list[tuple[int, Action, int]] = []
        n_passes = route.n_passes
        for start in range(self._n_layers):
            if route[start] != Action.EXECUTE:
                continue
            if n_passes + 1 <= self._max_passes:
                edits.append((start, Action.REPEAT, 1))
            for length in range(1, self._config.max_skip_run + 1):
                if start + length > self._n_layers or route[start + length - 1] != Action.EXECUTE:
                    break
                if n_passes - length >= 1:
                    edits.append((start, Action.SKIP, length))
        return edits


def _is_right(evaluation: Evaluation) -> bool:
    return evaluation.reward >= 1.0 - 1e-9
