"""A static route as a plain checkpoint: fewer or more blocks, weights copied, loadable by stock transformers without drllm.

What is written is loaded again and run against the routed model before it counts: a family whose configuration cannot say which block is
which is refused by what it computes, not by a list of names.
"""

import copy
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from drllm.core.errors import ArtifactError, DrllmError, InputError, UnsupportedModelError
from drllm.core.files import read_json, write_json
from drllm.core.route import Action, Route
from drllm.model.load import is_out_of_memory, quiet_loading
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import QUANTIZATION_ENTRIES, attention_of, causal_lm
from drllm.runs.layout import EXPORT_FILE
from drllm.runs.provenance import versions

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}  # of the largest logit; below, what two kernels may differ by
HALF_TOLERANCE = 2e-2
INDEX_LISTS = ("mlp_only_layers", "moe_layers")  # of mixtures: which blocks, not one entry a block
MAX_CHECKED = 2048  # tokens of the check, if a sliding window makes it long


# What a family's own code raises on a configuration that it cannot build, or on weights that do not fit it.
_BUILD_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, StrictDataclassError)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        n_blocks: of the checkpoint.
        n_bytes: of its weights; `copied_bytes` of them belong to second passes, which safetensors cannot store once.
        difference: largest absolute difference of a logit from the routed model's, on `n_checked` tokens.
    """

    folder: Path
    route: str
    n_blocks: int
    n_bytes: int
    copied_bytes: int
    difference: float
    n_checked: int


def export(routed: RoutedModel, route: Route, folder: str | Path) -> Exported:
    """Write the model that always takes `route` to a new folder: weights, configuration, tokenizer, README.

    Raises:
        InputError: the folder holds something else, or the route runs no block.
        UnsupportedModelError: an adapter or quantised weights, or a family whose configuration cannot express the route.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a new folder")
    earlier = {EXPORT_FILE, *(read_export(folder) or {}).get("files", {})}
    if folder.exists() and (foreign := sorted({path.name for path in folder.iterdir()} - earlier)):
        raise InputError(f"{folder} holds {foreign[0]!r}, which no export wrote: give a new folder")
    if len(route) != routed.n_layers:
        raise InputError(f"the route has {len(route)} blocks, the model has {routed.n_layers}")
    if not route.n_passes:
        raise InputError("the route runs no block: a checkpoint needs at least one")
    model = routed.model
    if model is not causal_lm(model):
        what = "the base carries an adapter or is compiled"
        raise UnsupportedModelError(f"{what}: merge the adapter (merge_and_unload) and export that model")
    if quantised := sorted({type(p).__name__ for p in model.parameters() if type(p) not in (Tensor, nn.Parameter)}):
        what = f"the base's weights are quantised ({quantised[0]})"
        raise UnsupportedModelError(f"{what}: export the unquantised base, then quantise the export")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: the check runs on the very files.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        place = Path(temporary) / "model"
        copied_bytes = _write(routed, route, place)
        difference, n_checked = _check(routed, route, place)
        n_bytes = sum(path.stat().st_size for path in place.glob("*.safetensors"))
        done = Exported(folder, str(route), route.n_passes, n_bytes, copied_bytes, difference, n_checked)
        (place / "README.md").write_text(_readme(routed, route, done), encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
        base = {"base": routed.base_id, "fingerprint": routed.fingerprint}
        write_json(place / EXPORT_FILE, asdict(done) | {"folder": folder.name, "files": sizes} | base | {"versions": versions()})
        if folder.exists():
            shutil.rmtree(folder)
        place.rename(folder)
    return done


def _write(routed: RoutedModel, route: Route, place: Path) -> int:
    """Weights, configuration and tokenizer; returns the bytes that second passes take."""
    model: Any = routed.model
    config = _config(model, route)
    names = {id(module): name for name, module in model.named_modules()}
    prefix = names[id(routed.blocks[0])].removesuffix("0")
    assert all(names[id(block)] == f"{prefix}{index}" for index, block in enumerate(routed.blocks))
    copied_bytes, weights = 0, model.state_dict()
    state: dict[str, Tensor] = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    for place_of, block in enumerate(route.path):
        for key, value in weights.items():
            if key.startswith(f"{prefix}{block}."):
                is_copy = place_of > 0 and route.path[place_of - 1] == block
                # Safetensors stores no tensor twice under two names: a second pass needs its own.
                state[f"{prefix}{place_of}.{key.removeprefix(f'{prefix}{block}.')}"] = value.clone() if is_copy else value
                copied_bytes += value.numel() * value.element_size() * is_copy
    try:
        with torch.device("meta"):
            shell = type(model)(config)
        shell = shell.to(model.dtype)
        shell.load_state_dict(state, strict=True, assign=True)
        shell.tie_weights()
        with quiet_loading():
            shell.save_pretrained(place)  # which validates the configuration
    except _BUILD_ERRORS as error:
        raise _inexpressible(config, error) from None
    generation = copy.deepcopy(model.generation_config)
    if not generation.do_sample:  # greedy decoding with sampling options, which many have, loads but does not save
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(generation, name, None)
    generation.save_pretrained(place)
    if routed.tokenizer is not None:
        routed.tokenizer.save_pretrained(place)
    return copied_bytes


def _config(model: Any, route: Route) -> Any:
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


@torch.no_grad()
def _check(routed: RoutedModel, route: Route, place: Path) -> tuple[float, int]:
    """(largest difference of a logit, tokens compared) between the written checkpoint, loaded by transformers, and the routed model."""
    from transformers import AutoModelForCausalLM

    model, text = routed.model, routed.config
    windows = [value for name in ("sliding_window", "attention_window_size") if isinstance(value := getattr(text, name, None), int)]
    n_tokens = max([16, *(window + 8 for window in windows if window + 8 <= MAX_CHECKED)])
    n_tokens = min(n_tokens, getattr(text, "max_position_embeddings", None) or n_tokens)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (1, n_tokens), generator=generator).to(routed.device)
    wanted = routed(ids, routes=route).logits.float()
    try:
        with quiet_loading():
            attention = attention_of(model.config)
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=model.dtype, attn_implementation=attention)
        device = "cpu" if len(set(getattr(model, "hf_device_map", {}).values())) > 1 else routed.device
        got = loaded.eval().to(device)(ids.to(device)).logits.float().to(wanted.device)
    except _BUILD_ERRORS as error:
        raise _inexpressible(text, error) from None
    difference = float((got - wanted).abs().max())
    if not difference <= TOLERANCE.get(model.dtype, HALF_TOLERANCE) * max(1.0, float(wanted.abs().max())):
        what = f"model_type {text.model_type!r} cannot express this route as a plain checkpoint: its logits are off by {difference:.3g}"
        raise UnsupportedModelError(f"{what}, since a block's place decides what it computes; serve it with drllm instead")
    return difference, n_tokens


