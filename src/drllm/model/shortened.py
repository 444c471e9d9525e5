"""The base with the blocks of one path and no others, as transformers runs it: for training, adapters and checkpoints."""

import copy
from typing import Any

from torch import nn

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.model.adapters import drop_all
from drllm.model.blocks import RoutedBlock
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import QUANTIZATION_ENTRIES

INDEX_LISTS = ("mlp_only_layers", "moe_layers")  # of mixtures: which blocks, not one entry a block


def path_config(model: Any, route: Route) -> Any:
    """The base's configuration with the blocks of the path: their number, and every list and count that says which block is which."""
    config = copy.deepcopy(model.config)
    config.name_or_path = ""
    for name in QUANTIZATION_ENTRIES:  # of a GGUF file, whose weights are dense by now
        if hasattr(config, name):
            delattr(config, name)
    text = config.get_text_config(decoder=True)
    n_layers = text.num_hidden_layers
    fields = vars(text)
    for name, value in list(fields.items()):
        if name in INDEX_LISTS and isinstance(value, list):
            fields[name] = [place for place, block in enumerate(route.path) if block in value]
        elif isinstance(value, list | tuple) and len(value) == n_layers and name != "architectures" and not name.endswith("token_id"):
            # Not setattr: strict configurations compare lists with num_hidden_layers on the way.
            fields[name] = type(value)(value[block] for block in route.path)
    if isinstance(n_dense := fields.get("first_k_dense_replace"), int):  # a count of leading blocks
        fields["first_k_dense_replace"] = sum(block < n_dense for block in route.path)
    fields[text.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = route.n_passes
    return config


def block_list(routed: RoutedModel) -> str:
    """The name of the list that holds the blocks, such as "model.layers"."""
    return next(name for name, module in routed.model.named_modules() if module is routed.blocks)


def plain_twin(routed: RoutedModel) -> Any:
    """The base as it was before it was wrapped, sharing its weights, frozen; its modules and its configuration are its own."""
    model: Any = routed.model
    shared: dict[int, Any] = {id(part): part for part in (*model.parameters(), *model.buffers())}
    shared |= {id(part): nn.Parameter(part.detach(), requires_grad=False) for part in model.parameters() if type(part) is nn.Parameter}
    twin = copy.deepcopy(model, shared)
    blocks = twin.get_submodule(block_list(routed))
    drop_all(blocks)
    for index, block in enumerate(blocks):
        if not isinstance(stands := vars(block).get("forward"), RoutedBlock):
            raise InputError(f"block {index} was hooked after wrapping: remove that hook first")
        stands.remove()  # the twin's own, which gives a hook of before back
    return twin


def shortened(routed: RoutedModel, route: Route) -> Any:
    """The blocks of a path in its order, in a transformers model that shares the base's weights; a block that runs again is one module.

    It uses no cache: blocks keep the numbers by which they would look for their slots.
    """
    twin, name = plain_twin(routed), block_list(routed)
    blocks = twin.get_submodule(name)
    parent, _, attribute = name.rpartition(".")
    setattr(twin.get_submodule(parent), attribute, nn.ModuleList([blocks[block] for block in route.path]))
    text = vars(twin.config.get_text_config(decoder=True))
    text |= vars(path_config(routed.model, route).get_text_config(decoder=True)) | {"use_cache": False}
    return twin
