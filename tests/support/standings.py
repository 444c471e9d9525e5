"""What each tool takes of the tiny models in `families`: the lists that the tests hold, and that docs/families.md is written from.

Names are those of `families.ALL_FAMILIES`. What stands in no list of a tool is taken by it.
"""

from __future__ import annotations

# Their attention keeps more than keys and values.
NOT_WRITTEN = ("axk2", "deepseek_v32", "dots3_note_text")

HEALED = ("llama", "gemma2", "qwen2", "gpt_neox")
NO_LINEAR_MAPS = ("gpt2",)  # its blocks hold another kind of module

# Some route has no configuration: a block's index decides what it computes, or which of two kinds of block it is.
NOT_EVERY_CHECKPOINT = {"diffllama", "gpt2-inverse-layer-scale", "modernbert-decoder", "afmoe", "beam", "ernie4_5_moe", "dots3_note_text"}

# PEFT knows lists of blocks called `model.layers`, `encoder.layer` and `h`, of which no causal language model with the last two is left.
LAYOUT = {
    *("biogpt", "codegen", "ctrl", "dbrx", "falcon", "falcon-new", "gpt-sw3", "gpt2", "gpt2-inverse-layer-scale", "gpt_bigcode"),
    *("gpt_bigcode-mha", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gptj", "opt", "opt-project"),
}
# Their blocks are of more than one type, so every route here moves a type to another place ...
TYPES = {
    *("afmoe", "beam", "cohere2", "cohere2_moe", "cohere_compass_text", "cohere_compass_text-nope", "cwm", "dots1", "dots3_note_text"),
    *("ergo", "exaone4", "exaone_moe", "flint", "gemma2", "gemma3_text", "gpt_oss", "granite_swa", "granitemoe_swa", "kolibri1"),
    *("laguna", "mellum", "mimo_v2_flash", "ministral", "modernbert-decoder", "olmo3", "qwen2-sliding", "smollm3-sliding", "vaultgemma"),
}
# ... or a longer model lacks one.
LONGER = {"axk2", "deepseek_v32", "llama4_text", "minimax_m3_vl_text", "qwen2", "qwen2_moe", "qwen3", "qwen3-sliding", "smollm3"}
# With two types in an order that some of the routes keep: which of the routes are expressed.
SOME = {"llama4_text": {"both"}, "qwen3-sliding": {"both"}}
