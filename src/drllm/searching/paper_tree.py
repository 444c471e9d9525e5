"""Preset `paper`: algorithm 1 of arXiv 2510.12773, Monte Carlo tree search by UCB on verdicts; edits are drawn at random. No torch."""

from drllm.core.config import SearchConfig
from drllm.core.route import Action, Route
from drllm.searching.edits import Evaluation
from drllm.searching.tree import Node, RouteTree

SHORTER = 2  # blocks that a right route saves, at least, to end the search of a question


class PaperTree(RouteTree):
    """The paper's tree; see `RouteTree` for what it departs in.

    Simulations are counted as the authors' code counts them, unless `counted` is "distinct": the base's is one, and so is each step that
    meets a known route or draws the edit "repeat no times", a quarter of all. Such a step is told the verdict that is known.
    """

    def __init__(self, n_layers: int, config: SearchConfig, seed: int):
        self._counts_all = config.counted != "distinct"
        self._n_met = 0  # simulations without a new route
        self._verdicts: dict[Route, bool] = {}
        super().__init__(n_layers, config, seed)

    def tell(self, route: Route, correct: bool, margin: float = float("nan")) -> None:
        super().tell(route, correct, margin)
        self._verdicts[route] = bool(correct)

    @property
    def _n_codes(self) -> int:
        """With all counted, the codes from the space's own on repeat a block no times."""
        return self._space.n_codes + (self._space.n_layers if self._counts_all else 0)

    def _has_budget(self) -> bool:
        if not self._counts_all:
            return super()._has_budget()
        return len(self.evaluated) + self._n_met < self._config.n_simulations

    def _met(self, line: list[Node], node: Node) -> None:
        if not self._counts_all:
            return
        self._n_met += 1
        for above in dict.fromkeys([*line, node]):
            above.value += self._verdicts[node.route]
            above.visits += 1

    def _stopped(self) -> bool:
        """A wrong base is mended, or a right route is shorter by some blocks: the newest one, since the search would have ended before."""
        if not self._config.early_stop:
            return False
        newest = self.evaluated[-1]
        return newest.correct and (not self.evaluated[0].correct or newest.route.n_passes <= self._n_layers - SHORTER)

    def _length(self, found: Evaluation) -> tuple[float, ...]:
        """Passes, then blocks that run at all, as the authors sort a question's paths; then the larger margin, if any."""
        passes, *margin = super()._length(found)
        return passes, sum(action != Action.SKIP for action in found.route.actions), *margin

    def _draw(self, node: Node) -> tuple[int, Route] | None:
        """A random one, in O(1) and without a list of edits: the codes are shuffled as they are drawn."""
        while node.undrawn:
            pick = self._random.randrange(node.undrawn)
            node.undrawn -= 1
            code = node.moved.pop(pick, pick)
            if pick != node.undrawn:
                node.moved[pick] = node.moved.pop(node.undrawn, node.undrawn)
            if code >= self._space.n_codes:
                return code, node.route
            if (route := self._space.apply(node.route, code)) is not None:
                return code, route
        return None
