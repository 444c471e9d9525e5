"""What `RoutedModel.generate` needs around transformers' own: effective options, refused ones, and where each sequence's answer ends."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, RepetitionPenaltyLogitsProcessor, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from drllm.core.errors import InputError
from drllm.policies.given import is_identity
from drllm.policies.policy import RouteSource

DEFAULT_NEW_TOKENS = 64

# With a route these would decide on part of a prompt, move cached sequences, run an unrouted copy, or return a fixed number of layers.
_UNROUTABLE = """
num_beams num_beam_groups constraints force_words_ids assistant_model assistant_early_exit prompt_lookup_num_tokens use_mtp
prefill_chunk_size cache_implementation past_key_values cache compile_config use_cache output_hidden_states output_attentions
penalty_alpha dola_layers guidance_scale custom_generate
"""
UNROUTABLE_OPTIONS = tuple(_UNROUTABLE.split())
# Values of theirs that ask for nothing. Hub configurations of sliding-window models still say "hybrid", which transformers ignores.
_HARMLESS = {"num_beams": (1,), "num_beam_groups": (1,), "use_cache": (True,), "guidance_scale": (1,), "cache_implementation": ("hybrid",)}


def setting(model: Any, options: dict[str, Any], name: str) -> Any:
    """An option of `generate` as transformers resolves it: the argument, else the given generation_config, else the model's own."""
    for value in (options.get(name), getattr(options.get("generation_config"), name, None)):
        if value is not None:
            return value
    return getattr(model.generation_config, name, None)


def refuse_options(options: dict[str, Any], names: Iterable[str], why: str) -> None:
    """Raise `InputError` naming the first of `names` that asks for something."""
    for name in names:
        value = options.get(name)
        asks = value is not None and (value is not False or name == "use_cache")
        if asks and not any(value == harmless for harmless in _HARMLESS.get(name, ())):
            raise InputError(f"option {name}={value!r} is not supported: {why}; leave it out")


def refuse_unroutable(model: Any, options: dict[str, Any]) -> None:
    """Refuse the options no route can follow, wherever they were given."""
    why = "with a route, drllm generates greedily or by sampling, the whole prompt in one step, with its own cache"
    fixed_cache = setting(model, options, "cache_implementation") not in (None, *_HARMLESS["cache_implementation"])
    if fixed_cache or setting(model, options, "compile_config") is not None:  # transformers compiles with a static cache alone
        why += " (one fixed route for all: `drllm export` writes a checkpoint that takes any cache, and compilation)"
    refuse_options({name: setting(model, options, name) for name in UNROUTABLE_OPTIONS}, UNROUTABLE_OPTIONS, why)


def new_token_limit(options: dict[str, Any], max_new_tokens: int | None, n_prompt: int) -> int:
    """The most new tokens: the argument, else a given max_length (taken out of `options`) or generation_config, else 64."""
    if max_new_tokens is None:
        given = options.get("generation_config")
        length = options.get("max_length") or getattr(given, "max_length", None)
        max_new_tokens = getattr(given, "max_new_tokens", None)
        if max_new_tokens is None and length is not None:
            max_new_tokens = length - n_prompt
        if max_new_tokens is None:
            max_new_tokens = DEFAULT_NEW_TOKENS
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        note = f"max_length counts the prompt's {n_prompt} tokens too"
        raise InputError(f"max_new_tokens is {max_new_tokens!r}, expected at least 1 ({note})")
    options.pop("max_length", None)
    return max_new_tokens


def check_promise(source: RouteSource | None, epsilon: float, dtype: str) -> None:
    """Refuse a policy without a guarantee of `epsilon` or less, for weights of this dtype."""
    if source is None or is_identity(source):
        return
    found = source.guarantee
    if found is None or found["point"] is None:
        advice = "`drllm train --calibrate calibrate` tests for one"
        raise InputError(f"epsilon={epsilon} asks for a promise and this policy has none: {advice}")
    if found["dtype"] != dtype:
        raise InputError(f"this policy is promised for {found['dtype']} weights, these are {dtype}: load the base in that type")
    if not epsilon >= found["epsilon"]:
        promised = f"the {found['epsilon']} this policy is promised"
        raise InputError(f"epsilon={epsilon} asks for more than {promised}: train with --epsilon {epsilon}")


