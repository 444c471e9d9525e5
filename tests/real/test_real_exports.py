"""SmolLM2-135M with blocks 12 to 14 twice, in PEFT and in mergekit: the checkpoint's logits, texts and tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import mergekit_runs
from drllm import Route, RoutedModel
from drllm.deploy.export import export
from drllm.deploy.formats.recipe import RECIPE_FILE

pytestmark = pytest.mark.slow

LOOP = Route.full(30).loop(12, 14)
PROMPTS = ["The capital of France is", "Plants need sunlight because", "Once upon a time there was a", "Gravity is the force that"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """base: a plain checkpoint; loop: the route's; adapter and recipe: of the base."""
    place = tmp_path_factory.mktemp("exports")
    export(RoutedModel.wrap("smollm2-135m-q4", dtype=torch.float32), Route.full(30), place / "base")
    routed = RoutedModel.wrap(str(place / "base"))
    export(routed, LOOP, place / "loop")
    done = export(routed, LOOP, place / "adapter", "peft")
    print(f"adapter: {done.n_bytes} bytes")
    assert done.n_bytes < 10_000
    export(routed, LOOP, place / "recipe", "mergekit")
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


@pytest.mark.skipif(not mergekit_runs.IS_THERE, reason="needs mergekit: run `make mergekit-env`")
def test_mergekit_makes_the_checkpoint(folders):
    mergekit_runs.merge(folders / "recipe" / RECIPE_FILE, folders / "merged")
    got = {name: tensor for path in sorted((folders / "merged").glob("*.safetensors")) for name, tensor in load_file(path).items()}
    wanted = load_file(folders / "loop" / "model.safetensors")
    assert set(got) == set(wanted)
    print(f"{sum(torch.equal(got[name], wanted[name]) for name in wanted)} of {len(wanted)} tensors are the same")
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
