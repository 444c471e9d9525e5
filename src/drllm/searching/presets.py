"""The tree of each preset. No torch."""

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.searching.margin_tree import MarginTree
from drllm.searching.paper_tree import PaperTree
from drllm.searching.prior import EditPrior
from drllm.searching.tree import RouteTree


def make_tree(n_layers: int, config: SearchConfig, seed: int, prior: EditPrior | None = None) -> RouteTree:
    """The search tree that `config.preset` names; `InputError` for a prior with preset `paper`, or one over other edits."""
    if config.preset == "default":
        return MarginTree(n_layers, config, seed, prior)
    if prior is not None:
        raise InputError(f"got a prior over edits with preset {config.preset}, which tries edits at random: expected preset default")
    return PaperTree(n_layers, config, seed)
