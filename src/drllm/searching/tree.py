"""Algorithm 1 of arXiv 2510.12773: Monte Carlo tree search by UCB over the routes of one question, as an ask / tell object. No torch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import NamedTuple

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Action, Route
from drllm.searching.edits import EditSpace

SHORTER = 2  # blocks that a right route saves, at least, to end the search of a question


class Evaluation(NamedTuple):
    """One evaluated route: its verdict and its margin in the scorer's unit (nats, or nats a character); nan where the reward has none."""

    route: Route
    correct: bool
    margin: float


@dataclass(slots=True, eq=False)
class Node:
    """A route in the tree, and what is known below it."""

    route: Route
    undrawn: int  # codes of edits not drawn yet, legal or not
    moved: dict[int, int] = field(default_factory=dict)  # the sparse part of a lazy Fisher-Yates shuffle of the codes
    value: float = 0.0  # Q: sum of the verdicts seen at this node and below it, along the lines that passed here
    visits: int = 0
    children: list[Node] = field(default_factory=list)
    done: bool = False  # nothing new can be reached from here


class RouteTree:
    """The search tree of one question: a node is a route, the root the base's; edits (`drllm.searching.edits`) lead from node to node.

    `ask()` gives the next route, the base's first, or None at the end; `tell()` answers it, and the two strictly alternate. It ends when
    the budget is spent, the tree exhausted, or an early stop met. A route that two orders of edits reach is one node and is asked once.

    Departure from the paper: with about 3 L edits at every node, 50 simulations never leave the root's children. So a node holds at most
    `widening * sqrt(visits)` children (progressive widening, Coulom 2007) and the search goes deeper under the best of them.

    Simulations are counted as the authors' code counts them: the base's is one, and so is each step that meets a known route or draws the
    edit "repeat no times", a quarter of all; such a step is told the verdict that is known. With `counted` "distinct" only edited routes
    count, each once: the base comes on top, so 50 simulations are at most 51 evaluations. The same seed and verdicts give the same routes.
    """

    def __init__(self, n_layers: int, config: SearchConfig, seed: int):
        self.evaluated: list[Evaluation] = []  # every evaluated route with its verdict and margin, in order
        self._asked: Route | None = None  # the route that waits for its verdict
        self._space = EditSpace.of(n_layers, config)
        self._config = config
        self._counts_all = config.counted == "all"
        self.n_met = 0  # simulations without a new route
        # With all counted, the codes from the space's own on repeat a block no times.
        self._n_codes = self._space.n_codes + (n_layers if self._counts_all else 0)
        self._random = random.Random(seed)
        self.root = Node(Route.full(n_layers), self._n_codes)
        self.nodes = {self.root.route: self.root}
        self.line: list[Node] = []  # root to the node asked last
        self._verdicts: dict[Route, bool] = {}

    def ask(self) -> Route | None:
        """The next route to evaluate, never one asked before; None at the end."""
        if self._asked is not None:
            raise RuntimeError("ask() came twice in a row: tell() the last route's verdict first")
        if not self.evaluated:
            self.line = [self.root]
        elif self._has_budget() and not self._stopped():
            self.line = self._descend()
        else:
            self.line = []
        self._asked = self.line[-1].route if self.line else None
        return self._asked

    def tell(self, route: Route, correct: bool, margin: float = math.nan) -> None:
        """The verdict on the route asked last, and its margin if the reward has one."""
        if route != self._asked:
            raise RuntimeError(f"tell() got {route}, which was not the route asked last")
        if correct not in (0, 1):
            raise InputError(f"verdict {correct} of route {route}: expected true or false")
        self.evaluated.append(Evaluation(route, bool(correct), float(margin)))
        self._asked = None
        self._verdicts[route] = bool(correct)
        self._book(self.line, bool(correct))

    @property
    def chosen(self) -> Route | None:
        """The shortest right route, the base's among them, as the authors sort a question's paths; None where none was right.

        Of equally short ones that of the fewest blocks that run, then that of the larger margin, then the first.
        """
        right = [found for found in self.evaluated if found.correct]
        best = min(right, key=_length, default=None)  # min() keeps the first of equals
        return best.route if best else None

    def _book(self, nodes: list[Node], correct: bool) -> None:
        """Count a simulation at the nodes it passed."""
        for node in nodes:
            node.value += correct
            node.visits += 1

    def _has_budget(self) -> bool:
        """Whether another simulation may be made."""
        made = len(self.evaluated) + self.n_met if self._counts_all else len(self.evaluated) - 1
        return made < self._config.n_simulations

    def _stopped(self) -> bool:
        """A wrong base is mended, or a right route is shorter by some blocks: the newest one, since the search would have ended before."""
        newest = self.evaluated[-1]
        if not self._config.early_stop or not newest.correct:
            return False
        return not self.evaluated[0].correct or newest.route.n_passes <= len(newest.route) - SHORTER

    def _descend(self) -> list[Node]:
        """Select down to a node that may grow and give it a new child: the line from the root to that child; empty when exhausted."""
        while not self.root.done:
            line = [self.root]
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
        room = math.ceil(self._config.widening * math.sqrt(node.visits))
        while (len(node.children) < room or all(child.done for child in node.children)) and self._has_budget():
            if (route := self._draw(node)) is None:
                return None
            if (known := self.nodes.get(route)) is None:
                self.nodes[route] = child = Node(route, self._n_codes)
                node.children.append(child)
                return child
            if self._counts_all:
                self.n_met += 1
                self._book(list(dict.fromkeys([*line, known])), self._verdicts[route])
            if known is not node:
                node.children.append(known)
        return None

    def _draw(self, node: Node) -> Route | None:
        """The route after a random legal edit that was not drawn at this node before; None when there is none left.

        In O(1) and without a list of edits: the codes are shuffled as they are drawn.
        """
        while node.undrawn:
            pick = self._random.randrange(node.undrawn)
            node.undrawn -= 1
            code = node.moved.pop(pick, pick)
            if pick != node.undrawn:
                node.moved[pick] = node.moved.pop(node.undrawn, node.undrawn)
            route = node.route if code >= self._space.n_codes else self._space.apply(node.route, code)
            if route is not None:
                return route
        return None

    def _select(self, parent: Node, candidates: list[Node]) -> Node:
        if self._random.random() < self._config.random_prob:
            return self._random.choice(candidates)
        return max(candidates, key=lambda child: self._rank(parent, child))

    def _rank(self, parent: Node, child: Node) -> float:
        """Q / v + c sqrt(ln V / v) - lambda * passes / L, V the parent's (algorithm 1): it descends to the child that ranks highest."""
        explore = self._config.exploration * math.sqrt(math.log(parent.visits) / child.visits)
        return child.value / child.visits + explore - self._config.length_penalty * child.route.n_passes / len(child.route)


def _length(found: Evaluation) -> tuple[float, ...]:
    """What makes a right route the shorter; one without a margin loses ties."""
    blocks = sum(action != Action.SKIP for action in found.route.actions)
    return found.route.n_passes, blocks, math.inf if math.isnan(found.margin) else -found.margin
