"""Preset `paper`: algorithm 1 of arXiv 2510.12773, Monte Carlo tree search by UCB on verdicts; edits are drawn at random. No torch."""

from drllm.core.route import Route
from drllm.searching.tree import Node, RouteTree


class PaperTree(RouteTree):
    """The paper's tree; see `RouteTree` for what it departs in."""

    def _draw(self, node: Node) -> tuple[int, Route] | None:
        """A random one, in O(1) and without a list of edits: the codes are shuffled as they are drawn."""
        while node.undrawn:
            pick = self._random.randrange(node.undrawn)
            node.undrawn -= 1
            code = node.moved.pop(pick, pick)
            if pick != node.undrawn:
                node.moved[pick] = node.moved.pop(node.undrawn, node.undrawn)
            if (route := self._space.apply(node.route, code)) is not None:
                return code, route
        return None
