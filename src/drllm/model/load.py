"""From a name to a base model: Hub ids, local folders, `.gguf` files, and the aliases of installed data packages."""

import contextlib
import hashlib
import importlib.util
import io
import logging
import mmap
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import nn

from drllm.core.digest import short_digest
from drllm.core.errors import InputError, first_line
from drllm.core.files import whole_folder
from drllm.core.names import did_you_mean
from drllm.core.progress import NOISY, Progress, say
from drllm.core.text import type_name
from drllm.model.packages import PACKAGED, cache_folder
from drllm.model.transformers_private import QUANTIZATION_ENTRIES, dense_gguf, plain_tensors
from drllm.policies.saved_config import CONFIG_FILE

HUB_ALIASES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
ALIASES = (*HUB_ALIASES, *PACKAGED)
FINGERPRINT_SAMPLES = 4096
PATTERN_KEY = "attention.sliding_window_pattern"  # behind the architecture: a flag a block, or the period of the last that is not sliding
Dtype = torch.dtype | str | None
Device = torch.device | str | None


def load_base(name: str, dtype: torch.dtype | None = None, device: Device = None, tokenizer: Any = None) -> tuple[Any, Any]:
    """A causal language model and its tokenizer by Hub id, folder, `.gguf` file or alias; `InputError` naming what can be loaded.

    `dtype` defaults to the checkpoint's own, and to bfloat16 for GGUF files, whose weights are unpacked to dense tensors: the packed
    kernels compute in float32 and are many times slower in batches. A packaged file is unpacked once a type and kept.
    """
    source, options = _resolve(name)
    if (kept := unpacked(name, dtype or torch.bfloat16)) is not None:
        source, options = str(kept), {}
    model, tokenizer = _load(name, source, options, dtype, tokenizer)
    if is_gguf(name):
        model.config.name_or_path = name
    try:
        model = model.to(device) if device is not None else model  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here ({first_line(error, 120)}): use cpu") from None
    return model.eval(), tokenizer


def _load(name: str, source: str, options: dict[str, Any], dtype: torch.dtype | None, tokenizer: Any) -> tuple[Any, Any]:
    gguf = "gguf_file" in options
    with quiet_loading():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            kwargs = options | dense_gguf() | _stated_windows(Path(source), options) if gguf else options
            precision = dtype or (torch.bfloat16 if gguf else "auto")
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=precision, output_loading_info=True, **kwargs)
            model, info = loaded
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
            reason = str(error).strip().split("\n")[0][:200].rstrip(".") + did_you_mean(name, ALIASES)
            if reason.startswith("Unrecognized configuration class"):  # a folder or an id it is, of another kind of model
                raise InputError(f"{name!r} is no decoder-only language model that transformers loads: see `drllm models`") from error
            known = f"a Hub id, a local folder, a .gguf file, or one of {', '.join(ALIASES)}"
            raise InputError(f"cannot load model {name!r}: {reason}; give {known}") from error
    if lacking := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        found = f"lack {len(lacking)} parameters ({lacking[0]}, ...), which would be random"
        raise InputError(f"the weights of {name!r} {found}: get a complete copy")
    return model, tokenizer


def unpacked(name: str, dtype: torch.dtype) -> Path | None:
    """A packaged model as safetensors in the user's cache folder, made there the first time; None for other names.

    transformers maps these into memory, so that processes share them, and opens them in seconds; a GGUF file takes 15 seconds to a minute,
    most of it for its vocabulary, which is read three times.
    """
    if name not in PACKAGED:
        return None
    file = PACKAGED[name].path(name)
    state = file.stat()
    made_of = short_digest(f"{state.st_size} {state.st_mtime_ns} {version('transformers')}")  # another file, another reader of it
    folder = cache_folder() / "unpacked" / f"{Path(PACKAGED[name].file).stem}-{type_name(dtype)}-{made_of}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Of processes that start together one unpacks, and the others wait.
        with FileLock(folder.parent / f"{folder.name}.lock"):
            for left in folder.parent.glob(f".{folder.name}-*"):  # by one that was killed
                shutil.rmtree(left)
            if not folder.is_dir():
                _unpack(name, dtype, folder)
    except (OSError, SafetensorError) as error:  # no room, or a home that cannot be written to: the file itself is still there
        say(f"cannot keep {name} unpacked in {folder.parent} ({first_line(error, 120)}): it is unpacked anew each time")
        return None
    return folder


def _unpack(name: str, dtype: torch.dtype, folder: Path) -> None:
    with Progress(f"unpacking {name} to {type_name(dtype)} in {folder.parent}, once", 1) as progress, whole_folder(folder) as place:
        model, tokenizer = _load(name, *_resolve(name), dtype, None)
        for entry in QUANTIZATION_ENTRIES:
            vars(model.config).pop(entry, None)
        with quiet_loading():
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
        progress.advance(1)


