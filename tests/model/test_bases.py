"""Bases that people really run: each is wrapped, searched, trained on and generated with; what is not supported is refused by name."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel, RoutersConfig, SearchConfig, search, train
from drllm.model.load import load_base
from drllm.runs.records import read_records
from reference import path_model, plain_greedy
from runs import TASK

pytestmark = pytest.mark.long

SEARCH = SearchConfig(n_simulations=6, limit=10, group_size=5, max_step_tokens=600, early_stop=False, verify=False)
TRAIN = RoutersConfig(preset="paper", epochs=3, width=8, n_windows=4)
ROUTES = [Route.parse(text) for text in ("1111", "1201", "0112", "2110")]
PROMPTS = ["What do plants need?", "12 and 7", "Hello", "Once upon a time there was a river"]


def plain(family: str = "llama", **options):
    return families.build(family, vocab_size=300, max_position_embeddings=256, **options)


def in_dtype(dtype: torch.dtype):
    return lambda: plain().to(dtype)


def int8():
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao (pip install torchao)")
    model = plain(hidden_size=64)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert any(type(parameter) is not torch.nn.Parameter for parameter in model.parameters()), "nothing was quantised"
    return model


def peft_adapted():
    peft = pytest.importorskip("peft", reason="needs peft")
    model = peft.get_peft_model(plain(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return model.eval()


def mapped():
    """A device map of several entries, so that accelerate's hooks stand on the blocks."""
    accelerate = pytest.importorskip("accelerate")
    model = plain()
    places = {name: "cpu" for name, _ in model.named_children()}
    inner = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
    places = {"lm_head": "cpu"} | inner | {f"model.layers.{index}": "cpu" for index in range(families.N_BLOCKS)}
    return accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)


def gguf_file():
    """A GGUF file of four blocks, written by the gguf package and unpacked by transformers."""
    pytest.importorskip("gguf", reason="needs gguf")
    from gguf_files import write_tiny

    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny(Path(folder) / "tiny.gguf")
        return load_base(str(path), torch.float32, tokenizer=byte_tokenizer())[0]


BASES = {
    "fp32": in_dtype(torch.float32),
    "bf16": in_dtype(torch.bfloat16),
    "fp16": in_dtype(torch.float16),
    "int8": int8,
    "gguf": gguf_file,
    "peft": peft_adapted,
    "device_map": mapped,
    "moe": lambda: plain("qwen2_moe"),
    "sliding": lambda: plain("gemma3_text"),
}


@pytest.mark.parametrize("name", BASES)
def test_wrap_search_train_generate(name, data, tmp_path):
    base = BASES[name]()
    twins = {route: path_model(base, route.path) for route in ROUTES} if name not in ("peft", "device_map") else {}
    routed = RoutedModel.wrap(base, byte_tokenizer())
    outs = routed.generate(PROMPTS, policy=ROUTES, max_new_tokens=6, do_sample=False)
    for prompt, route, out in zip(PROMPTS, ROUTES, outs, strict=True):
        ids = routed.tokenizer(prompt)["input_ids"]
        if twins and base.dtype == torch.float32:
            assert out.token_ids == plain_greedy(twins[route], ids, 6, routed.tokenizer.eos_token_id)
        else:  # half precision rounds otherwise in a batch; hooks cannot be copied: alone, through the routed model
            alone = routed.generate(prompt, policy=route, max_new_tokens=6, do_sample=False)[0]
            assert alone.route == out.route == route
            assert name in ("bf16", "fp16") or alone.token_ids == out.token_ids
    run = search(routed, [TASK], SEARCH, tmp_path / "run", data)
    records = list(read_records(run / "search" / TASK))
    assert len(records) == 10
    assert all(len(record.routes) > 3 for record in records)
    routed.policy = train(routed, run, TRAIN)
    routed.save_pretrained(run / "routers")
    wanted = [out.route for out in routed.generate(PROMPTS, max_new_tokens=2, do_sample=False)]
    again = RoutedModel.from_pretrained(run / "routers", base=routed)
    assert [out.route for out in again.generate(PROMPTS, max_new_tokens=2, do_sample=False)] == wanted


def test_another_adapter_or_quantisation_is_another_base():
    prints = {name: RoutedModel.wrap(BASES[name]()).fingerprint for name in ("fp32", "bf16", "peft", "int8", "moe")}
    assert prints["fp32"] == prints["bf16"], "one checkpoint has one fingerprint in both"
    assert len(set(prints.values())) == len(prints) - 1
