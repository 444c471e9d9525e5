"""Preset `default`: the search goes by log-likelihood margins, which say more than verdicts. No torch.

- A node stands as the best route seen on the lines that passed it does, and the search descends to the child that stands best (margins
  are exact, so there is nothing to average, and no bonus for few visits). Base wrong: the larger margin stands better. Base right: among
  routes with `comfort` times the base's margin the shorter, then the others by margin.
- Edits are tried by a prior's weight (`EditPrior`; alike without one) and, once some route of this question has had them, by what they
  gained there: gains of edits nearly add up. The root is twice as wide and other nodes a quarter as wide as in `paper`.
- An early stop waits `patience` more simulations for a route with more margin than the first right one.

Where rewards are generated there are no margins: selection, early stop and choice are those of `paper`, the edits still as above.
"""

import math
from collections.abc import Sequence

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.edits import Evaluation
from drllm.searching.prior import EditPrior
from drllm.searching.tree import Node, RouteTree

# Chosen on a simulation of margins that add up as those of SmolLM2-135M on ARC do, not on a model.
ROOT_WIDTH, NODE_WIDTH = 2.0, 0.25  # children a node may have, in multiples of widening * sqrt(visits)
PASS_GAIN = 0.3  # base right: what a pass saved is worth when edits are drawn, in typical changes of the margin


class MarginTree(RouteTree):
    """The tree that goes by margins.

    A prior says which edits to try first, and which never; `InputError` where it is over other edits than the tree's.
    """

    def __init__(self, n_layers: int, config: SearchConfig, seed: int, prior: EditPrior | None = None):
        super().__init__(n_layers, config, seed)
        n_codes = self._space.n_codes
        if prior is not None and not prior.fits(self._space):
            found = f"a prior over {prior.space.in_words} for a search over {self._space.in_words}"
            raise InputError(f"{found}: expected equal sizes")
        weights: Sequence[float] = prior.weights if prior else (1 / n_codes,) * n_codes
        self._logs = [(code, *self._space.blocks(code), math.log(weight)) for code, weight in enumerate(weights) if weight > 0]
        self._dead = prior.dead if prior else ()
        self._gains: dict[int, tuple[float, int]] = {}  # by code: sum and number of its gains, over all nodes of this question
        self._change = prior.scale if prior and not math.isnan(prior.scale) else 0.0  # sum of |grade - the base's|; the prior counts once

    def tell(self, route: Route, correct: bool, margin: float = math.nan) -> None:
        super().tell(route, correct, margin)
        self._learn(self._line, self.evaluated[-1])

    @property
    def _graded(self) -> bool:
        """Whether nodes are compared by margins."""
        return not math.isnan(self.evaluated[0].margin)

    def _enough(self, reference: float) -> float:
        return min(reference, self._config.comfort * reference)

    def _width(self, node: Node) -> float:
        return ROOT_WIDTH if node is self._root else NODE_WIDTH

    def _patience(self) -> int:
        return self._config.patience if self._graded else 0

    def _rank(self, parent: Node, child: Node) -> float | tuple[float, ...]:
        return child.best if self._graded else super()._rank(parent, child)

    def _competing(self, right: list[Evaluation]) -> list[Evaluation]:
        """Those of at least `comfort` times the base's margin if it was right, else the largest: never a longer route with less margin."""
        margins = [found.margin for found in right if not math.isnan(found.margin)]
        reference = right[0].margin if right[0].route.is_full else max(margins, default=math.nan)
        return right if math.isnan(reference) else [found for found in right if found.margin >= self._enough(reference)]

    def _learn(self, line: Sequence[Node], found: Evaluation) -> None:
        """Let all nodes of the line know the new route's standing, and the edit its gain over the parent."""
        node, base = line[-1], self.evaluated[0]
        if math.isnan(base.margin):
            node.grade = float(found.correct)
        else:
            node.grade = -math.inf if math.isnan(found.margin) else found.margin
        if base.correct and node.grade >= self._enough(base.margin):
            standing = (math.inf, -found.route.n_passes, node.grade)
        else:
            standing = (node.grade, -found.route.n_passes)
        for above in line:
            above.best = max(above.best, standing)
        if len(line) > 1 and math.isfinite(gain := node.grade - line[-2].grade):
            total, count = self._gains.get(node.edit, (0.0, 0))
            self._gains[node.edit] = total + gain, count + 1
            self._change += abs(node.grade - self._root.grade)

    def _draw(self, node: Node) -> tuple[int, Route] | None:
        """By weight (largest log weight + Gumbel noise first) and, for edits evaluated before, by their gain. O(codes).

        The noise sums to a standard Gumbel over all edits, so a gain of about one typical change beats an untried edit.
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
            code: total / count / change - saving * self._space.extra_passes(code)
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
