"""Prompts to padded token tensors: raw text or chat messages, left-padded, checked against the context length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drllm.errors import InputError

Prompt = str | Sequence[Mapping[str, str]]
RAW, CHAT = "raw", "chat"


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> tuple[list[list[int]], str]:
    """Token ids of each prompt, and the format they share: "raw" (text plus the tokenizer's specials) or "chat" (its template)."""
    if tokenizer is None:
        raise InputError("this model was wrapped without a tokenizer: pass tokenizer=..., or token ids as input_ids=...")
    formats = {RAW if isinstance(prompt, str) else CHAT for prompt in prompts}
    if len(formats) != 1:
        raise InputError(f"got {len(prompts)} prompts of {len(formats)} formats, expected at least one, all text or all chat messages")
    if formats == {CHAT} and not tokenizer.chat_template:
        raise InputError("got chat messages but the tokenizer has no chat template: pass the prompt as text")
    ids = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            row = tokenizer(prompt)["input_ids"] if prompt else []
        else:
            messages = [dict(message) for message in prompt]
            if not messages or any({"role", "content"} - message.keys() for message in messages):
                raise InputError(f"prompt {index} is not a list of messages with 'role' and 'content'")
            row = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
        if not row:
            raise InputError(f"prompt {index} is empty: give it at least one token")
        ids.append(list(row))
    return ids, formats.pop()


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask), both (B, T), from rows of unequal length."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def check_context(n_prompt: int, n_new: int, config: Any) -> None:
    """Refuse a prompt that, with its answer, does not fit the model's positions."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and n_prompt + n_new > limit:
        raise InputError(
            f"a prompt of {n_prompt} tokens plus {n_new} new ones exceeds the context of {limit} tokens: shorten it or lower max_new_tokens"
        )
