"""The model families that drllm's laws cover; `tests/laws/test_laws.py` holds each of them to exactness."""

from typing import Any

from drllm.core.errors import UnsupportedModelError
from drllm.core.names import did_you_mean

_NAMES = """
afmoe apertus apertus1p5_text arcee aria_text axk1 axk2 beam biogpt bitnet codegen cohere cohere2 cohere2_moe cohere_compass_text
ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dots1 dots3_note_text ergo ernie4_5 ernie4_5_moe exaone exaone4
exaone_moe falcon flex_olmo flint gemma gemma2 gemma3_text glm glm4 glm4_moe glm4_moe_lite gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama llama4_text mellum mimo_v2_flash minicpm3 minicpm5_moe
minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder moshi nanochat nemotron olmo olmo2 olmo3 olmoe
opt param2moe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe sarvam_mla sarvam_moe seed_oss smollm3 solar_open stablelm
starcoder2 vaultgemma xglm youtu
"""
FAMILIES = frozenset(_NAMES.split())
# Their blocks scale the states they are given, each by its own factor: a loop multiplies by them once more, which plain residuals never do.
RESCALING = frozenset({"beam", "doge"})

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # fields that count a mixture's experts


def has_experts(config: Any) -> bool:
    """Whether blocks are mixtures of experts, which round by what else is in a step."""
    return any((getattr(config, name, 0) or 0) > 1 for name in _EXPERTS)


def has_hidden_window(config: Any) -> bool:
    """Whether attention has a window that no cache shows: GPT-Neo's, Doge's. An example that a family is tried on may fit in it."""
    return "local" in getattr(config, "attention_layers", ()) or bool(getattr(config, "keep_window_size", 0))


def check_structure(config: Any) -> None:
    """Refuse what a configuration alone shows cannot be routed."""
    model_type = getattr(config, "model_type", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"model_type {model_type!r} is an encoder-decoder, expected a decoder-only language model")
    if getattr(config, "alibi", False) or model_type in ("bloom", "mpt"):
        why = "lays its position bias out as batch x heads, so sequences cannot be told apart"
        raise UnsupportedModelError(f"model_type {model_type!r} with alibi {why}: use a rotary model")
    if getattr(config, "add_cross_attention", False):
        raise UnsupportedModelError(f"model_type {model_type!r} has cross-attention, expected a decoder-only language model")
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(f"model_type {model_type!r} shares keys and values between blocks, which a skipped block would break")


def check_model(model: Any) -> None:
    """Refuse a module that is no causal language model in memory."""
    name = type(model).__name__
    if not hasattr(model, "generate") or model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head: give a causal language model, such as AutoModelForCausalLM loads")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedModelError(f"{name} keeps weights offloaded: load it whole onto a device")


def check_family(config: Any) -> None:
    """Refuse a family that no law covers."""
    model_type = str(getattr(config, "model_type", None))
    if model_type not in FAMILIES:
        known = f"the {len(FAMILIES)} families that drllm's laws cover{did_you_mean(model_type, sorted(FAMILIES))}"
        raise UnsupportedModelError(f"model_type {model_type!r} is not one of {known}; see `drllm models`")
