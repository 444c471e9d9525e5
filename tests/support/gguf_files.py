"""Tiny GGUF files of four blocks, written by the gguf package; quantised as real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

import families

SIZE, HEADS, INNER, VOCAB, HEAD_SIZE = 32, 4, 64, 300, 8
F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0


def write_tiny(
    path: Path,
    arch: str = "llama",
    quantised: bool = False,
    n_blocks: int = families.N_BLOCKS,
    seed: int = 0,
    with_tokens: bool = False,
    **entries: Any,
) -> Path:
    """A model with random weights; `entries` are further ones behind the architecture, dots written as two underscores.

    `with_tokens`: with a tokenizer of bytes, and a merge.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_block_count(n_blocks)
    writer.add_context_length(256)
    writer.add_embedding_length(SIZE)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    if arch == "gemma3":
        writer.add_key_length(HEAD_SIZE)
        writer.add_value_length(HEAD_SIZE)
        writer.add_sliding_window(8)
    if with_tokens:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["<pad>", "<bos>", "<end>", *letters, "th", *(f"<{n}>" for n in range(VOCAB - 4 - len(letters)))])
        writer.add_token_merges(["t h"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    for name, value in entries.items():
        key = f"{arch}.{name.replace('__', '.')}"
        writer.add_array(key, value) if isinstance(value, list) else writer.add_uint32(key, value)
    for name, tensor in _tensors(arch, n_blocks, np.random.default_rng(seed)).items():
        kind = Q8_0 if quantised and tensor.ndim == 2 else F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(arch: str, n_blocks: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    def weight(*shape: int) -> np.ndarray:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    def norm(size: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(size)).astype(np.float32)

    tensors = {"token_embd.weight": weight(VOCAB, SIZE), "output_norm.weight": norm(SIZE)}
    if arch != "gemma3":  # whose embedding is tied
        tensors["output.weight"] = weight(VOCAB, SIZE)
    norms = {"attn_norm": SIZE, "ffn_norm": SIZE}
    if arch == "gemma3":
        norms |= {"post_attention_norm": SIZE, "post_ffw_norm": SIZE, "attn_q_norm": HEAD_SIZE, "attn_k_norm": HEAD_SIZE}
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (SIZE, SIZE))
    shapes |= {"ffn_gate": (INNER, SIZE), "ffn_up": (INNER, SIZE), "ffn_down": (SIZE, INNER)}
    for block in range(n_blocks):
        tensors |= {f"blk.{block}.{name}.weight": weight(*shape) for name, shape in shapes.items()}
        tensors |= {f"blk.{block}.{name}.weight": norm(size) for name, size in norms.items()}
    return tensors
