"""Exported GGUF files in llama.cpp itself: with weights in float32 its texts are ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drllm import Route, RoutedModel
from drllm.deploy.export import export
from drllm.model.load import gguf_path

gguf = pytest.importorskip("gguf", reason="needs gguf (pip install gguf)")
import llamacpp  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not llamacpp.IS_THERE, reason="needs llama.cpp for Node: run `make llama-cpp-env`")]
N_TOKENS = 16
PROMPTS = [
    *("The capital of France is", "Plants need sunlight because", "Water boils at", "The largest planet in the solar system is"),
    *("A triangle has", "To bake bread you need", "The opposite of hot is", "In winter the days are", "My favourite animal is the"),
    *("Once upon a time there was a", "The computer was invented", "Gravity is the force that", "Two plus two equals"),
    *("The doctor told the patient", "She opened the door and", "Birds can fly because", "The river flows into"),
    *("Photosynthesis is the process", "The main reason for the war was", "An atom consists of"),
]
# Blocks 12 to 14 again. Of Gemma, whose every sixth block is full attention, six again; and a path of which every third block is.
PATHS = [("smollm2-135m-q4", "0-14,12-29"), ("gemma3-270m-q4", "0-11,6-17"), ("gemma3-270m-q4", "0-1,5-7,11-13,17")]


def ours(routed: RoutedModel, route: Route) -> list[str]:
    answers = (routed.generate(prompt, policy=route, max_new_tokens=N_TOKENS, do_sample=False)[0] for prompt in PROMPTS)
    return [answer.text or "" for answer in answers]


@pytest.fixture(scope="module", params=PATHS, ids=str)
def exported(request, tmp_path_factory) -> tuple[str, RoutedModel, Route, Path]:
    """(name, the model in float32, route, a folder with the quantised export and the float32 one)."""
    (name, text), folder = request.param, tmp_path_factory.mktemp("gguf")
    routed = RoutedModel.wrap(name, dtype=torch.float32)
    route = Route.parse(text, routed.n_layers)
    export(routed, route, folder / "quantised", "gguf")
    source = gguf_path(name)
    assert source is not None
    unpacked = llamacpp.unpack(source, folder / "base.gguf")
    base = RoutedModel.wrap(str(unpacked), dtype=torch.float32)
    assert base.fingerprint == routed.fingerprint, "the same weights"
    export(base, route, folder / "whole", "gguf")
    return name, routed, route, folder


def test_llama_cpp_generates_our_texts(exported, tmp_path):
    """20 prompts at temperature 0, on the same weights in float32."""
    name, routed, route, folder = exported
    theirs, wanted = llamacpp.greedy_texts(folder / "whole" / "whole.gguf", PROMPTS, N_TOKENS, tmp_path), ours(routed, route)
    same = [a == b for a, b in zip(theirs, wanted, strict=True)]
    print(f"{name} {route}: {sum(same)} of {len(same)} texts of {N_TOKENS} tokens are the same with weights in float32")
    assert theirs == wanted


def test_the_quantised_file_runs(exported, tmp_path):
    """llama.cpp quantises states, too: its texts are ours up to near ties, and those of another route are not."""
    name, routed, route, folder = exported
    theirs = llamacpp.greedy_texts(folder / "quantised" / "quantised.gguf", PROMPTS, N_TOKENS, tmp_path)
    same = [a == b for a, b in zip(theirs, ours(routed, route), strict=True)]
    print(f"{name} {route}: {sum(same)} of {len(same)} texts of {N_TOKENS} tokens are the same with quantised weights")
    base = [a == b for a, b in zip(theirs, ours(routed, Route.full(routed.n_layers)), strict=True)]
    assert sum(same) > sum(base)
