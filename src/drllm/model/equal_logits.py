"""What an export computes against what the routed model computes, on random tokens."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from drllm.core.errors import DrllmError, InputError, UnsupportedModelError
from drllm.core.route import Route
from drllm.model.load import is_out_of_memory
from drllm.model.routed import RoutedModel

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}  # of the largest logit; below, what two kernels may differ by
HALF_TOLERANCE = 2e-2
MAX_CHECKED = 2048  # tokens of the check, if a sliding window makes it long
# What a family's own code raises on a configuration that it cannot build, or on weights that do not fit it.
BUILD_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, StrictDataclassError)
INSTEAD = "serve it with drllm instead"


def checked_ids(routed: RoutedModel) -> Tensor:
    """Random tokens (1, T), past a sliding window where there is one that is not too long."""
    text = routed.config
    windows = [value for name in ("sliding_window", "attention_window_size") if isinstance(value := getattr(text, name, None), int)]
    n_tokens = max([16, *(window + 8 for window in windows if window + 8 <= MAX_CHECKED)])
    return random_ids(routed, n_tokens)


def random_ids(routed: RoutedModel, n_tokens: int) -> Tensor:
    """The same random tokens each time (1, T), no more than the model has positions for."""
    n_tokens = min(n_tokens, getattr(routed.config, "max_position_embeddings", None) or n_tokens)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, routed.model.get_input_embeddings().num_embeddings, (1, n_tokens), generator=generator).to(routed.device)


@torch.no_grad()
def difference_from(routed: RoutedModel, route: Route, loaded: Any, cannot: str) -> tuple[float, int]:
    """(largest difference of a logit, tokens compared) between a loaded export and the routed model.

    Raises:
        UnsupportedModelError: the export computes something else, or nothing; `cannot` says what it then cannot do.
    """
    ids = checked_ids(routed)
    wanted = routed(ids, routes=route).logits.float()
    try:
        device = loaded.get_input_embeddings().weight.device
        got = loaded(ids.to(device)).logits.float().to(wanted.device)
    except BUILD_ERRORS as error:
        raise inexpressible(routed.config, error, cannot) from None
    return compared(got, wanted, routed, cannot), ids.shape[1]


def compared(got: Tensor, wanted: Tensor, routed: RoutedModel, cannot: str) -> float:
    """The largest difference of two logits; `UnsupportedModelError` for more than rounding, `InputError` for any that is not finite."""
    if not bool(wanted.isfinite().all()):
        raise InputError("the route's logits are NaN or infinite: load the base in bfloat16 or float32")
    difference = float((got - wanted).abs().max())
    if not difference <= TOLERANCE.get(routed.model.dtype, HALF_TOLERANCE) * max(1.0, float(wanted.abs().max())):
        what = f"model_type {routed.config.model_type!r} {cannot}: its logits are off by {difference:.3g}"
        raise UnsupportedModelError(f"{what}, since a block's place decides what it computes; {INSTEAD}")
    return difference


def inexpressible(config: Any, error: Exception, cannot: str) -> DrllmError:
    """The error to raise where a family's or another package's code fails on an export."""
    reason = " ".join(str(error).split())[:160]
    if is_out_of_memory(error):
        return InputError(f"out of memory ({reason}): an export needs room for a second copy of the weights; nothing was written")
    return UnsupportedModelError(f"model_type {config.model_type!r} {cannot} ({reason}): {INSTEAD}")
