"""A static route as files that other tools load without drllm."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.route import Route
from drllm.deploy.formats.adapter import write_adapter
from drllm.deploy.formats.checkpoint import write_checkpoint
from drllm.deploy.formats.folder import Exported, check_export, read_export
from drllm.deploy.formats.gguf_file import write_gguf
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import causal_lm

__all__ = ["FORMATS", "Exported", "Format", "check_export", "export", "read_export"]

Format = Literal["checkpoint", "peft", "gguf"]
FORMATS: dict[str, Callable[[RoutedModel, Route, Path], Exported]] = {
    "checkpoint": write_checkpoint,
    "peft": write_adapter,
    "gguf": write_gguf,
}
HEALED = ("checkpoint", "peft")  # can hold an adapter: merged, or as it is
NAMES = {"checkpoint": "a plain checkpoint", "peft": "a PEFT adapter", "gguf": "a GGUF file"}


def export(routed: RoutedModel, route: Route, folder: str | Path, format: Format = "checkpoint") -> Exported:
    """Write the model that always takes `route` to a new folder, with a README; what is written is loaded again and checked.

    Args:
        format: "checkpoint" (weights, configuration and tokenizer for transformers), "peft" (an adapter, without a copy of a weight),
            or "gguf" (the base's own GGUF file with its blocks in another order, and a Modelfile for Ollama).

    Of a healed route the checkpoint holds the merged weights, and the adapter is PEFT's on the base with its blocks in that order.

    Raises:
        InputError: the folder holds something else, the route runs no block, or it has a strength, which no format can hold.
        UnsupportedModelError: an adapter or quantised weights, or a family for which the format cannot express the route.
    """
    if format not in FORMATS:
        raise InputError(f"unknown export format {format!r}: give one of {', '.join(FORMATS)}")
    if len(route) != routed.n_layers:
        raise InputError(f"the route has {len(route)} blocks, the model has {routed.n_layers}")
    check_route(route, format)
    routed.check_adapter(route)
    model = routed.model
    if model is not causal_lm(model):
        what = "the base carries an adapter or is compiled"
        raise UnsupportedModelError(f"{what}: merge the adapter (merge_and_unload) and export that model")
    if quantised := sorted({type(p).__name__ for p in model.parameters() if type(p) not in (Tensor, nn.Parameter)}):
        what = f"the base's weights are quantised ({quantised[0]})"
        raise UnsupportedModelError(f"{what}: export the unquantised base, then quantise the export")
    return FORMATS[format](routed, route, Path(folder).resolve())


def check_route(route: Route, format: Format) -> None:
    """Refuse what a format cannot hold, of any model."""
    if not route.n_passes:
        raise InputError("the route runs no block: an export needs at least one")
    if damped := [span for span in route.spans if span.strength != 1]:
        raise InputError(f"the route runs {damped[0]}, and {NAMES[format]} can hold no strength: generate with drllm, or serve the route")
    if route.adapter and format not in HEALED:
        instead = "export a checkpoint, then convert it (docs/export.md)"
        raise InputError(f"{NAMES[format]} only puts the base's own tensors in another order, and this route is healed: {instead}")
