"""Tree search over the routes of one question, as a pure ask / tell object. No torch.

A node is a route and the root is the base route; edits (`drllm.searching.edits`) lead from node to node. A route reached by two orders of
edits is one node with several parents and is evaluated once. Preset `paper` is `drllm.searching.paper_tree`, preset `default` is
`drllm.searching.margin_tree`, and `drllm.searching.presets.make_tree` takes the one that a configuration names.

Departure from the paper: with about 3 L edits at every node, 50 simulations never leave the root's children. So a node holds at most
`widening * sqrt(visits)` children (progressive widening, Coulom 2007) and the search goes deeper under the best of them.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.edits import EditSpace, Evaluation


@dataclass(slots=True, eq=False)
class Node:
    """A route in the tree, and what is known below it."""

    route: Route
    undrawn: int  # paper: codes of edits not drawn yet, legal or not
    edit: int = -1  # code of the edit that made it
    moved: dict[int, int] = field(default_factory=dict)  # paper: the sparse part of a lazy Fisher-Yates shuffle of the codes
    keys: dict[int, float] | None = None  # margins: the Gumbel key of each code not drawn yet, made when the node first grows
    grade: float = 0.0  # margins: its margin; where the reward has none, its verdict
    best: tuple[float, ...] = ()  # margins: the standing of the best route here and below
    value: float = 0.0  # Q: sum of the verdicts seen at this node and below it, along the lines that passed here
    visits: int = 0
    children: list[Node] = field(default_factory=list)
    done: bool = False  # nothing new can be reached from here


class Strategy(ABC):
    """Which routes of one question to evaluate.

    `ask()` gives the next route, the base route first, or None when there is nothing left to do; `tell()` answers it. The two strictly
    alternate.
    """

    def __init__(self) -> None:
        self.evaluated: list[Evaluation] = []  # every evaluated route with its verdict and margin, in order
        self._asked: Route | None = None  # the route that waits for its verdict

    def ask(self) -> Route | None:
        """The next route to evaluate, never one asked before; None at the end."""
        if self._asked is not None:
            raise RuntimeError("ask() came twice in a row: tell() the last route's verdict first")
        self._asked = self._next()
        return self._asked

    def tell(self, route: Route, correct: bool, margin: float = math.nan) -> None:
        """The verdict on the route asked last, and its margin if the reward has one."""
        if route != self._asked:
            raise RuntimeError(f"tell() got {route}, which was not the route asked last")
        if correct not in (0, 1):
            raise InputError(f"verdict {correct} of route {route}: expected true or false")
        self.evaluated.append(Evaluation(route, bool(correct), float(margin)))
        self._asked = None

    @property
    def chosen(self) -> Route | None:
        """The shortest right route that competes (ties: the larger margin, then the first one); None when no route was right.

        When the base was right, it competes too: the identity is chosen unless another right route is shorter, or as long with a larger
        margin.
        """
        right = [found for found in self.evaluated if found.correct]
        # min() keeps the first of equals.
        best = min(self._competing(right) if right else [], key=self._length, default=None)
        return best.route if best else None

    def _length(self, found: Evaluation) -> tuple[float, ...]:
        """What makes a right route the shorter; one without a margin loses ties."""
        return found.route.n_passes, math.inf if math.isnan(found.margin) else -found.margin

    @abstractmethod
    def _next(self) -> Route | None:
        """As `ask`."""

    def _competing(self, right: list[Evaluation]) -> list[Evaluation]:
        """Those of the right routes, at least one, that may be chosen."""
        return right


class RouteTree(Strategy):
    """The search tree of one question.

    It ends when the budget is spent, the tree exhausted, or a fix found early. `n_simulations` counts distinct edited routes, where
    `counted` does not say otherwise: the base comes on top, so 50 simulations are at most 51 evaluations.

    Args:
        n_layers: L, at least 1.
        config: every option of the search.
        seed: of the tree's own random choices; the same seed, verdicts and margins give the same routes.
    """

    def __init__(self, n_layers: int, config: SearchConfig, seed: int):
        super().__init__()
        self._space = EditSpace.of(n_layers, config)
        self._config = config
        self._n_layers = n_layers
        self._random = random.Random(seed)
        self._root = Node(Route.full(n_layers), self._n_codes)
        self._nodes = {self._root.route: self._root}
        self._line: list[Node] = []  # root to the node asked last
        self._first_fix: int | None = None  # its index in `evaluated`

    def tell(self, route: Route, correct: bool, margin: float = math.nan) -> None:
        super().tell(route, correct, margin)
        for node in self._line:
            node.value += self.evaluated[-1].correct
            node.visits += 1
        if correct and not self.evaluated[0].correct and self._first_fix is None:
            self._first_fix = len(self.evaluated) - 1

    def _next(self) -> Route | None:
        if not self.evaluated:
            self._line = [self._root]
        elif self._has_budget() and not self._stopped():
            self._line = self._descend()
        else:
            self._line = []
        return self._line[-1].route if self._line else None

    @property
    def _n_codes(self) -> int:
        """Codes that a node draws from."""
        return self._space.n_codes

    def _has_budget(self) -> bool:
        """Whether another simulation may be made."""
        return len(self.evaluated) <= self._config.n_simulations

    def _met(self, line: list[Node], node: Node) -> None:
        """An edit of the last node of a line led to a node that is known, maybe that last one itself."""

    def _width(self, node: Node) -> float:
        """Children the node may have, in multiples of widening * sqrt(visits)."""
        return 1.0

    @abstractmethod
    def _draw(self, node: Node) -> tuple[int, Route] | None:
        """The code of a legal edit that was not drawn at this node before, and the route after it; None when there is none left."""

    def _patience(self) -> int:
        """Simulations that an early stop waits beyond the first right route."""
        return 0

    def _rank(self, parent: Node, child: Node) -> Any:
        """It descends to the child that ranks highest: Q / v + c sqrt(ln V / v) - lambda * passes / L, V the parent's (algorithm 1)."""
        explore = self._config.exploration * math.sqrt(math.log(parent.visits) / child.visits)
        return child.value / child.visits + explore - self._config.length_penalty * child.route.n_passes / self._n_layers

    def _stopped(self) -> bool:
        """Early stop of algorithm 1: the base was wrong and a route is right."""
        return self._config.early_stop and self._first_fix is not None and len(self.evaluated) > self._first_fix + self._patience()

    def _descend(self) -> list[Node]:
        """Select down to a node that may grow and give it a new child: the line from the root to that child; empty when exhausted."""
        while not self._root.done:
            line = [self._root]
            while not line[-1].done:
                if (child := self._grow(line)) is not None:
                    return [*line, child]
                if not self._has_budget():
                    return []
                if candidates := [child for child in line[-1].children if not child.done]:
                    line.append(self._select(line[-1], candidates))
                else:
                    line[-1].done = True  # and start again at the root: every restart closes a node, so this ends
        return []

    def _grow(self, line: list[Node]) -> Node | None:
        """A new child of the last node, if that has room for one; edits that lead to known routes become links on the way."""
        node = line[-1]
        room = math.ceil(self._width(node) * self._config.widening * math.sqrt(node.visits))
        while (len(node.children) < room or all(child.done for child in node.children)) and self._has_budget():
            if (drawn := self._draw(node)) is None:
                return None
            code, route = drawn
            if (known := self._nodes.get(route)) is None:
                self._nodes[route] = child = Node(route, self._n_codes, code)
                node.children.append(child)
                return child
            self._met(line, known)
            if known is not node:
                node.children.append(known)
        return None

    def _select(self, parent: Node, candidates: list[Node]) -> Node:
        if self._random.random() < self._config.random_prob:
            return self._random.choice(candidates)
        return max(candidates, key=lambda child: self._rank(parent, child))
