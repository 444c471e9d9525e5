"""The model families that drllm's laws cover; `tests/test_laws.py` holds each of them to exactness."""

from __future__ import annotations

from typing import Any

from drllm.errors import UnsupportedModelError
from drllm.registry import did_you_mean

FAMILIES = frozenset({"llama"})


def check_family(config: Any) -> None:
    """Refuse a configuration that cannot be routed, before the model is touched."""
    model_type = getattr(config, "model_type", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"model_type {model_type!r} is an encoder-decoder, expected a decoder-only language model")
    if getattr(config, "alibi", False) or model_type in ("bloom", "mpt"):
        raise UnsupportedModelError(
            f"model_type {model_type!r} with alibi lays its position bias out as batch x heads, so rows cannot be told apart: use a rotary model"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(f"model_type {model_type!r} shares keys and values between blocks, which a skipped block would break")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not one of the {len(FAMILIES)} families drllm is tested on{did_you_mean(str(model_type), sorted(FAMILIES))}; "
            "see `drllm models`"
        )
