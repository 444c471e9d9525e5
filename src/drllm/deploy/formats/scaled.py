"""A checkpoint that approximates strengths: the copies of a damped span with `o_proj` and `down_proj` multiplied by the strength.

A strength s takes the states h to h + s (F(h) - h), where F is the whole span. The copies add s times what each block adds, one after the
other: for a span of one block with attention and feed-forward in parallel that is the same, otherwise it is another function. What the
difference comes to is measured and printed, beside what the loop comes to at all.
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drllm.core.errors import UnsupportedModelError
from drllm.core.route import Route
from drllm.deploy.formats.checkpoint import load_written, write_weights
from drllm.deploy.formats.folder import LICENCE, Exported, finish, heading, in_another_order, made_by, made_of, new_folder
from drllm.model.equal_logits import checked_ids
from drllm.model.routed import RoutedModel

CANNOT = "cannot express this route as scaled copies"
LAST = ("o_proj", "down_proj")
PARAMETERS = tuple(f"{name}.{part}" for name in LAST for part in ("weight", "bias"))
LOUD = 64.0
TEXT = (
    "A glacier is a large mass of ice that moves slowly over land. It forms where more snow falls each winter than melts in summer, so "
    "that the layers below are pressed into ice. Under its own weight the ice begins to flow downhill, like a very slow river. As it moves "
    "it picks up stones and carries them along, and it grinds the rock beneath to a fine powder. When the climate becomes warmer, the "
    "front of the glacier retreats and leaves behind long ridges of gravel, deep valleys and many small lakes. People who live near the "
    "mountains use the water that melts from the ice in summer to drink, to grow food and to make electricity."
)


def write_scaled(routed: RoutedModel, route: Route, folder: Path) -> Exported:
    """Weights, configuration, tokenizer and README; see `drllm.deploy.export.export`.

    Raises:
        UnsupportedModelError: the family's blocks add something to the states that these two weights do not scale.
    """
    _refuse_other_branches(routed, sorted({block for span in route.spans if span.strength != 1 for block in span.blocks}))
    with new_folder(folder) as place:
        copied_bytes = write_weights(routed, route, place, PARAMETERS)
        difference, n_checked, measured = _measure(routed, route, load_written(routed, place, CANNOT))
        n_bytes = sum(path.stat().st_size for path in place.glob("*.safetensors"))
        done = Exported(folder, str(route), route.n_passes, n_bytes, copied_bytes, difference, n_checked, "scaled", measured)
        finish(place, routed, done, _readme(routed, route, done))
    return done


@torch.no_grad()
def _refuse_other_branches(routed: RoutedModel, damped: Sequence[int]) -> None:
    """A damped block without its two last products must leave the states as they are, and scaled ones must scale what it adds: a norm does
    not, nor does a mixture of experts, which may come after blocks that are dense."""
    seen: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[index] = args, kwargs

    handles = [routed.blocks[index].register_forward_pre_hook(partial(keep, index), with_kwargs=True) for index in damped]
    try:
        routed.model(checked_ids(routed), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for index, (args, kwargs) in seen.items():
        block = routed.blocks[index]
        x_BTD = args[0] if args else kwargs["hidden_states"]
        whole, silent, loud = (_step(block, scale, args, kwargs) - x_BTD for scale in (1.0, 0.0, LOUD))
        last = [name for name, module in block.named_modules() if name.endswith(LAST) and isinstance(module, nn.Linear)]
        if len(last) != len(LAST) or silent.any() or not loud.norm() > LOUD / 4 * whole.norm():
            what = f"block {index} adds more to the states than o_proj and down_proj give, or norms that"
            raise UnsupportedModelError(f"model_type {routed.config.model_type!r} {CANNOT}: {what}; serve the route with drllm")


def _step(block: nn.Module, scale: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The states behind a block whose last products are scaled."""
    scaled = copy.deepcopy(block)
    vars(scaled).pop("forward", None)
    for name, parameter in scaled.named_parameters():
        if name.endswith(PARAMETERS):
            parameter.mul_(scale)
    out = scaled(*args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def _measure(routed: RoutedModel, route: Route, loaded: Any) -> tuple[float, int, tuple[str, ...]]:
    """(largest difference of a logit, tokens, lines): the copies against the route, and for comparison the base against the route."""
    encoded = None if routed.tokenizer is None else routed.tokenizer(TEXT, return_tensors="pt")["input_ids"].to(routed.device)
    ids = checked_ids(routed) if encoded is None else encoded
    wanted = routed(ids, routes=route).logits[0].float()
    got = loaded(ids.to(loaded.device)).logits[0].float().to(wanted.device)
    base = routed(ids, routes=Route.full(routed.n_layers)).logits[0].float()
    what = f"{ids.shape[1]} {'random tokens' if encoded is None else 'tokens of text'}"
    lines = (
        f"an approximation: on {what} the copies differ from the route by {_divergence(wanted, got):.3g} nats a token (KL), and their most "
        f"likely next token is the route's on {_agreement(wanted, got):.0%}",
        f"for comparison: the base differs from the route by {_divergence(wanted, base):.3g} nats a token and agrees on "
        f"{_agreement(wanted, base):.0%}",
    )
    return float((got - wanted).abs().max()), ids.shape[1], lines


def _divergence(wanted: Tensor, got: Tensor) -> float:
    logs = wanted.log_softmax(-1)
    return float((logs.exp() * (logs - got.log_softmax(-1))).sum(-1).mean())


def _agreement(wanted: Tensor, got: Tensor) -> float:
    return float((wanted.argmax(-1) == got.argmax(-1)).float().mean())


def _readme(routed: RoutedModel, route: Route, done: Exported) -> str:
    """What the checkpoint is, for whoever finds it."""
    head = heading(routed, route, "transformers", "approximately on one route of blocks")
    measured = "".join(f"- {line}\n" for line in done.measured)
    return (
        f"{head}{in_another_order(routed, route, done)}; nothing was trained. **An approximation**: a plain checkpoint can hold no "
        "strength, so the copies of the damped blocks have their `o_proj` and `down_proj` multiplied by it instead, which is another "
        f"function.\n\n{made_of(routed, route)}{made_by(routed, route, done)}{measured}"
        f"- logits of {done.n_checked} tokens differ from the routed model's by up to {done.difference:.3g}\n\n{LICENCE}"
    )
