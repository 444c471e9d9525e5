"""A checkpoint for stock transformers: fewer or more blocks, weights copied; loaded again and run against the routed model."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Route
from drllm.deploy.formats.folder import Exported, finish, new_folder
from drllm.model.copies import BUILD_ERRORS, block_list, difference_from, inexpressible, path_config
from drllm.model.load import quiet_loading
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import attention_of

CANNOT = "cannot express this route as a plain checkpoint"


def write_checkpoint(routed: RoutedModel, route: Route, folder: Path) -> Exported:
    with new_folder(folder) as place:
        copied_bytes = write_weights(routed, [route], place)
        difference, n_checked = difference_from(routed, route, load_written(routed, place), CANNOT, bool(route.adapter))
        n_bytes = sum(path.stat().st_size for path in place.glob("*.safetensors"))
        done = Exported(folder, str(route), route.n_passes, n_bytes, copied_bytes, difference, n_checked)
        load = f'from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained("{folder.name}")'
        finish(place, routed, route, done, "transformers", f"Stock transformers loads it, without drllm:\n\n```python\n{load}\n```\n")
    return done


def write_stack(routed: RoutedModel, routes: Sequence[Route], folder: Path) -> None:
    """The blocks of several routes behind one another, adapters merged: a model that computes each of them on blocks of its own."""
    with new_folder(folder) as place:
        copied_bytes = write_weights(routed, routes, place)
        loaded = RoutedModel.wrap(load_written(routed, place))
        found, at = [], 0
        for route in routes:
            loaded.policy = Route.along(range(at, at + route.n_passes), loaded.n_layers)
            found.append(difference_from(routed, route, loaded, CANNOT, bool(route.adapter)))
            at += route.n_passes
        n_bytes = sum(path.stat().st_size for path in place.glob("*.safetensors"))
        done = Exported(folder, str(routes[0]), at, n_bytes, copied_bytes, *max(found))
        use = f"Of no use by itself: `drllm serve` runs one after the other {', '.join(map(str, routes))}.\n"
        finish(place, routed, routes[0], done, "transformers", use)


def write_weights(routed: RoutedModel, routes: Sequence[Route], place: Path) -> int:
    """Weights, configuration and tokenizer; returns the bytes that later passes take."""
    model: Any = routed.model
    path = [(block, route.adapter) for route in routes for block in route.path]
    config, prefix = path_config(model, [block for block, _ in path]), f"{block_list(routed)}."
    copied_bytes, weights = 0, model.state_dict()
    state: dict[str, Tensor] = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    for place_of, (block, name_of_adapter) in enumerate(path):
        adapter = routed.adapters[name_of_adapter] if name_of_adapter else None
        is_copy = block in [earlier for earlier, _ in path[:place_of]]
        for key, value in weights.items():
            if key.startswith(f"{prefix}{block}."):
                name = key.removeprefix(f"{prefix}{block}.")
                linear = (block, name.removesuffix(".weight"))
                if adapter is not None and linear in adapter.weights:
                    stored = adapter.merged(linear, value)
                else:  # safetensors stores no tensor twice under two names: a later pass needs its own
                    stored = value.clone() if is_copy else value
                state[f"{prefix}{place_of}.{name}"] = stored
                copied_bytes += value.numel() * value.element_size() * is_copy
    try:
        with torch.device("meta"):
            shell = type(model)(config)
        shell = shell.to(model.dtype)
        shell.load_state_dict(state, strict=True, assign=True)
        shell.tie_weights()
        with quiet_loading():
            shell.save_pretrained(place)  # which validates the configuration
    except BUILD_ERRORS as error:
        raise inexpressible(config, error, CANNOT) from None
    generation = copy.deepcopy(model.generation_config)
    if not generation.do_sample:  # greedy decoding with sampling options, which many have, loads but does not save
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(generation, name, None)
    generation.save_pretrained(place)
    if routed.tokenizer is not None:
        routed.tokenizer.save_pretrained(place)
    return copied_bytes


def load_written(routed: RoutedModel, place: Path) -> Any:
    """The written checkpoint, loaded by transformers where the routed model is."""
    from transformers import AutoModelForCausalLM

    model = routed.model
    try:
        with quiet_loading():
            attention = attention_of(model.config)
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=model.dtype, attn_implementation=attention)
    except BUILD_ERRORS as error:
        raise inexpressible(routed.config, error, CANNOT) from None
    device = "cpu" if len(set(getattr(model, "hf_device_map", {}).values())) > 1 else routed.device
    return loaded.eval().to(device)