def check_format(source: RouteSource, prompt_format: str, strict: bool, promised: bool) -> None:
    """Refuse prompts of another format than the policy was trained on: where it is `strict`, or where a promise was asked for."""
    if source.prompt_format in (None, prompt_format):
        return
    if promised:
        raise InputError(f"the promise was made for {source.prompt_format!r} prompts, these are {prompt_format!r}: leave epsilon out")
    if strict and source.route is None:  # one route for all is no more arbitrary here than there
        found = f"the policy was trained on {source.prompt_format!r} prompts, these are {prompt_format!r}: its routes would be arbitrary"
        raise InputError(f"{found}; pass check_prompt_format=False (--any-format) to use it all the same")


class SequenceEnds(StoppingCriteria):
    """Stops sequences on the end tokens, the stop strings and the caller's criteria, and remembers when each one stopped.

    Finished ones are filled with pads, and a pad may equal the end token or a real one, so the end cannot be read off the tokens later.
    """

    def __init__(self, model: Any, tokenizer: Any, options: dict[str, Any], n_start: int):
        self.n_start = n_start
        self.counts: Tensor | None = None  # (B,) new tokens of each finished sequence, 0 while it runs
        self.criteria = StoppingCriteriaList(options.get("stopping_criteria") or [])
        end, stop = setting(model, options, "eos_token_id"), setting(model, options, "stop_strings")
        if "eos_token_id" in options:
            end = options["eos_token_id"]
        if end is not None:
            self.criteria.append(EosTokenCriteria(eos_token_id=end))
        if stop is not None:
            if tokenizer is None:
                raise InputError("stop_strings need a tokenizer: wrap the model with one")
            self.criteria.append(StopStringCriteria(stop_strings=stop, tokenizer=tokenizer))

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which sequences (B,) are finished after this step."""
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self.criteria:
            done |= criterion(input_ids, scores, **kwargs)
        if self.counts is None:
            self.counts = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        self.counts[done & (self.counts == 0)] = input_ids.shape[1] - self.n_start
        return done

    def new_tokens(self, sequences: Tensor) -> list[int]:
        """New tokens of each sequence of the result, its end token included and pads left out."""
        longest = sequences.shape[1] - self.n_start
        if self.counts is None:
            # Beam search of the base was not watched, since it reorders them: only end tokens and stop strings ended these.
            for length in range(self.n_start + 1, sequences.shape[1] + 1):
                self(sequences[:, :length], None)
        assert self.counts is not None
        return [min(count, longest) if count else longest for count in self.counts.tolist()]


# Settings of a generation_config that would change a greedy choice and that `GreedyChoice` does not follow.
_CHANGE_GREEDY = """
no_repeat_ngram_size encoder_no_repeat_ngram_size encoder_repetition_penalty bad_words_ids min_length min_new_tokens forced_bos_token_id
forced_eos_token_id suppress_tokens begin_suppress_tokens sequence_bias exponential_decay_length_penalty stop_strings
watermarking_config
"""
_UNFOLLOWED = tuple(_CHANGE_GREEDY.split())


class GreedyChoice:
    """The next token of each sequence as `generate(do_sample=False)` of it alone would choose it.

    Follows the model's own repetition penalty; `InputError` for other settings of its generation_config that change greedy choices.

    Attributes:
        end_ids: the end tokens.
    """

    def __init__(self, model: Any):
        config = model.generation_config
        for name in _UNFOLLOWED:
            value = getattr(config, name, None)
            if value and (name, value) != ("encoder_repetition_penalty", 1.0):
                raise InputError(f"the model's generation_config sets {name}, which generated rewards do not follow: set it to None first")
        end = config.eos_token_id
        self.end_ids = frozenset([] if end is None else [end] if isinstance(end, int) else end)
        penalty = getattr(config, "repetition_penalty", None) or 1.0
        self._penalty = None if penalty == 1.0 else RepetitionPenaltyLogitsProcessor(penalty=float(penalty))

    def __call__(self, sequences: Sequence[Sequence[int]], logits_BV: Tensor) -> list[int]:
        """The chosen ids (B); `sequences` are the tokens so far, prompts included."""
        scores_BV = logits_BV.float()
        if self._penalty is not None:
            penalty: Any = self._penalty
            ids = [torch.tensor([sequence], device=scores_BV.device) for sequence in sequences]
            scores_BV = torch.cat([penalty(tokens, scores_BV[at : at + 1]) for at, tokens in enumerate(ids)])
        return scores_BV.argmax(-1).tolist()
