"""The model arguments of `--model drllm`: which there are, and the model and policy that they name."""

from collections.abc import Mapping
from typing import Any

import torch

from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.core.route import Route
from drllm.model.load import dtype_of
from drllm.model.routed import RoutedModel
from drllm.policies.policy import RouteSource
from drllm.policies.saved import is_policy

_STOCK = """
max_length truncation softmax_dtype mixed_precision_dtype add_bos_token prefix_token_id logits_cache think_end_token enable_thinking
chat_template_args
"""
STOCK_OPTIONS = tuple(_STOCK.split())  # of the stock model, which mean the same here; what loads or places weights is drllm's own
OWN_OPTIONS = ("pretrained", "base", "revision", "route", "control", "dtype", "device", "batch_size", "max_batch_size")


def check_options(options: Mapping[str, Any], pretrained: Any, batch_size: int | str) -> dict[str, Any]:
    """The stock model's options as it takes them; `InputError` for one that is not supported, or for a missing model."""
    found = {name: value for name, value in options.items() if name != "trust_remote_code" or value}
    for name in found:
        if name not in STOCK_OPTIONS:
            known = (*STOCK_OPTIONS, *OWN_OPTIONS)
            raise InputError(f"model argument {name!r} is not supported{did_you_mean(name, known)}; drllm takes {', '.join(known)}")
    if not pretrained:
        raise InputError("no model: give pretrained=FOLDER_OR_ID among the model arguments")
    if not str(batch_size).isdecimal() and str(batch_size).split(":")[0] != "auto":
        raise InputError(f"batch_size is {batch_size!r}, expected a whole number, auto or auto:N")
    return found | {name: dtype_of(found.get(name)) for name in ("softmax_dtype", "mixed_precision_dtype")}


def load_model(pretrained: str | RoutedModel, base: str | None, revision: str | None, dtype: str | None, device: str | None) -> RoutedModel:
    """The model in memory, a saved policy on its base, or a plain model."""
    if isinstance(pretrained, RoutedModel):
        return pretrained
    dtype = None if dtype == "auto" else dtype
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"  # the harness says cuda wherever it runs
    if is_policy(pretrained, revision):
        return RoutedModel.from_pretrained(pretrained, base, dtype=dtype, device=device, revision=revision)
    if base is not None or revision is not None:
        raise InputError(f"{pretrained!r} holds no saved policy, so base and revision have no use: give a policy, or the model alone")
    return RoutedModel.wrap(pretrained, dtype=dtype, device=device)


def wanted_policy(routed: RoutedModel, route: str | int | None, control: float | None) -> RouteSource | None:
    """The model's policy, or the route that was given instead, under the control that was given."""
    policy = routed.policy
    if route is not None:
        digits = str(route).strip("'\"")
        if isinstance(route, int) and len(digits) != routed.n_layers:
            why = "the harness reads digits as a number, which drops leading zeros"
            found = f"route {route} has {len(digits)} digits, the model has {routed.n_layers} blocks"
            raise InputError(f"{found}; {why}: write route='0...' with its quotes")
        policy = routed.as_source(Route.parse(digits, routed.n_layers))
    if control is not None:
        if policy is None:
            raise InputError("control is for trained routers: give a saved policy as pretrained")
        policy = policy.with_control(control)
    return policy
