"""A real llama whose answers are known by heart: the last token alone says what follows."""

from __future__ import annotations

import copy
import functools
from itertools import pairwise
from typing import Any

import torch

import families
from byte_tokens import byte_tokenizer
from drllm import RoutedModel
from drllm.tasks import Example

FOLLOWS = {"1": "A", "2": "B", "3": "C", "4": "D", "A": ".", "B": "<end>", "C": "u", "D": "\n"}
FOLLOWS |= {"u": "v", "v": "u", ".": " ", "\n": "v", " ": "v"}


@functools.cache
def by_rote() -> RoutedModel:
    """A real llama whose blocks add nothing and whose head says what follows the last token."""
    base = families.build("llama", vocab_size=300, hidden_size=300, tie_word_embeddings=False)
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ messages[0]['content'][10] }}"
    with torch.no_grad():
        for block in base.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        base.model.embed_tokens.weight.copy_(torch.eye(300))
        base.lm_head.weight.zero_()
        for last, following in FOLLOWS.items():
            base.lm_head.weight[tokenizer(following)["input_ids"][0], tokenizer(last)["input_ids"][0]] = 1
        # E) and then the two bytes of a digit.
        tokens = tokenizer("5E)٣ ")["input_ids"]
        for last, following in pairwise(tokens):
            base.lm_head.weight[following, last] = 1
    return RoutedModel.wrap(base, tokenizer)


@functools.cache
def answering(family: str, template: str | None = byte_tokenizer().chat_template, **settings: Any) -> RoutedModel:
    """A tiny model whose every route answers in letters, marks and end tokens, so that answers settle early, late or never.

    `template`: of chats; `settings`: of its generation_config.
    """
    base = families.build(family, vocab_size=300, max_position_embeddings=512, tie_word_embeddings=False)
    base.generation_config.update(**settings)
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = template
    said = [tokenizer.eos_token_id, *(tokenizer(text)["input_ids"][0] for text in "ABCD.) \nx")]
    with torch.no_grad():
        weights = base.get_output_embeddings().weight
        kept = weights[said].clone()
        weights.zero_()
        weights[said] = kept
    return RoutedModel.wrap(base, tokenizer)


def rote_example(first: str, answer: int, filler: str = "") -> Example:
    return Example(f"{first}{filler}", f"{first} {filler}?", ("w", "x", "y", "z"), answer, "arc_easy")
