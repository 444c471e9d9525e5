"""A PEFT adapter that only reorders the base's blocks: no copy of a weight, a few kilobytes, loaded by stock PEFT.

PEFT's `layer_replication` replaces the block list by one that shares the base's weights. It comes with a LoRA configuration only, so the
adapter has one pair of matrices whose product is zero: what it adds to the states is exactly nothing.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.files import write_json
from drllm.core.route import Route
from drllm.deploy.formats.folder import Exported, finish, new_folder, slices
from drllm.model.copies import BUILD_ERRORS, block_list, checked_ids, compared, difference_from, inexpressible, path_config, plain_twin
from drllm.model.load import hub_or_folder, is_gguf, quiet_loading
from drllm.model.routed import RoutedModel
from drllm.policies.healed import ADAPTER_CONFIG as CONFIG_FILE
from drllm.policies.healed import ADAPTER_WEIGHTS as WEIGHTS_FILE

CANNOT = "cannot express this route as a PEFT adapter"
N_GENERATED = 8  # tokens of the check, through the cache that PEFT's configuration leads to


def need_peft() -> None:
    """`InputError` where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise InputError("a PEFT adapter is checked by peft, which is not installed: run `pip install peft`")


def write_adapter(routed: RoutedModel, route: Route, folder: Path) -> Exported:
    """adapter_config.json, adapter_model.safetensors and README; `InputError` without peft, or where the base is on several devices."""
    need_peft()
    if len(set(getattr(routed.model, "hf_device_map", {}).values())) > 1:
        raise InputError("the base is spread over several devices: load it on one to export an adapter")
    _refuse_lists(routed, route)
    with new_folder(folder) as place:
        _write(routed, route, place)
        with quiet_loading():
            difference, n_checked = _check(routed, route, place)
        n_bytes = (place / WEIGHTS_FILE).stat().st_size
        done = Exported(folder, str(route), route.n_passes, n_bytes, 0, difference, n_checked, "peft")
        finish(place, routed, route, done, "peft", _use(routed, done))
    return done


def _refuse_lists(routed: RoutedModel, route: Route) -> None:
    """PEFT sets `num_hidden_layers` and nothing else; a family looks in its layer types at every step."""
    now = getattr(routed.config, "layer_types", None) or []
    needed = getattr(path_config(routed.model, route.path).get_text_config(decoder=True), "layer_types", None) or []
    if list(now[: len(needed)]) != list(needed):
        what = "its configuration lists a type for each block (layer_types), and PEFT changes the number of blocks alone"
        raise UnsupportedModelError(f"model_type {routed.config.model_type!r} {CANNOT}: {what}; export a checkpoint instead")


def _write(routed: RoutedModel, route: Route, place: Path) -> None:
    from peft import LoraConfig

    base = {"layer_replication": slices(route), "base_model_name_or_path": hub_or_folder(routed.base_id), "revision": routed.revision}
    if route.adapter:
        adapter = routed.adapters[route.adapter]
        write_json(place / CONFIG_FILE, adapter.config() | base)
        weights = adapter.tensors()
    else:
        name, target = _target(routed.blocks[route.path[0]])
        key = f"{block_list(routed)}.0.{name}"
        LoraConfig(r=1, lora_alpha=1, target_modules=[key], task_type="CAUSAL_LM", inference_mode=True, **base).save_pretrained(str(place))
        ones, zeros = torch.ones(1, target.in_features), torch.zeros(target.out_features, 1)
        weights = {f"base_model.model.{key}.lora_A.weight": ones, f"base_model.model.{key}.lora_B.weight": zeros}
    save_file(weights, place / WEIGHTS_FILE, metadata={"format": "pt"})


def _target(block: nn.Module) -> tuple[str, nn.Linear]:
    """The smallest linear map of a block, one of attention where there is one: some routers return more than a tensor."""
    linear = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    if not linear:
        raise UnsupportedModelError(f"a {type(block).__name__} holds no torch.nn.Linear, which a PEFT adapter needs: export a checkpoint")
    order = {name: ("attn" not in name and "attention" not in name, module.weight.numel()) for name, module in linear.items()}
    name = min(order, key=order.__getitem__)
    return name, linear[name]


def _check(routed: RoutedModel, route: Route, place: Path) -> tuple[float, int]:
    """(largest difference of a logit, tokens compared): a whole forward, and `N_GENERATED` tokens one by one.

    The routed model writes the same tokens through its own cache: a forward of the whole sequence rounds 16-bit types differently.
    """
    from peft import PeftModel

    options: dict[str, Any] = {"do_sample": False, "pad_token_id": routed.pad_id, "return_dict_in_generate": True, "output_logits": True}
    options |= dict.fromkeys(("min_new_tokens", "max_new_tokens"), N_GENERATED)
    ids = checked_ids(routed)
    ids = ids[:, : (getattr(routed.config, "max_position_embeddings", None) or sys.maxsize) - N_GENERATED]
    try:
        adapted = PeftModel.from_pretrained(plain_twin(routed), place).eval()
        out = adapted.generate(input_ids=ids, **options)
    except BUILD_ERRORS as error:
        raise inexpressible(routed.config, error, CANNOT) from None
    difference, n_checked = difference_from(routed, route, adapted, CANNOT)
    written, mask = out.sequences[0].tolist(), torch.ones_like(ids)
    options |= {"attention_mask": mask, routed.cache_argument: routed.new_cache(routed.as_source(route), mask)}
    wanted = routed.model.generate(ids, prefix_allowed_tokens_fn=lambda _, so_far: [written[len(so_far)]], **options)
    logits, theirs = torch.cat(wanted.logits).float(), torch.cat(out.logits).float()
    return max(difference, compared(theirs.to(logits.device), logits, routed, CANNOT)), n_checked + N_GENERATED


def _use(routed: RoutedModel, done: Exported) -> str:
    load = f'from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained("{done.folder.name}")'
    if hub_or_folder(routed.base_id) is None:
        load = f'from peft import PeftModel\nmodel = PeftModel.from_pretrained(base, "{done.folder.name}")  # by transformers'
    every = f"drllm export --model {routed.base_id} --route {Route.full(routed.n_layers)} --out base"
    unpack = f"\nThe base is a GGUF file: `{every}` writes it as a plain checkpoint.\n" if is_gguf(routed.base_id) else ""
    return f"They are shared with the base. Stock PEFT loads it, without drllm:\n\n```python\n{load}\n```\n{unpack}"
