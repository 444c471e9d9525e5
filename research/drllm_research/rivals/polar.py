"""After PoLar (arXiv 2606.06574): a predictor of the path, trained on every valid path of a question and followed without abstention.

PoLar's predictor writes a path over segments of blocks; here it chooses among the routes of a dense matrix. It learns from all right routes
of a question (all valid paths, not the shortest one), and the route likeliest to be right is taken, a saved pass deciding between equals.
Its own predictor and data are not public, so this stands for the idea, not for its figures.
"""

from dataclasses import dataclass

from drllm.core.options import option
from drllm.methods.base import Method
from drllm.methods.codebook import CodebookConfig, fit_codebook


@dataclass(frozen=True)
class PolarConfig(CodebookConfig):
    """As a codebook's; verdicts alone are learned, and the base has no precedence."""

    n_routes: int = option(16, "routes besides the base; 0 tries 2, 4, 8, 16 and 32 on tune")
    margin_weight: float = option(0.0, "share of a gain that is the margin's; 0: valid or not, as published")
    abstain: bool = option(False, "keep the base where no gain is sure; as published, the likeliest path is followed")


ABOUT = "a predictor trained on all right paths, always followed"
METHOD = Method("polar", ABOUT, "after PoLar, arXiv 2606.06574", PolarConfig, fit_codebook)
