"""Shared by all tests: one thread a worker, tiny models, a tokenizer made in memory."""

from __future__ import annotations

import functools
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import families
from drllm import RoutedModel


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Workers share two cores, and sums in one order can be compared byte for byte."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A file of sums to search."""
    from runs import questions, write_rows

    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", questions())


@functools.cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token (ids 3 to 258), with pad, bos and end tokens and a minimal chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<bos>": 1, "<end>": 2} | {letter: index + 3 for index, letter in enumerate(letters)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    return tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer."""
    return byte_tokenizer()


@pytest.fixture
def tiny(tokenizer) -> RoutedModel:
    """A wrapped tiny llama that reads text."""
    return RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=512), tokenizer)
