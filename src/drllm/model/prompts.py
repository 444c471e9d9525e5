"""Prompts to padded token tensors: raw text or chat messages, left-padded, checked against the context length."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from drllm.core.errors import InputError, first_line

Prompt = str | Sequence[Mapping[str, str]]
RAW, CHAT = "raw", "chat"


def encode_prompts(tokenizer: Any, prompts: Any, **template: Any) -> tuple[list[list[int]], str]:
    """Token ids of each prompt, and the format they share: "raw" (text plus the tokenizer's specials) or "chat" (its template).

    `prompts` is one prompt or a list of them; a prompt is a text or a list of messages with `role` and `content`.
    `template`: what the chat template is told besides.
    """
    if tokenizer is None:
        raise InputError("this model was wrapped without a tokenizer: pass tokenizer=..., or token ids as input_ids=...")
    batch = [prompts] if isinstance(prompts, str) or _is_messages(prompts) else prompts
    if not isinstance(batch, list | tuple):
        raise InputError(f"prompts is a {type(prompts).__name__}, expected a text, a list of messages, or a list of either")
    formats = {RAW if isinstance(prompt, str) else CHAT for prompt in batch}
    if len(formats) != 1:
        raise InputError(f"got {len(batch)} prompts of {len(formats)} formats, expected at least one, all text or all chat messages")
    if formats == {CHAT} and not tokenizer.chat_template:
        raise InputError("got chat messages but the tokenizer has no chat template: pass the prompt as text")
    ids = []
    for index, prompt in enumerate(batch):
        try:
            ids.append(_encode(tokenizer, prompt, index, template))
        except (TemplateError, UnicodeEncodeError, TypeError) as error:
            raise InputError(f"prompt {index} cannot be tokenised: {first_line(error, 120)}; check its text and roles") from None
        if not ids[-1]:
            raise InputError(f"prompt {index} is empty: give it at least one token")
    return ids, formats.pop()


def _encode(tokenizer: Any, prompt: Any, index: int, template: Mapping[str, Any]) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"]) if prompt else []
    if not _is_messages(prompt) or any({"role", "content"} - message.keys() for message in prompt):
        raise InputError(f"prompt {index} is not a list of messages with 'role' and 'content'")
    given: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **template}
    return list(tokenizer.apply_chat_template(list(prompt), **given)["input_ids"])


def _is_messages(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(message, dict) for message in prompt)


def check_ids(input_ids: Any, attention_mask: Any) -> tuple[Tensor, Tensor, list[int]]:
    """(input_ids, attention_mask, prompt tokens of each sequence), refusing what is not a left-padded batch of token ids."""
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or not input_ids.numel() or input_ids.is_floating_point():
        found = f"{input_ids.dtype} {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else f"a {type(input_ids).__name__}"
        raise InputError(f"input_ids is {found}, expected a tensor of whole token ids (B, T) with at least one sequence and token")
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        found = tuple(getattr(attention_mask, "shape", ()))
        raise InputError(f"attention_mask has shape {found}, expected that of input_ids, {tuple(input_ids.shape)}")
    n_prompt_B = [int(n) for n in attention_mask.sum(1).tolist()]
    if not all(n_prompt_B):
        raise InputError(f"prompt {n_prompt_B.index(0)} is empty: give it at least one token")
    if bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any()):
        raise InputError("the batch is padded on the right: pad input_ids and attention_mask on the left")
    return input_ids, attention_mask, n_prompt_B


def check_prompt_mask(input_ids: Tensor, attention_mask: Tensor | None, prompt_mask: Tensor | None) -> Tensor:
    """(B, T) bool: what a policy may read, the prompt mask or by default the attention mask; a pad is never part of the prompt."""
    real = torch.ones_like(input_ids) if attention_mask is None or attention_mask.ndim != 2 else attention_mask
    prompt_mask = real if prompt_mask is None else prompt_mask
    if prompt_mask.shape != input_ids.shape:
        raise InputError(f"prompt_mask has shape {tuple(prompt_mask.shape)}, expected that of input_ids, {tuple(input_ids.shape)}")
    return prompt_mask.bool() & real.bool()


def prompts_of(input_ids: Tensor | None, prompt_mask: Tensor) -> list[list[int]]:
    """The token ids of each prompt: those of (B, T) where the mask is true. Without `input_ids` the prompts are empty."""
    if input_ids is None:
        return [[]] * len(prompt_mask)
    return [ids[mask].tolist() for ids, mask in zip(input_ids.cpu(), prompt_mask.cpu(), strict=True)]


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, width: int = 0) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask), both (B, T), from sequences of unequal length; T is `width`, or the longest one's."""
    width = max(width, *map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(sequence)) + list(sequence) for sequence in sequences])
    mask = torch.tensor([[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences])
    return ids.to(device), mask.to(device)


def check_context(n_prompt: int, n_new: int, config: Any) -> None:
    """Refuse a prompt that, with its answer, does not fit the model's positions."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and n_prompt + n_new > limit:
        found = f"a prompt of {n_prompt} tokens plus {n_new} new ones exceeds the context of {limit} tokens"
        raise InputError(f"{found}: shorten it or lower max_new_tokens")
