"""Tree search over the routes of one question, as a pure ask / tell object.

A node is a route and the root is the base route; edits (`drllm.searching.edits`) lead from node to node. A route reached by two orders of
edits is one node with several parents and is evaluated once.

Preset `paper` is algorithm 1 of arXiv 2510.12773: Monte Carlo tree search by UCB on verdicts. Departure: with about 3 L edits at every
node, 50 simulations never leave the root's children. So a node holds at most `widening * sqrt(visits)` children (progressive widening,
Coulom 2007) and the search goes deeper under the best of them.

Preset `default` goes by log-likelihood margins, which say more than verdicts:
- A node stands as the best route seen on the lines that passed it does, and the search descends to the child that stands best (margins
  are exact, so there is nothing to average, and no bonus for few visits). Base wrong: the larger margin stands better. Base right: among
  routes with `comfort` times the base's margin the shorter, then the others by margin.
- Edits are tried by a prior's weight (`EditPrior`; alike without one) and, once some route of this question has had them, by what they
  gained there: gains of edits nearly add up. The root is twice as wide and other nodes a quarter as wide as in `paper`.
- An early stop waits `patience` more simulations for a route with more margin than the first right one.
Where rewards are generated there are no margins: selection, early stop and choice are those of `paper`, the edits still as above.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.edits import EditSpace, Evaluation
from drllm.searching.prior import EditPrior

# Chosen on a simulation of margins that add up as those of results/ do, not on a model.
ROOT_WIDTH, NODE_WIDTH = 2.0, 0.25  # default: children a node may have, in multiples of widening * sqrt(visits)
PASS_GAIN = 0.3  # default, base right: what a pass saved is worth when edits are drawn, in typical changes of the margin


@dataclass(slots=True, eq=False)
class _Node:
    route: Route
    undrawn: int  # codes of edits not drawn yet, legal or not
    edit: int = -1  # code of the edit that made it
    moved: dict[int, int] = field(default_factory=dict)  # the sparse part of a lazy Fisher-Yates shuffle of the codes
    keys: dict[int, float] | None = None  # default: the Gumbel key of each code not drawn yet, made when the node first grows
    grade: float = 0.0  # default: its margin; without margins its verdict
    best: tuple[float, ...] = ()  # default: how the best route here and below stands
    value: float = 0.0  # Q: sum of the verdicts seen at this node and below it, along the lines that passed here
    visits: int = 0
    children: list[_Node] = field(default_factory=list)
    done: bool = False  # nothing new can be reached from here


class RouteTree:
    """The search tree of one question.

    `ask()` gives the next route to evaluate, the base route first, or None when the search is over; `tell()` answers it. The two strictly
    alternate. `n_simulations` counts distinct edited routes: the base comes on top, so 50 simulations are at most 51 evaluations.

    Args:
        n_layers: L, at least 1.
        config: preset and every knob.
        seed: of the tree's own random choices; the same seed, verdicts and margins give the same routes.
        prior: which edits to try first, and which never; for preset `default` only.

    Attributes:
        evaluated: every told route with its verdict and margin, in the order told.
    """

    def __init__(self, n_layers: int, config: SearchConfig, seed: int, prior: EditPrior | None = None):
        self._space = space = EditSpace(n_layers, config.max_skip_run, config.max_passes_ratio)
        same_edits = prior is None or (prior.n_layers == n_layers and len(prior.weights) == space.n_codes)
        if prior is not None and (config.preset == "paper" or not same_edits):
            raise InputError(
                f"a prior over {prior.n_layers} blocks and skips of up to {prior.max_skip_run} for a search with preset {config.preset}, "
                f"{n_layers} blocks and skips of up to {config.max_skip_run}: expected preset default and equal sizes"
            )
        weights: Sequence[float] = prior.weights if prior else (1 / space.n_codes,) * space.n_codes
        self._logs = [(code, *space.blocks(code), math.log(weight)) for code, weight in enumerate(weights) if weight > 0]
        self._dead = prior.dead if prior else ()
        self._gains: dict[int, tuple[float, int]] = {}  # by code: sum and number of its gains, over all nodes of this question
        self._change = prior.scale if prior and not math.isnan(prior.scale) else 0.0  # sum of |grade - the base's|; the prior counts once
        self._config = config
        self._n_layers = n_layers
        self._random = random.Random(seed)
        self._root = _Node(Route.full(n_layers), space.n_codes)
        self._nodes = {self._root.route: self._root}
        self._line: list[_Node] = []  # root to the node asked last
        self._first_fix: int | None = None  # its index in `evaluated`
        self.evaluated: list[Evaluation] = []

    def ask(self) -> Route | None:
        """The next route to evaluate, never one asked before; None when the budget is spent, the tree exhausted, or a fix found early."""
        if self._line:
            raise RuntimeError("ask() came twice in a row: tell() the last route's verdict first")
        if not self.evaluated:
            self._line = [self._root]
        elif len(self.evaluated) <= self._config.n_simulations and not self._stopped():
            self._line = self._descend()
        return self._line[-1].route if self._line else None

    def tell(self, route: Route, correct: bool, margin: float = math.nan) -> None:
        """The verdict on the route asked last, and its margin if the reward has one."""
        if not self._line or route != self._line[-1].route:
            raise RuntimeError(f"tell() got {route}, which was not the route asked last")
        told = _evaluation(route, correct, margin)
        line, self._line = self._line, []
        self.evaluated.append(told)
        for node in line:
            node.value += told.correct
            node.visits += 1
        if told.correct and not self.evaluated[0].correct and self._first_fix is None:
            self._first_fix = len(self.evaluated) - 1
        if self._config.preset == "default":
            self._learn(line, told)

    @property
    def chosen(self) -> Route | None:
        """The shortest right route (ties: the larger margin, then the first told); None when no route was right.

        When the base was right, it competes too: the identity is chosen unless another right route is shorter, or as long with a larger
        margin. In `default` only right routes with a comfortable margin compete: at least `comfort` times the base's if the base was right,
        times the largest of all right routes if it was wrong. So a longer route with a smaller margin is never preferred.
        """
        right = [told for told in self.evaluated if told.correct]
        if self._config.preset == "default" and right:
            margins = [told.margin for told in right if not math.isnan(told.margin)]
            reference = right[0].margin if right[0].route.is_full else max(margins, default=math.nan)
            if not math.isnan(reference):
                right = [told for told in right if told.margin >= self._enough(reference)]
        return _shortest(right)

    def _enough(self, reference: float) -> float:
        return min(reference, self._config.comfort * reference)

    @property
    def _graded(self) -> bool:
        """Whether nodes are compared by margins."""
        return self._config.preset == "default" and not math.isnan(self.evaluated[0].margin)

    def _stopped(self) -> bool:
        """Early stop of algorithm 1: the base was wrong and a route is right; with margins after `patience` more simulations."""
        patience = self._config.patience if self._graded else 0
        return self._config.early_stop and self._first_fix is not None and len(self.evaluated) > self._first_fix + patience

    def _learn(self, line: Sequence[_Node], told: Evaluation) -> None:
        """Let all nodes of the line know the new route's standing, and the edit its gain over the parent."""
        node, base = line[-1], self.evaluated[0]
        if math.isnan(base.margin):
            node.grade = float(told.correct)
        else:
            node.grade = -math.inf if math.isnan(told.margin) else told.margin
        enough = self._enough(base.margin)
        if base.correct and node.grade >= enough:
            standing = (math.inf, -told.route.n_passes, node.grade)
        else:
            standing = (node.grade, -told.route.n_passes)
        for above in line:
            above.best = max(above.best, standing)
        if len(line) > 1 and math.isfinite(gain := node.grade - line[-2].grade):
            total, count = self._gains.get(node.edit, (0.0, 0))
            self._gains[node.edit] = total + gain, count + 1
            self._change += abs(node.grade - self._root.grade)

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
        width = 1.0 if self._config.preset == "paper" else ROOT_WIDTH if node is self._root else NODE_WIDTH
        room = math.ceil(width * self._config.widening * math.sqrt(node.visits))
        draw = self._draw if self._config.preset == "paper" else self._draw_promising
        while len(node.children) < room or all(child.done for child in node.children):
            if (drawn := draw(node)) is None:
                return None
            code, route = drawn
            known = self._nodes.get(route)
            child = known or _Node(route, self._space.n_codes, code)
            node.children.append(child)
            if known is None:
                self._nodes[route] = child
                return child
        return None

    def _draw(self, node: _Node) -> tuple[int, Route] | None:
        """A random legal edit that was not drawn at this node before and the route after it; None when there is none left.

        Drawing costs O(1) and no list of edits is made: the codes are shuffled as they are drawn.
        """
        while node.undrawn:
            pick = self._random.randrange(node.undrawn)
            node.undrawn -= 1
            code = node.moved.pop(pick, pick)
            if pick != node.undrawn:
                node.moved[pick] = node.moved.pop(node.undrawn, node.undrawn)
            if (route := self._space.apply(node.route, code)) is not None:
                return code, route
        return None

    def _draw_promising(self, node: _Node) -> tuple[int, Route] | None:
        """As `_draw`, by weight (largest log weight + Gumbel noise first) and, for edits that were told before, by their gain.

        The noise sums to a standard Gumbel over all edits, so a gain of about one typical change beats an untried edit. O(codes).
        """
        if node.keys is None:
            free = [action == 1 for action in node.route]
            noise = self._random.random
            node.keys = {
                code: log - math.log(-math.log(noise() or 5e-324))
                for code, start, stop, log in self._logs
                if stop <= self._n_layers and all(free[start:stop])
            }
        change = self._change / len(self.evaluated) or 1.0
        saving = PASS_GAIN if self.evaluated[0].correct else 0.0
        ranks = node.keys | {
            code: total / count / change - saving * (1 if code < self._n_layers else -(code // self._n_layers))
            for code, (total, count) in self._gains.items()
            if code in node.keys
        }
        while ranks:
            code = max(ranks, key=ranks.__getitem__)
            del ranks[code], node.keys[code]
            route = self._space.apply(node.route, code)
            if route is not None and not any(self._space.contains(route, dead) for dead in self._dead):
                return code, route
        return None

    def _select(self, parent: _Node, candidates: list[_Node]) -> _Node:
        if self._random.random() < self._config.random_prob:
            return self._random.choice(candidates)
        if self._graded:
            return max(candidates, key=lambda child: child.best)
        return max(candidates, key=lambda child: self._ucb(parent, child))

    def _ucb(self, parent: _Node, child: _Node) -> float:
        """Q / v + c sqrt(ln V / v) - lambda * passes / L, with V the parent's visits (algorithm 1)."""
        explore = self._config.exploration * math.sqrt(math.log(parent.visits) / child.visits)
        return child.value / child.visits + explore - self._config.length_penalty * child.route.n_passes / self._n_layers


class FixedRoutes:
    """Given routes behind the interface of `RouteTree`: the base first, then each route once, whatever the verdicts.

    `InputError` when there are none or they are of different lengths.
    """

    def __init__(self, routes: Iterable[Route]):
        routes = list(routes)
        if len(lengths := sorted({len(route) for route in routes})) != 1:
            raise InputError(f"a list of {len(routes)} routes over {lengths or 'no'} blocks: expected at least one, all of one length")
        self._routes = list(dict.fromkeys([Route.full(lengths[0]), *routes]))
        self._asked = False
        self.evaluated: list[Evaluation] = []

    def ask(self) -> Route | None:
        """The next route; None at the end."""
        if self._asked:
            raise RuntimeError("ask() came twice in a row: tell() the last route's verdict first")
        self._asked = len(self.evaluated) < len(self._routes)
        return self._routes[len(self.evaluated)] if self._asked else None

    def tell(self, route: Route, correct: bool, margin: float = math.nan) -> None:
        """The verdict on the route asked last, and its margin if the reward has one."""
        if not self._asked or route != self._routes[len(self.evaluated)]:
            raise RuntimeError(f"tell() got {route}, which was not the route asked last")
        self.evaluated.append(_evaluation(route, correct, margin))
        self._asked = False

    @property
    def chosen(self) -> Route | None:
        """The shortest right route (ties: the larger margin, then the first told); None when no route was right."""
        return _shortest(told for told in self.evaluated if told.correct)


def _evaluation(route: Route, correct: bool, margin: float) -> Evaluation:
    if correct not in (0, 1):
        raise InputError(f"verdict {correct} of route {route}: expected true or false")
    return Evaluation(route, bool(correct), float(margin))


def _shortest(right: Iterable[Evaluation]) -> Route | None:
    # min() keeps the first of equals; a route without a margin loses ties.
    best = min(right, key=lambda told: (told.route.n_passes, math.inf if math.isnan(told.margin) else -told.margin), default=None)
    return best.route if best else None
