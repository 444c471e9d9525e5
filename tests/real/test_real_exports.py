"""SmolLM2-135M with blocks 12 to 14 twice, in PEFT: the checkpoint's logits and texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drllm import Route, RoutedModel
from drllm.deploy.export import export

pytestmark = pytest.mark.slow

LOOP = Route.full(30).loop(12, 14)
PROMPTS = ["The capital of France is", "Plants need sunlight because", "Once upon a time there was a", "Gravity is the force that"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """base: a plain checkpoint; loop: the route's; adapter: of the base."""
    place = tmp_path_factory.mktemp("exports")
    export(RoutedModel.wrap("smollm2-135m-q4", dtype=torch.float32), Route.full(30), place / "base")
    routed = RoutedModel.wrap(str(place / "base"))
    export(routed, LOOP, place / "loop")
    done = export(routed, LOOP, place / "adapter", "peft")
    print(f"adapter: {done.n_bytes} bytes")
    assert done.n_bytes < 10_000
    return place


@torch.no_grad()
def test_peft_generates_the_checkpoints_texts(folders):
    peft = pytest.importorskip("peft", reason="needs peft (pip install peft)")
    tokenizer = AutoTokenizer.from_pretrained(folders / "base")
    unrolled = AutoModelForCausalLM.from_pretrained(folders / "loop")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(str(folders / "adapter")).eval()
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    shared = {parameter.data_ptr(): parameter.numel() for name, parameter in adapted.named_parameters() if "lora" not in name}
    assert sum(shared.values()) == sum(parameter.numel() for parameter in base.parameters())
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        assert torch.equal(adapted(**inputs).logits, unrolled(**inputs).logits)
        texts = [model.generate(**inputs, max_new_tokens=24, do_sample=False).tolist() for model in (adapted, unrolled)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("path", ["0-14,12-29", "0-9,6-29", "0-10,3-29"])
def test_an_adapter_in_the_bases_own_type(tmp_path, path):
    """In bfloat16 a cached forward differs from a whole one by more than the check allows: like is compared with like."""
    pytest.importorskip("peft", reason="needs peft (pip install peft)")
    done = export(RoutedModel.wrap("smollm2-135m-q4", dtype=torch.bfloat16), Route.parse(path, 30), tmp_path / "adapter", "peft")
    print(f"{path}: {done.difference}")
    assert done.difference < 0.1