def _resolve(name: str) -> tuple[str, dict[str, Any]]:
    if name in HUB_ALIASES:
        return HUB_ALIASES[name], {}
    path = PACKAGED[name].path(name) if name in PACKAGED else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no file {name!r}: give the path of an existing .gguf file")
        if importlib.util.find_spec("gguf") is None:
            raise InputError(f"model {name!r} is a GGUF file, which needs the gguf package: run `pip install gguf`")
        return str(path.parent), {"gguf_file": path.name}
    if (path / CONFIG_FILE).is_file() and not (path / "config.json").is_file():
        raise InputError(f"{name!r} holds a policy, not a model: give it as --policy, which knows its own model")
    if path.exists() and not path.is_dir():
        raise InputError(f"{name!r} is a file, expected a folder with config.json, a .gguf file, a Hub id, or one of {', '.join(ALIASES)}")
    return name, {}


def _stated_windows(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the types of blocks that a GGUF file says and transformers passes over; nothing where it says none."""
    from transformers import AutoConfig

    if (stated := stated_pattern(folder / options["gguf_file"])) is None:
        return {}
    config = AutoConfig.from_pretrained(folder, **options)
    if isinstance(stated, int):  # llama.cpp was seen to follow a period of Gemma 3 alone (tests/real/test_real_llama_cpp.py)
        stated = sliding(config.num_hidden_layers, stated) if config.model_type == "gemma3_text" else ()
    if stated and getattr(config, "layer_types", None) is not None:
        # Not setattr: strict configurations compare lists with num_hidden_layers on the way.
        vars(config)["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in stated]
    return {"config": config}


def stated_pattern(path: Path) -> tuple[bool, ...] | int | None:
    """Of a GGUF file's blocks: which see a sliding window alone, or the period of full attention; None where it states neither.

    transformers 5.24 reads neither, and the gguf package's reader takes a minute for a large vocabulary on a slow core, so the one entry is
    read where it stands: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    a_bool, an_array = 7, 9  # types by the format's numbers
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (place := data.find(PATTERN_KEY.encode(), 0, 1 << 26)) < 0:
            return None
        place += len(PATTERN_KEY)
        kind, first = struct.unpack_from("<II", data, place)
        if kind != an_array:
            return first
        (size,) = struct.unpack_from("<Q", data, place + 8)
        return tuple(map(bool, struct.unpack_from(f"<{size}{'?' if first == a_bool else 'I'}", data, place + 16)))


def sliding(n_blocks: int, period: int) -> list[bool]:
    """The pattern that llama.cpp makes of a period: the last of each so many blocks is full attention; 0: none is."""
    return [period == 0 or block % period < period - 1 for block in range(n_blocks)]


def gguf_path(name: str) -> Path | None:
    """The GGUF file that `load_base` reads under this name; None where it reads something else."""
    source, options = _resolve(name)
    return Path(source) / options["gguf_file"] if "gguf_file" in options else None


def hub_or_folder(name: str) -> str | None:
    """What other tools load a base by: a Hub id, or a folder's absolute path; None for a GGUF file and for a model in memory."""
    if not name or is_gguf(name):
        return None
    return str(Path(name).resolve()) if Path(name).exists() else HUB_ALIASES.get(name, name)


def is_gguf(name: str) -> bool:
    return name in PACKAGED or Path(name).suffix == ".gguf"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading bars and advice of the library below are noise in a pipeline that has its own progress; errors are raised all the same."""
    from transformers.utils import logging as hf_logging

    levels = {logger: logger.level for logger in (hf_logging.get_logger(), *map(logging.getLogger, NOISY))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # in a notebook they are widgets, which no redirection catches
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()
        for logger, before in levels.items():
            logger.setLevel(before)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory: on a GPU an error of its own, on the CPU a plain one."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def dtype_of(dtype: Dtype) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype):
        raise InputError(f"unknown dtype {dtype!r}: give float32, bfloat16 or float16")
    return found


def fingerprint(model: nn.Module) -> str:
    """Identifies a model's weights: 16 hex digits over every parameter's name, shape and up to 4,096 of its values, rounded to bfloat16.

    One checkpoint has one fingerprint in float32 and bfloat16; another quantisation, an adapter or a fine-tune has another. One value is
    taken from each of 4,096 equal segments, at a place that moves, so that no column is passed over; a few changed ones may go unnoticed.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(part for named in model.named_parameters() for part in plain_tensors(*named)):
        flat = parameter.detach().reshape(-1)
        n_samples = min(flat.numel(), FINGERPRINT_SAMPLES)
        start = torch.arange(n_samples) * flat.numel() // max(n_samples, 1)
        length = (torch.arange(1, n_samples + 1) * flat.numel() // max(n_samples, 1)) - start
        places = start + torch.arange(n_samples) * 7919 % length
        values = flat[places.to(flat.device)].to(device="cpu", dtype=torch.float32).to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
