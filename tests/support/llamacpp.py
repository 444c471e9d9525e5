"""llama.cpp itself, prebuilt for Node on the package index (`make llama-cpp-env`), and GGUF files unpacked to float32 for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import gguf

from drllm.deploy.formats.gguf_file import Entry, write_copy

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


def unpack(source: Path, target: Path) -> Path:
    """The same model with every tensor in float32, unpacked by the gguf package.

    llama.cpp multiplies quantised weights with states that it quantises, too, so its texts part from ours at near ties; with float32
    weights both compute the same sums.
    """
    reader, whole = gguf.GGUFReader(source), gguf.GGMLQuantizationType.F32
    tensors = [(tensor.name, whole, gguf.quants.dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors]
    write_copy(reader, target, {"general.file_type": Entry(0, gguf.GGUFValueType.UINT32)}, tensors)
    return target
