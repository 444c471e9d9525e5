"""What `RoutedModel.generate` needs around transformers' own: refused options, and where each row's answer ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, StopStringCriteria

from drllm.errors import InputError

# With a route these would decide on part of a prompt, move cache rows, or return a fixed number of layers.
UNROUTABLE_OPTIONS = (
    "num_beams",
    "num_beam_groups",
    "constraints",
    "force_words_ids",
    "assistant_model",
    "assistant_early_exit",
    "prompt_lookup_num_tokens",
    "use_mtp",
    "prefill_chunk_size",
    "cache_implementation",
    "past_key_values",
    "cache",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "penalty_alpha",
    "dola_layers",
    "custom_generate",
)


def refuse_options(options: dict[str, Any], names: Iterable[str], why: str) -> None:
    """Raise `InputError` naming the first of `names` that is set."""
    for name in names:
        if options.get(name) not in (None, False):
            raise InputError(f"option {name}={options[name]!r} is not supported: {why}; leave it out")
        if name == "use_cache" and options.get(name) is False:
            raise InputError(f"option use_cache=False is not supported: {why}; leave it out")


def new_token_counts(sequences: Tensor, n_start: int, model: Any, tokenizer: Any, options: dict[str, Any]) -> list[int]:
    """How many of the tokens after `n_start` each row generated before it was finished, end token included.

    Finished rows are filled with pads, and the pad may equal the end token or a real one: so each row's end is found with the same
    criteria that stopped it.
    """
    given = options.get("generation_config") or model.generation_config
    end = options.get("eos_token_id", given.eos_token_id)
    stop = options.get("stop_strings") or given.stop_strings
    criteria = StoppingCriteriaList(options.get("stopping_criteria") or [])
    if end is not None:
        criteria.append(EosTokenCriteria(eos_token_id=end))
    if stop is not None:
        criteria.append(StopStringCriteria(stop_strings=stop, tokenizer=tokenizer))
    counts = torch.full((len(sequences),), sequences.shape[1] - n_start, dtype=torch.long)
    if not criteria:
        return counts.tolist()
    for n_new in range(sequences.shape[1] - n_start - 1, 0, -1):
        done = criteria(sequences[:, : n_start + n_new], None).cpu()  # type: ignore[arg-type]
        counts[done] = n_new
    return counts.tolist()
