"""Monte Carlo tree search over the routes of one question: algorithm 1 of arXiv 2510.12773, as a pure ask / tell object.

A node is a route and the root is the base route. An edit skips a run of 1 to `max_skip_run` executed blocks or repeats one executed
block, so every block is edited at most once, no edit is a no-op and the edits form a graph without cycles. A route reached by two orders
of edits is one node with several parents and is evaluated once.

Departure: with about 3 L edits at every node, 50 simulations would never leave the root's children. A node therefore holds at most
`widening * sqrt(visits)` children (progressive widening, Coulom 2007) and the search goes deeper under the best of them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import NamedTuple

from drllm.config import SearchConfig
from drllm.errors import InputError
from drllm.routes import Action, Route


class Evaluation(NamedTuple):
    """One told route."""

    route: Route
    reward: float
    margin: float


@dataclass(slots=True, eq=False)
class _Node:
    route: Route
    undrawn: int  # codes of edits not drawn yet, legal or not
    moved: dict[int, int] = field(default_factory=dict)  # the sparse part of a lazy Fisher-Yates shuffle of the codes
    value: float = 0.0  # Q: sum of the rewards seen at this node and below it, along the lines that passed here
    visits: int = 0
    children: list[_Node] = field(default_factory=list)
    done: bool = False  # nothing new can be reached from here


class RouteTree:
    """The search tree of one question.

    `ask()` gives the next route to evaluate, the base route first, or None when the search is over; `tell()` answers it. The two strictly
    alternate. `n_simulations` counts distinct edited routes: the base comes on top, so 50 simulations are at most 51 evaluations.

    Args:
        n_layers: L, at least 1.
        config: every knob of algorithm 1.
        seed: of the tree's own random choices; the same seed and rewards give the same routes.

    Attributes:
        evaluated: every told route with its reward and margin, in the order told.
    """

    def __init__(self, n_layers: int, config: SearchConfig, seed: int):
        if n_layers < 1:
            raise InputError(f"a tree over {n_layers} blocks: expected at least 1")
        self._config = config
        self._n_layers = n_layers
        self._max_passes = math.floor(config.max_passes_ratio * n_layers + 1e-9)
        self._n_codes = n_layers * (1 + min(config.max_skip_run, n_layers))
        self._random = random.Random(seed)
        self._root = _Node(Route.full(n_layers), self._n_codes)
        self._nodes = {self._root.route: self._root}
        self._line: list[_Node] = []  # root to the node asked last
        self.evaluated: list[Evaluation] = []

    def ask(self) -> Route | None:
        """The next route to evaluate, never one asked before; None when the budget is spent, the tree exhausted, or a fix found early."""
        if self._line:
            raise RuntimeError("ask() came twice in a row: tell() the last route's reward first")
        if not self.evaluated:
            self._line = [self._root]
        elif len(self.evaluated) <= self._config.n_simulations and not self._stopped():
            self._line = self._descend()
        return self._line[-1].route if self._line else None

    def tell(self, route: Route, reward: float, margin: float = math.nan) -> None:
        """The reward (in [0, 1]; 1 is right) of the route asked last, and its margin if the reward has one."""
        if not self._line or route != self._line[-1].route:
            raise RuntimeError(f"tell() got {route}, which was not the route asked last")
        if not 0.0 <= reward <= 1.0:
            raise InputError(f"reward {reward} of route {route}: expected a number between 0 and 1")
        for node in self._line:
            node.value += reward
            node.visits += 1
        self._line = []
        self.evaluated.append(Evaluation(route, reward, margin))

    @property
    def chosen(self) -> Route | None:
        """The shortest right route (ties: the larger margin, then the first told); None when no route was right.

        When the base was right, it competes too: the identity is chosen unless another right route is shorter, or as long with a larger
        margin.
        """
        right = [told for told in self.evaluated if _is_right(told)]
        # min() keeps the first of equals; a route without a margin loses ties.
        best = min(right, key=lambda told: (told.route.n_passes, math.inf if math.isnan(told.margin) else -told.margin), default=None)
        return best.route if best else None

    def _stopped(self) -> bool:
        """Early stop of algorithm 1: the base was wrong and a route is right."""
        return self._config.early_stop and not _is_right(self.evaluated[0]) and _is_right(self.evaluated[-1])

    def _descend(self) -> list[_Node]:
        """Select down to a node that may grow and give it a new child: the line from the root to that child; empty when exhausted."""
        while not self._root.done:
            line = [self._root]
            while not line[-1].done:
                if (child := self._grow(line[-1])) is not None:
                    return [*line, child]
                if candidates := [child for child in line[-1].children if not child.done]:
                    line.append(self._select(line[-1], candidates))
                else:
                    line[-1].done = True  # and start again at the root: every restart closes a node, so this ends
        return []

    def _grow(self, node: _Node) -> _Node | None:
        """A new child, if the node has room for one; edits that lead to known routes become links on the way."""
        room = math.ceil(self._config.widening * math.sqrt(node.visits))
        while len(node.children) < room or all(child.done for child in node.children):
            if (route := self._draw(node)) is None:
                return None
            known = self._nodes.get(route)
            child = known or _Node(route, self._n_codes)
            node.children.append(child)
            if known is None:
                self._nodes[route] = child
                return child
        return None

    def _draw(self, node: _Node) -> Route | None:
        """The route after a random legal edit that was not drawn at this node before; None when there is none left.

        Drawing costs O(1) and no list of edits is made: codes 0 .. n_codes - 1 stand for (kind, first block), shuffled as they are drawn.
        """
        while node.undrawn:
            pick = self._random.randrange(node.undrawn)
            node.undrawn -= 1
            code = node.moved.pop(pick, pick)
            if pick != node.undrawn:
                node.moved[pick] = node.moved.pop(node.undrawn, node.undrawn)
            if (route := self._edited(node.route, *divmod(code, self._n_layers))) is not None:
                return route
        return None

    def _edited(self, route: Route, kind: int, start: int) -> Route | None:
        """The route with block `start` repeated (kind 0) or `kind` blocks skipped from there; None where that is not legal.

        Illegal: a block edited twice, a path beyond the cap, the empty path.
        """
        length = max(kind, 1)
        if start + length > self._n_layers or any(route[block] != Action.EXECUTE for block in range(start, start + length)):
            return None
        edited = route.edit(start, *([Action.SKIP if kind else Action.REPEAT] * length))
        return edited if 1 <= edited.n_passes <= self._max_passes else None

    def _select(self, parent: _Node, candidates: list[_Node]) -> _Node:
        if self._random.random() < self._config.random_prob:
            return self._random.choice(candidates)
        return max(candidates, key=lambda child: self._ucb(parent, child))

    def _ucb(self, parent: _Node, child: _Node) -> float:
        """Q / v + c sqrt(ln V / v) - lambda * passes / L, with V the parent's visits (algorithm 1)."""
        explore = self._config.exploration * math.sqrt(math.log(parent.visits) / child.visits)
        return child.value / child.visits + explore - self._config.length_penalty * child.route.n_passes / self._n_layers


def _is_right(told: Evaluation) -> bool:
    return told.reward >= 1.0 - 1e-9
