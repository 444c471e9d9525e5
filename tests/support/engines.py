"""What the serving tests share: the serving environment's Python, an engine in a process of its own, and what it should have said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.policies.routers import RouterConfig, Routers

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from served import free_port, serving  # noqa: E402 - tests start servers as benchmarks do

__all__ = ["DECIDES", "PYTHON", "ROOT", "check", "checkpoint", "free_port", "needs_vllm", "random_routers", "run_engine", "serving"]
PYTHON = Path(os.environ.get("DRLLM_SERVE_PYTHON", ROOT / ".venv-serve" / "bin" / "python"))
# Options of an engine that decides routes itself: whole prompts, each read once.
DECIDES: dict[str, Any] = {
    "enable_chunked_prefill": False,
    "enable_prefix_caching": False,
    "max_num_batched_tokens": 2048,
    "async_scheduling": False,
}
N_BLOCKS = 6
VOCAB = 300
needs_vllm = pytest.mark.skipif(not PYTHON.is_file(), reason="no serving environment: `make serve-env` builds it (docs/serve.md)")
SIZES = {
    **{"num_hidden_layers": N_BLOCKS, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCAB, "max_position_embeddings": 512},
}
# vLLM's kernels want heads of 32 at least, and the spread makes a block worth something.
FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {"sliding_window": None}}


def checkpoint(folder: Path, family: str) -> Path:
    """A tiny random model of the family and a tokenizer, saved as users would have them."""
    model = families.build(family, **SIZES | FAMILIES[family])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():  # biases and norms, too: what is left at its start could be lost unseen
            values = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(values + 1 if "norm" in name else values)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def run_engine(model: Path | str, spec: dict[str, Any] | None, requests: Sequence[dict[str, Any]], **engine: Any) -> dict[str, Any]:
    """What an engine answers: see `engine_probe.py`."""
    job = {"model": str(model), "spec": spec, "requests": list(requests), "engine": engine}
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("engine_probe.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@torch.no_grad()
def check(routed: RoutedModel, request: dict[str, Any], answer: dict[str, Any], route: str | None = None, tolerance: float = 1e-3) -> None:
    """Every token is the most likely one of an uncached forward of the same route, and its log-probability the same."""
    ids = request["ids"] + answer["ids"]
    route = route or request.get("route") or "1" * routed.n_layers
    logits_TV = routed(torch.tensor([ids]), routes=Route.parse(route)).logits[0].float().log_softmax(-1)
    at = len(request["ids"]) - 1
    assert logits_TV[at : at + len(answer["ids"])].argmax(-1).tolist() == answer["ids"], route
    wanted = [float(logits_TV[at + place, token]) for place, token in enumerate(answer["ids"])]
    assert max(abs(a - b) for a, b in zip(wanted, answer["logprobs"], strict=True)) < tolerance, route


def random_routers(routed: RoutedModel) -> Routers:
    """Routers of a tiny model that take all three actions."""
    routers = Routers(RouterConfig(N_BLOCKS, routed.hidden_size, n_windows=4, width=16), seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in routers.tensors.items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.0 if name.startswith("w") else 0.1))
    return routers
