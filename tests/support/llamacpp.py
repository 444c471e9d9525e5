"""llama.cpp itself, prebuilt for Node on the package index (`make llama-cpp-env`), and GGUF files unpacked to float32 for it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from drllm.model.gguf_header import _text, list_entry, number_entry, read_header

FOLDER = Path(os.environ.get("DRLLM_LLAMA_CPP") or Path(__file__).parents[2] / ".venv-llama-cpp")
IS_THERE = (FOLDER / "node_modules" / "@fugood" / "llama.node").is_dir()
_SCRIPT = Path(__file__).with_name("llamacpp.js")


def greedy_texts(model: Path, prompts: list[str], n_tokens: int, scratch: Path) -> list[str]:
    """What llama.cpp generates from each prompt at temperature 0, keys and values in float32."""
    job, out = scratch / "job.json", scratch / "texts.json"
    job.write_text(json.dumps({"model": str(model), "prompts": prompts, "n_tokens": n_tokens}))
    done = subprocess.run(["node", str(_SCRIPT), str(job), str(out)], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def unpack(source: Path, target: Path, by_layer: Sequence[str] = ()) -> Path:
    """The same model with every tensor in float32, unpacked by the gguf package.

    llama.cpp multiplies quantised weights with states that it quantises, too, so its texts part from ours at near ties; with float32
    weights both compute the same sums.

    Args:
        by_layer: numbers that are to stand once for each layer, as they do in models whose layers differ.
    """
    header, data = read_header(source), np.memmap(source, mode="r")
    entries = header.entries | {"general.file_type": number_entry(4, 0)}
    n_layers = header.entries["llama.block_count"].value if by_layer else 0
    entries |= {key: list_entry(header.entries[key].kind, [header.entries[key].value] * n_layers) for key in by_layer}
    kinds = [_shape_and_type(tensor.shape_and_type) for tensor in header.tensors]
    with target.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", header.version, len(header.tensors), len(entries)))
        for key, entry in entries.items():
            file.write(_text(key) + entry.raw)
        offset = 0
        for tensor, (shape, _) in zip(header.tensors, kinds, strict=True):
            file.write(_text(tensor.name) + tensor.shape_and_type[:-4] + struct.pack("<IQ", gguf.GGMLQuantizationType.F32, offset))
            n_bytes = 4 * int(np.prod(shape))
            offset += n_bytes + -n_bytes % header.alignment
        for tensor, (shape, kind) in zip(header.tensors, kinds, strict=True):
            file.write(bytes(-file.tell() % header.alignment))
            block, size = gguf.GGML_QUANT_SIZES[kind]
            raw = data[tensor.start : tensor.start + int(np.prod(shape)) // block * size]
            whole = kind == gguf.GGMLQuantizationType.F32
            values = raw.view(np.float32) if whole else gguf.quants.dequantize(raw.reshape(-1, shape[0] // block * size), kind)
            file.write(np.ascontiguousarray(values, dtype=np.float32).tobytes())
        file.write(bytes(-file.tell() % header.alignment))
    return target


def _shape_and_type(raw: bytes) -> tuple[tuple[int, ...], gguf.GGMLQuantizationType]:
    n_dimensions = struct.unpack_from("<I", raw)[0]
    *shape, kind = struct.unpack_from(f"<{n_dimensions}QI", raw, 4)
    return tuple(shape), gguf.GGMLQuantizationType(kind)
