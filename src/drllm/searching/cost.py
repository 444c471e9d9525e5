"""What a search costs before it runs, in plain forwards: one forward of one question by the base. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from drllm.core.config import SearchConfig
from drllm.core.route import Route
from drllm.core.span import Span, block_span
from drllm.tasks import LoadedTask

# A searched path, docs/benchmarks.md; a number or an answer out of a passage is taken to cost what a boxed one does.
PATH_COST = {"loglik": 0.31, "letter": 0.46, "boxed": 0.59, "number": 0.49, "exact": 0.49}
CHECKS = 4  # forwards in float32 that check the base's and the kept route


def block_runs(routes: Iterable[Route]) -> int:
    """How often a block runs for one question on all of these routes, what begins alike once: the nodes of the trie of their paths.

    The blocks of a span of a strength below 1 are those of the same span at full strength; how far the states then go costs nothing.
    """
    nodes: dict[tuple[int, Span], int] = {}
    n_runs = 0
    for route in routes:
        node = 0
        for span in route.spans:
            blocks = [block_span(block) for block in span.blocks]
            for step in blocks if span.strength == 1 else (*blocks, span):
                if (node, step) not in nodes:
                    nodes[node, step] = len(nodes) + 1
                    n_runs += step.strength == 1
                node = nodes[node, step]
    return n_runs


def listed_cost(n_layers: int, routes: Sequence[Route]) -> float:
    """Plain forwards of one question along the base and these routes."""
    return block_runs([Route.full(n_layers), *routes]) / n_layers


def searched_cost(reward: str, n_simulations: int, control: bool = True, verify: bool = True) -> float:
    """Plain forwards of one searched question at most: the base, the simulations, as many blind routes, and the checks."""
    return (1 + n_simulations * (1 + control)) * PATH_COST[reward] + CHECKS * verify


def stages_of(loaded: Mapping[str, LoadedTask], config: SearchConfig, n_layers: int, routes: Sequence[Route] | None) -> dict[str, float]:
    """Plain forwards of each task, by what is done there.

    A listed route's share of the prompt is counted. Decoding shares nothing, so each answer adds what it adds to a searched path.
    """
    found = {}
    for name, one in loaded.items():
        rows, reward = {split: len(one.select(split, config.limit)) for split in config.splits}, one.task.reward_named(config.reward)
        counted = ", ".join(f"{split} {n}" for split, n in rows.items())
        if routes is None:
            each = searched_cost(reward, config.n_simulations, config.control, config.verify)
            what = f"{config.n_simulations} simulations" + (f", fewer questions where {config.keep} are kept before" if config.keep else "")
        else:
            each = listed_cost(n_layers, routes) + (1 + len(routes)) * (PATH_COST[reward] - PATH_COST["loglik"])
            what = f"{len(routes)} routes"
        found[f"{name}: {counted} questions, {what}, {each:.1f} a question"] = sum(rows.values()) * each
    return found
