"""SmolLM2-135M, healed for a few steps: nearer to the base, and the same texts from every consumer of the merged checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import drllm
import llamacpp
from drllm import HealConfig, Route, RoutedModel
from drllm.deploy.export import export
from drllm.healing.heal import Healed

pytestmark = pytest.mark.slow
CONVERTER = Path(os.environ.get("DRLLM_CONVERTER") or Path(sys.prefix) / "converter") / "convert_hf_to_gguf.py"
SUBJECTS = [
    *("rain", "glaciers", "bread", "the moon", "bridges", "horses", "iron"),
    *("music", "rivers", "clocks", "salt", "paper", "bees", "glass"),
]
LINES = [f"{begin} {subject}{end}" for subject in SUBJECTS for begin, end in (("Tell me about", "."), ("The history of", " begins"))]
PROMPTS = [
    *("The capital of France is", "Plants need sunlight because", "Two plus two equals"),
    *("Birds can fly because", "Tell me about salt."),
]
N_TOKENS = 12


@pytest.fixture(scope="module")
def healed(tmp_path_factory) -> tuple[RoutedModel, Healed, Path]:
    """The base with the policy set, what the healing came to, and the merged checkpoint."""
    place = tmp_path_factory.mktemp("healed")
    (place / "lines.txt").write_text("\n".join(LINES))
    routed = RoutedModel.wrap("smollm2-135m-q4", dtype=torch.float32)
    route = Route([0 if block in (5, 12, 14, 16, 17, 26) else 1 for block in range(30)])
    config = HealConfig(steps=8, step_tokens=150, held_out=6, new_tokens=0)
    policy, (found,) = drllm.heal(routed, place / "run", route, prompts=place / "lines.txt", config=config)
    routed.policy = policy
    export(routed, policy.route, place / "merged")
    return routed, found, place / "merged"


def ours(routed: RoutedModel) -> list[str]:
    return [routed.generate(prompt, max_new_tokens=N_TOKENS, do_sample=False)[0].text or "" for prompt in PROMPTS]


def test_a_few_steps_bring_it_nearer(healed):
    _, found, _ = healed
    print(f"KL {found.kl_before:.3f} to {found.kl_after:.3f}, same next token {found.same_before:.1%} to {found.same_after:.1%}")
    assert found.kl_after < 0.9 * found.kl_before
    assert found.n_passes == 24


@torch.no_grad()
def test_merged_it_is_the_same_in_stock_transformers(healed):
    routed, _, merged = healed
    loaded = AutoModelForCausalLM.from_pretrained(merged)
    assert loaded.config.num_hidden_layers == 24
    for prompt, text in zip(PROMPTS, ours(routed), strict=True):
        inputs = routed.tokenizer(prompt, return_tensors="pt")
        assert (loaded(**inputs).logits - routed(**inputs).logits).abs().max() < 1e-4 * loaded(**inputs).logits.abs().max()
        out = loaded.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert routed.tokenizer.decode(out, skip_special_tokens=True) == text


@pytest.mark.skipif(not (CONVERTER.is_file() and llamacpp.IS_THERE), reason="needs llama.cpp and its converter: run `make test-slow`")
def test_llama_cpp_generates_our_texts_from_it(healed, tmp_path):
    routed, _, merged = healed
    command = [sys.executable, str(CONVERTER), str(merged), "--outfile", str(tmp_path / "healed.gguf"), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(CONVERTER.parent)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert llamacpp.greedy_texts(tmp_path / "healed.gguf", PROMPTS, N_TOKENS, tmp_path) == ours(routed)
