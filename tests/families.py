"""A zoo of tiny random decoder-only models, one or more of every family transformers ships.

`build(name)` makes the model `FAMILIES[name]` (which drllm must route exactly) or `REFUSED[name]` (which `wrap` must refuse)
describes; `NOT_TESTED` says why the remaining entries of transformers' causal-LM table are in neither. Models are fp32, in eval mode,
4 blocks wide enough to have heads, groups, windows and experts, with weights scaled up so that each block visibly matters.
Families the installed transformers lacks are left out of both tables.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

N_BLOCKS = 4
VOCAB = 97
PAD, BOS, EOS = 0, 1, 2
WINDOW = 6
"""Sliding window of every family that has one, in tokens."""

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "sliding_window": WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
"""What every family gets where its configuration has such a field."""

S, F = "sliding_attention", "full_attention"
MIXED = {"layer_types": [S, F, S, F]}
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


@dataclass(frozen=True)
class Family:
    """How to make one tiny model.

    `config`: fields on top of `BASE`; `drop`: fields of `BASE` to leave at the family's default; `scale`: factor on every weight of
    two or more dimensions; `reason`: for a refused family, why its routes cannot be exact.
    """

    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    scale: float = 3.0
    reason: str = ""


def _family(model_type: str, *drop: str, scale: float = 3.0, reason: str = "", **config: Any) -> Family:
    return Family(model_type, config, drop, scale, reason)


def _available(table: dict[str, Family]) -> dict[str, Family]:
    return {
        name: spec
        for name, spec in table.items()
        if spec.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and spec.model_type in CONFIG_MAPPING_NAMES
    }


ALL_FAMILIES: dict[str, Family] = {
    # dense, full attention
    "llama": _family("llama"),
    "llama-tied": _family("llama", tie_word_embeddings=True),
    "arcee": _family("arcee"),
    "qwen2": _family("qwen2"),
    "qwen3": _family("qwen3"),
    "gemma": _family("gemma"),
    "phi": _family("phi"),
    "phi3": _family("phi3"),
    "olmo": _family("olmo"),
    "olmo2": _family("olmo2"),
    "stablelm": _family("stablelm"),
    "cohere": _family("cohere"),
    "granite": _family("granite"),
    "gpt2": _family("gpt2"),
    "gpt_neox": _family("gpt_neox"),
    "opt": _family("opt", ffn_dim=64, word_embed_proj_dim=32),
    "falcon": _family("falcon", "head_dim"),
    "smollm3": _family("smollm3"),
    # sliding windows
    "mistral-sliding": _family("mistral"),
    "qwen2-sliding": _family("qwen2", use_sliding_window=True, **MIXED),
    "gemma2": _family("gemma2", **MIXED),
    "gemma3_text": _family("gemma3_text", **MIXED),
    # mixtures of experts
    "mixtral": _family("mixtral"),
    "gpt_oss": _family("gpt_oss", **MIXED),
    "deepseek_v3": _family("deepseek_v3", **MLA),
}

ALL_REFUSED: dict[str, Family] = {}

NOT_TESTED: dict[str, str] = {}

FAMILIES: dict[str, Family] = _available(ALL_FAMILIES)
REFUSED: dict[str, Family] = _available(ALL_REFUSED)


def config_of(name: str, **overrides: Any) -> Any:
    """The tiny configuration of a family; `overrides` win over everything."""
    spec = FAMILIES.get(name) or REFUSED[name]
    config_class = CONFIG_MAPPING[spec.model_type]
    known = {f.name for f in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    base = {key: value for key, value in BASE.items() if key in known and key not in spec.drop}
    return config_class(**{**base, **spec.config, **overrides})


def build(name: str, seed: int = 0, attn: str = "eager", **overrides: Any) -> PreTrainedModel:
    """A tiny random model of the family, fp32, eval mode; same arguments, same weights, the global generator untouched."""
    spec = FAMILIES.get(name) or REFUSED[name]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]):
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
    return model.to(torch.float32).eval()
