"""A zoo of tiny random decoder-only models, one or more of every family transformers ships.

`build(name)` makes the model `FAMILIES[name]` (which drllm must route exactly) or `REFUSED[name]` (which `wrap` must refuse)
describes; `NOT_TESTED` says why the remaining entries of transformers' causal-LM table are in neither. Models are fp32, in eval mode,
4 blocks wide enough to have heads, groups, windows and experts, with weights scaled up so that each block visibly matters.
Families the installed transformers lacks are left out of both tables.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DEVICE = os.environ.get("DRLLM_TEST_DEVICE", "cpu")
"""Where tiny models stand: `make test-gpu` says cuda."""
N_BLOCKS = 4
VOCAB = 97
PAD, BOS, EOS = 0, 1, 2
WINDOW = 6
"""Sliding window of every family that has one, in tokens."""

BASE: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": N_BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"intermediate_size": 64, "vocab_size": VOCAB, "max_position_embeddings": 256, "sliding_window": WINDOW, "num_experts": 4},
    **{"num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1},
    **{"topk_group": 1, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS},
}
"""What every family gets where its configuration has such a field."""

S, F = "sliding_attention", "full_attention"
MIXED = {"layer_types": [S, F, S, F]}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "first_k_dense_replace": 1,
}
MINIMAX_M3 = {
    **{"dense_intermediate_size": 64, "shared_intermediate_size": 32, "rotary_dim": 4},
    **{"index_head_dim": 8, "index_n_heads": 2, "index_block_size": 4, "index_topk_blocks": 2},
}
INDEX = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 16}
"""Many index heads, so that scores of exactly zero, whose top-k is arbitrary, stay rare."""


@dataclass(frozen=True)
class Family:
    """How to make one tiny model.

    `config`: fields on top of `BASE`; `drop`: fields of `BASE` to leave at the family's default; `scale`: factor on every weight of
    two or more dimensions; `reason`: for a refused family, why its routes cannot be exact; `since`: the transformers release from
    which this configuration builds.
    """

    model_type: str
    config: Mapping[str, Any] = dataclass_field(default_factory=dict)
    drop: tuple[str, ...] = ()
    scale: float = 3.0
    reason: str = ""
    since: str = "5.0"


def _family(model_type: str, *drop: str, scale: float = 3.0, reason: str = "", since: str = "5.0", **config: Any) -> Family:
    return Family(model_type, config, drop, scale, reason, since)


def _plain(names: str, **given: Any) -> dict[str, Family]:
    """Families that need no more than their name."""
    return {name: _family(name, **given) for name in names.split()}


def _available(table: dict[str, Family]) -> dict[str, Family]:
    return {
        name: spec
        for name, spec in table.items()
        if spec.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and spec.model_type in CONFIG_MAPPING_NAMES
        and Version(transformers.__version__) >= Version(spec.since)
    }


ALL_FAMILIES: dict[str, Family] = {
    # dense, full attention, rotary
    **_plain(
        """
        llama apertus apertus1p5_text arcee bitnet diffllama ernie4_5 exaone gemma glm glm4 gpt_neox gpt_neox_japanese granite helium
        hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2 ministral3 nanochat nemotron olmo olmo2 persimmon phi qwen2 qwen3
        seed_oss smollm3 stablelm
        """
    ),
    "llama-tied": _family("llama", tie_word_embeddings=True),
    "codegen": _family("codegen", rotary_dim=8),
    "cohere": _family("cohere", logit_scale=1.0),
    "falcon": _family("falcon", "head_dim"),
    "falcon-new": _family("falcon", "head_dim", "num_key_value_heads", new_decoder_architecture=True, num_kv_heads=2),
    "gptj": _family("gptj", rotary_dim=8),
    "llama-yarn": _family(
        "llama", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    ),
    "minicpm3": _family("minicpm3", **{**MLA, "head_dim": 16}),
    "stablelm-parallel": _family("stablelm", use_parallel_residual=True, qk_layernorm=True),
    "youtu": _family("youtu", **MLA),
    # dense, full attention, learned or sinusoidal positions
    **_plain("biogpt gpt-sw3 gpt2 gpt_bigcode"),
    "ctrl": _family("ctrl", dff=64),
    "gpt2-inverse-layer-scale": _family("gpt2", scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    "gpt_bigcode-mha": _family("gpt_bigcode", multi_query=False),
    "opt": _family("opt", ffn_dim=64, word_embed_proj_dim=32),
    "opt-project": _family("opt", ffn_dim=64, word_embed_proj_dim=16),
    "xglm": _family("xglm", ffn_dim=64),
    # windows, of one kind or mixed with full attention
    "cohere2": _family("cohere2", logit_scale=1.0, **MIXED),
    "cwm": _family("cwm", **MIXED),
    "doge": _family("doge", keep_window_size=32),
    "exaone4": _family("exaone4", **MIXED),
    "gemma2": _family("gemma2", **MIXED),
    "gemma3_text": _family("gemma3_text", **MIXED),
    "gpt_neo": _family("gpt_neo", attention_types=[[["global", "local"], 2]], window_size=WINDOW),
    "granite_swa": _family("granite_swa", **MIXED),
    "ministral": _family("ministral", **MIXED),
    "mistral": _family("mistral", sliding_window=None),
    "mistral-sliding": _family("mistral"),
    "modernbert-decoder": _family("modernbert-decoder", local_attention=2 * WINDOW, **MIXED),
    "olmo3": _family("olmo3", **MIXED),
    "phi3": _family("phi3", sliding_window=None),
    "phi3-sliding": _family("phi3"),
    "qwen2-sliding": _family("qwen2", use_sliding_window=True, **MIXED),
    "qwen3-sliding": _family("qwen3", use_sliding_window=True, layer_types=[F, S, S, F]),
    "smollm3-sliding": _family("smollm3", use_sliding_window=True, no_rope_layers=[1, 0, 1, 0], **MIXED),
    "starcoder2": _family("starcoder2", sliding_window=None),
    "starcoder2-sliding": _family("starcoder2"),
    "vaultgemma": _family("vaultgemma", **MIXED),
    "cohere_compass_text": _family("cohere_compass_text", since="5.24", logit_scale=1.0, rope_parameters={S: ROPE, F: ROPE}, **MIXED),
    # Blocks of full attention get no rotary table: position_embeddings is None for them.
    "cohere_compass_text-nope": _family("cohere_compass_text", since="5.24", logit_scale=1.0, rope_parameters={S: ROPE, F: None}, **MIXED),
    # Moshi's masks ignore the window its cache has: only a window longer than the text makes the base agree with itself.
    "moshi": _family("moshi", "sliding_window", ffn_dim=64),
    # mixtures of experts
    **_plain("flex_olmo granitemoe hy_v3 jetmoe minicpm5_moe minimax_m2 olmoe param2moe qwen3_moe sarvam_moe solar_open"),
    "afmoe": _family("afmoe", num_dense_layers=1, **MIXED),
    "aria_text": _family("aria_text", moe_num_experts=4),
    "axk1": _family("axk1", **MLA),
    "beam": _family("beam", **MIXED),
    "cohere2_moe": _family("cohere2_moe", logit_scale=1.0, **MIXED),
    "dbrx": _family(
        "dbrx",
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "deepseek_v2": _family("deepseek_v2", **MLA),
    "deepseek_v3": _family("deepseek_v3", **MLA),
    "dots1": _family("dots1", n_shared_experts=1, first_k_dense_replace=1, **MIXED),
    "ergo": _family("ergo", first_dense_intermediate_size=64, shared_intermediate_size=32, **MIXED),
    "ernie4_5_moe": _family("ernie4_5_moe", moe_num_experts=4, moe_k=2),
    "exaone_moe": _family("exaone_moe", **MIXED),
    "flint": _family("flint", **MIXED),
    "glm4_moe": _family("glm4_moe", first_k_dense_replace=1),
    "glm4_moe_lite": _family("glm4_moe_lite", **MLA),
    "gpt_oss": _family("gpt_oss", **MIXED),
    "granitemoe_swa": _family("granitemoe_swa", **MIXED),
    "granitemoeshared": _family("granitemoeshared", shared_intermediate_size=32),
    "hunyuan_v1_moe": _family("hunyuan_v1_moe", moe_topk=2),
    "kolibri1": _family("kolibri1", **MIXED),
    "laguna": _family("laguna", shared_expert_intermediate_size=32, **MIXED),
    "llama4_text": _family("llama4_text", intermediate_size_mlp=64, attention_chunk_size=WINDOW),
    "mellum": _family("mellum", **MIXED),
    "mimo_v2_flash": _family("mimo_v2_flash", **MIXED),
    "minimax_m3_vl_text": _family("minimax_m3_vl_text", layer_types=[F] * N_BLOCKS, **MINIMAX_M3),
    "mixtral": _family("mixtral", sliding_window=None),
    "mixtral-sliding": _family("mixtral"),
    "phimoe": _family("phimoe", sliding_window=None),
    "qwen2_moe": _family("qwen2_moe", shared_expert_intermediate_size=32),
    "sarvam_mla": _family("sarvam_mla", **MLA),
    # sparse attention that keeps an index of keys of its own beside the cache's keys and values in every block
    "axk2": _family("axk2", **MLA, **INDEX),
    "deepseek_v32": _family("deepseek_v32", **MLA, **INDEX),
    "dots3_note_text": _family(
        "dots3_note_text",
        layer_types=[S, "indexed_attention", S, "indexed_attention"],
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        swa_q_lora_rank=16,
        swa_kv_lora_rank=16,
        swa_head_dim=16,
        swa_qk_nope_head_dim=8,
        swa_v_head_dim=8,
        **MLA,
        **INDEX,
    ),
}

_ALIBI = "alibi is laid out batch x heads, so a block cannot run a part of the rows"
_RECURRENT = "blocks carry a recurrent or convolutional state instead of keys and values of each token"
_CARRIED = "state other than the hidden state goes from block to block"
_LOOPED = "the model calls its blocks in loops of its own"

LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", F, "linear_attention", F],
}

ALL_REFUSED: dict[str, Family] = {
    # alibi
    "bloom": _family("bloom", reason=_ALIBI),
    "falcon-alibi": _family("falcon", "head_dim", alibi=True, reason=_ALIBI),
    "mpt": _family("mpt", reason=_ALIBI),
    # no list of blocks, or blocks the model itself calls in another order
    "longcat_flash": _family(
        "longcat_flash",
        "num_hidden_layers",
        **{**MLA, "num_layers": N_BLOCKS, "moe_topk": 2, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32, "zero_expert_num": 2},
        reason="two attentions a block, so two cache layers a block: no list is as long as num_hidden_layers",
    ),
    "cpmant": _family(
        "cpmant", dim_ff=64, dim_head=8, prompt_length=4, reason="adds tokens of its own and needs the whole text at every step"
    ),
    "minimax_m3_vl_text-sparse": _family(
        "minimax_m3_vl_text",
        layer_types=["minimax_m3_sparse", F] * 2,
        **MINIMAX_M3,
        reason="selects segments of keys counted from the first pad: a padded row differs from the row alone",
    ),
    "openai-gpt": _family("openai-gpt", reason="no cache: nothing that reaches a block can carry the route"),
    "xlm": _family("xlm", reason="no list of blocks: attention, feed-forward and norms are in lists of their own"),
    "hrm_text": _family("hrm_text", reason=_LOOPED),
    "dory": _family("dory", reason=_LOOPED),
    "inkling2_loop_text": _family("inkling2_loop_text", unpadded_vocab_size=VOCAB, reason=_LOOPED),
    # state carried between blocks
    "gemma3n_text": _family(
        "gemma3n_text",
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        reason=_CARRIED,
        **MIXED,
    ),
    "gemma4_text": _family(
        "gemma4_text", vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, global_head_dim=8, reason=_CARRIED, **MIXED
    ),
    "gemma4_unified_text": _family("gemma4_unified_text", global_head_dim=8, reason=_CARRIED, **MIXED),
    "glm_moe_dsa": _family("glm_moe_dsa", reason=_CARRIED, **MLA, **INDEX),
    "hy_v4": _family("hy_v4", reason=_CARRIED, **MLA, **INDEX),
    "inkling2_text": _family("inkling2_text", unpadded_vocab_size=VOCAB, reason=_CARRIED),
    "kolibri1_1": _family("kolibri1_1", reason=_CARRIED, head_dim=16, layer_types=[S, "indexed_attention"] * 2, index_num_heads=2),
    "zamba": _family("zamba", num_key_value_heads=4, layers_block_type=["linear_attention", "hybrid"] * 2, reason=_CARRIED),
    "zamba2": _family("zamba2", num_key_value_heads=4, layers_block_type=["linear_attention", "hybrid"] * 2, reason=_CARRIED),
    "zaya": _family("zaya", num_experts_per_tok=1, router_hidden_size=16, reason=_CARRIED),
    # recurrent and convolutional
    **_plain("bailing_hybrid falcon_mamba lara_mini lfm3 mamba minimax olmo_hybrid recurrent_gemma rwkv", reason=_RECURRENT),
    "bamba": _family("bamba", mamba_n_heads=8, mamba_d_head=8, attn_layer_indices=[1, 3], reason=_RECURRENT),
    "deepseek_v4": _family(
        "deepseek_v4",
        q_lora_rank=16,
        o_lora_rank=16,
        o_groups=2,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        reason="a cache of compressed segments of tokens, and several residual streams",
    ),
    "falcon_h1": _family("falcon_h1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, reason=_RECURRENT),
    "granitemoehybrid": _family("granitemoehybrid", mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, reason=_RECURRENT),
    "inkling_text": _family("inkling_text", unpadded_vocab_size=VOCAB, reason=_RECURRENT),
    "jamba": _family("jamba", attn_layer_period=2, attn_layer_offset=1, reason=_RECURRENT),
    "kimi_linear": _family("kimi_linear", linear_head_dim=8, linear_num_heads=4, reason=_RECURRENT, **MLA),
    "lfm2": _family("lfm2", layer_types=["conv", F, "conv", F], reason=_RECURRENT),
    "lfm2_moe": _family("lfm2_moe", num_dense_layers=1, layer_types=["conv", F, "conv", F], reason=_RECURRENT),
    "mamba2": _family("mamba2", num_heads=8, head_dim=8, n_groups=2, state_size=8, reason=_RECURRENT),
    "nemotron_h": _family("nemotron_h", mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, reason=_RECURRENT),
    "qwen3_5_moe_text": _family("qwen3_5_moe_text", shared_expert_intermediate_size=32, reason=_RECURRENT, **LINEAR),
    "qwen3_5_text": _family("qwen3_5_text", reason=_RECURRENT, **LINEAR),
    "qwen3_next": _family("qwen3_next", shared_expert_intermediate_size=32, reason=_RECURRENT, **LINEAR),
    "qwen4_exp_text": _family(
        "qwen4_exp_text",
        shared_expert_intermediate_size=32,
        hc_lowrank=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=4,
        indexer_compress_ratio=2,
        reason=_RECURRENT,
        **LINEAR,
    ),
    "xlstm": _family("xlstm", num_heads=4, reason=_RECURRENT),
}

_ENCODER = "an encoder family: a decoder only under is_decoder=True, which no chat or completion model uses"
_ENCODER_DECODER = "encoder-decoder, or the decoder half of one with cross-attention"
_MULTIMODAL = "multimodal wrapper: its language model is a family of its own, or is not decoder-only text"


def _not_tested(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


IS_NEWER = Version(transformers.__version__).release[:2] > (5, 25)  # than the last transformers whose families all have a place

NOT_TESTED: dict[str, str] = {
    **_not_tested(
        """
        bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm roc_bert
        roformer xlm-roberta xlm-roberta-xl xmod
        """,
        _ENCODER,
    ),
    **_not_tested(
        """
        bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper musicgen
        musicgen_melody
        """,
        _ENCODER_DECODER,
    ),
    **_not_tested(
        """
        dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git got_ocr2 llama4 mllama moss_transcribe_diarize phi4_multimodal
        qwen3_5 qwen3_5_moe qwen4_exp
        """,
        _MULTIMODAL,
    ),
    "blt": "bytes, patches and three stacks of blocks: no token sequence the blocks of one list see",
    "gemma4_assistant": "a drafting head that reads the keys and values of another model",
    "gemma4_unified_assistant": "a drafting head that reads the keys and values of another model",
    "reformer": "reversible blocks of two streams with hashing; no ordinary cache",
    "xlnet": "permutation language model with memories instead of a cache",
}

FAMILIES: dict[str, Family] = _available(ALL_FAMILIES)
REFUSED: dict[str, Family] = _available(ALL_REFUSED)


def config_of(name: str, **overrides: Any) -> Any:
    """The tiny configuration of a family; `overrides` win over everything."""
    spec = FAMILIES.get(name) or REFUSED[name]
    config_class = CONFIG_MAPPING[spec.model_type]
    known = {field.name for field in dataclasses.fields(config_class)}
    names = {key: key if key in known else config_class.attribute_map.get(key, key) for key in BASE if key not in spec.drop}
    base = {name: BASE[key] for key, name in names.items() if name in known}
    return config_class(**{**base, **spec.config, **overrides})


_SAMPLE = """
llama llama-tied gpt2 gpt_neox opt falcon gemma3_text mistral-sliding qwen2-sliding smollm3-sliding modernbert-decoder
cohere_compass_text-nope mixtral gpt_oss llama4_text deepseek_v3 deepseek_v32
"""
SAMPLE = tuple(_SAMPLE.split())
"""One family or two of every kind: rotary and learned positions, tied weights, windows of every shape, blocks in parallel, a mixture of
experts, attention in chunks, compressed and indexed."""
QUICK = ("llama", "gpt2", "gemma3_text", "mistral-sliding", "mixtral")  # of these, those that `make test-fast` asks


def sampled(*more: str, others: str = "slow") -> list[Any]:
    """Every family for `parametrize`; those neither in `SAMPLE` nor in `more` bear the mark `others`, the rest `quick`'s."""
    import pytest

    chosen = {*SAMPLE, *more}
    rest = [pytest.param(name, marks=getattr(pytest.mark, others)) for name in FAMILIES if name not in chosen]
    return sorted([*quick(*(name for name in FAMILIES if name in chosen)), *rest], key=lambda one: one.values)


def quick(*names: str) -> list[Any]:
    """These families for `parametrize`; those not in `QUICK` are `long`."""
    import pytest

    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in names]


def build(name: str, seed: int = 0, attn: str = "eager", **overrides: Any) -> PreTrainedModel:
    """A tiny random model of the family, fp32, eval mode; same arguments, same weights, the global generator untouched."""
    spec = FAMILIES.get(name) or REFUSED[name]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Some modeling files script a function as they are imported, which new torch deprecates; no concern of ours.
            warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config_of(name, **overrides), attn_implementation=attn)
    finally:
        logger.setLevel(level)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spec.scale)
    # No family should stop early or warn on account of defaults meant for a real checkpoint.
    model.generation_config.pad_token_id, model.generation_config.bos_token_id, model.generation_config.eos_token_id = PAD, BOS, EOS
    model = model.to(torch.float32).eval()
    return model if DEVICE == "cpu" else model.to(DEVICE)  # one that a test builds on meta stays there
