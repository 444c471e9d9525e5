"""What the tests of several exports start from."""

from __future__ import annotations

from pathlib import Path

import pytest

import families
from byte_tokens import byte_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny llama with a tokenizer, tied weights, in a folder."""
    folder = tmp_path_factory.mktemp("base") / "model"
    families.build("llama", vocab_size=300, max_position_embeddings=512, tie_word_embeddings=True).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