def _inexpressible(config: Any, error: Exception) -> DrllmError:
    reason = " ".join(str(error).split())[:160]
    if is_out_of_memory(error):
        return InputError(f"out of memory ({reason}): an export needs room for a second copy of the weights; nothing was written")
    what = f"model_type {config.model_type!r} cannot express this route as a configuration ({reason})"
    return UnsupportedModelError(f"{what}: serve it with drllm instead")


def _readme(routed: RoutedModel, route: Route, done: Exported) -> str:
    base = routed.base_id or "a model in memory"
    words = {"skips block": Action.SKIP, "runs twice block": Action.REPEAT}
    blocks = {what: [str(block) for block, action in enumerate(route) if action == of] for what, of in words.items()}
    said = "; ".join(f"{what} {', '.join(found)}" for what, found in blocks.items() if found)
    front = "---\nlibrary_name: transformers\ntags: [drllm, adaptive-depth]\n"
    front += f"base_model: {base}\n" if "/" in base and not Path(base).exists() else ""
    return (
        f"{front}---\n\n# {base}, on one route of blocks\n\n"
        f"The base model's own weights in another order: {said or 'every block once'} (counted from 0). {done.n_blocks} blocks instead of "
        f"{routed.n_layers}; nothing was trained. It loads in stock transformers, without drllm:\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n"
        f'model = AutoModelForCausalLM.from_pretrained("{done.folder.name}")\n```\n\n'
        f"- base: `{base}`, weights `{routed.fingerprint}`\n- route: `{route}` (one digit a block: 0 skip, 1 execute, 2 repeat)\n"
        f"- made by: `drllm export --model {base} --route {route} --out {done.folder.name}`\n"
        f"- weights: {done.n_bytes / 1e6:.1f} MB, of which {done.copied_bytes / 1e6:.1f} MB are second copies of repeated blocks: "
        "safetensors stores no tensor under two names\n"
        f"- checked: logits of {done.n_checked} tokens differ from the routed model's by at most {done.difference:.1e} "
        f"({str(routed.model.dtype).removeprefix('torch.')})\n\n"
        "The licence is the base model's.\n"
    )


def read_export(folder: Path) -> dict[str, Any] | None:
    """What `export` wrote about a folder, or None when it is no export; `ArtifactError` when that is unreadable."""
    path = folder / EXPORT_FILE
    return read_json(path, "export again", dict) if path.is_file() else None


def check_export(folder: Path) -> None:
    """Refuse an exported checkpoint of which a file is missing or has another size; weights are too large to digest each time."""
    for name, size in (read_export(folder) or {}).get("files", {}).items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ArtifactError(f"{folder / name} is missing or not the file that was exported: export again")
