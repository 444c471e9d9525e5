"""What `RoutedModel.generate` needs around transformers' own: effective options, refused ones, and where each sequence's answer ends."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, RepetitionPenaltyLogitsProcessor, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.model.prompts import check_context
from drllm.policies.constant import is_identity
from drllm.policies.policy import RouteSource

DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True)
class Output:
    """One generated answer. `token_ids` are the new tokens up to and including the end token, never pads."""

    text: str | None
    token_ids: list[int]
    route: Route
    n_prompt_tokens: int
    n_new_tokens: int


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
    own = getattr(options.get("generation_config"), name, None)
    found = (options.get(name), own, getattr(model.generation_config, name, None))
    return next((value for value in found if value is not None), None)


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


def refuse_layer_outputs(config: Any, options: dict[str, Any]) -> None:
    """Refuse a forward's options, or the model's own where they are not given, that ask for what each layer puts out."""
    names = ("output_hidden_states", "output_attentions", "output_router_logits")
    wanted = {name: getattr(config, name, None) if options.get(name) is None else options[name] for name in names}
    refuse_options(wanted, names, "a route has no fixed number of layer outputs")


def generate_options(model: Any, tokenizer: Any, given: dict[str, Any], max_new_tokens: int | None, n_prompt: int) -> dict[str, Any]:
    """The options of transformers' `generate`, checked, with ours filled in; `max_new_tokens` else by max_length or the config, else 64."""
    options = {"pad_token_id": padding_token(model, tokenizer)} | {name: value for name, value in given.items() if name != "max_length"}
    if max_new_tokens is None:
        config = given.get("generation_config")
        length = given.get("max_length") or getattr(config, "max_length", None)
        left = DEFAULT_NEW_TOKENS if length is None else length - n_prompt
        own = getattr(config, "max_new_tokens", None)
        max_new_tokens = left if own is None else own
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        note = f"max_length counts the prompt's {n_prompt} tokens too"
        raise InputError(f"max_new_tokens is {max_new_tokens!r}, expected at least 1 ({note})")
    check_context(n_prompt, max_new_tokens, model.config.get_text_config(decoder=True))
    if setting(model, options, "return_dict_in_generate"):
        raise InputError("option return_dict_in_generate is not supported: outputs are drllm's own; leave it out")
    if setting(model, options, "stop_strings"):
        options.setdefault("tokenizer", tokenizer)
    return options | {"max_new_tokens": max_new_tokens}


def padding_token(model: Any, tokenizer: Any) -> int:
    """A token to pad with: the tokenizer's, else the model's own or an end token, else 0; it is masked wherever it stands."""
    config = model.generation_config
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    found = (getattr(tokenizer, "pad_token_id", None), config.pad_token_id, end, 0)
    return next(token for token in found if token is not None)


def check_promise(source: RouteSource | None, epsilon: float, dtype: str = "") -> None:
    """Refuse a policy without a promise of `epsilon` or less, for weights of this dtype; "" where they are not loaded yet."""
    if source is None or is_identity(source):
        return
    found = source.promise
    if found is None or found["point"] is None:
        advice = "`drllm train --calibrate calibrate` tests for one"
        raise InputError(f"epsilon={epsilon} asks for a promise and this policy has none: {advice}")
    if dtype and found["dtype"] != dtype:
        raise InputError(f"this policy is promised for {found['dtype']} weights, these are {dtype}: load the base in that type")
    if not epsilon >= found["epsilon"]:
        promised = f"the {found['epsilon']} this policy is promised"
        raise InputError(f"epsilon={epsilon} asks for more than {promised}: train with --epsilon {epsilon} (retrofit: --promise-epsilon)")


def check_covered(source: RouteSource | None, options: Mapping[str, Any], is_sampled: bool) -> None:
    """Refuse answers that a promise of agreement does not speak of: longer ones than were compared, and sampled ones."""
    tokens = ((source.promise or {}) if source is not None else {}).get("tokens")
    if tokens and (is_sampled or options["max_new_tokens"] > tokens):
        asked = "sampled answers" if is_sampled else f"answers of {options['max_new_tokens']} tokens"
        raise InputError(f"this policy is promised for greedy answers of at most {tokens} tokens, not for {asked}: leave epsilon out")


def check_format(source: RouteSource | None, prompt_format: str, strict: bool, promised: bool) -> None:
    """Refuse prompts of another format than the policy was trained on: where it is `strict`, or where a promise was asked for."""
    if source is None or source.prompt_format in (None, prompt_format):
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
        self.criteria: Any = StoppingCriteriaList(options.get("stopping_criteria") or [])
        stop = setting(model, options, "stop_strings")
        if (end := options["eos_token_id"] if "eos_token_id" in options else setting(model, options, "eos_token_id")) is not None:
            self.criteria.append(EosTokenCriteria(eos_token_id=end))
        if stop is not None:
            if tokenizer is None:
                raise InputError("stop_strings need a tokenizer: wrap the model with one")
            self.criteria.append(StopStringCriteria(stop_strings=stop, tokenizer=tokenizer))

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which sequences (B,) are finished after this step."""
        done = self.criteria(input_ids, scores, **kwargs)
        if self.counts is None:
            self.counts = torch.zeros_like(input_ids[:, 0])
        self.counts = torch.where(done & (self.counts == 0), input_ids.shape[1] - self.n_start, self.counts)
        return done

    def new_tokens(self, sequences: Tensor) -> list[list[int]]:
        """New tokens of each sequence of the result, its end token included and pads left out."""
        if self.counts is None:
            # Beam search of the base was not watched, since it reorders them: only end tokens and stop strings ended these.
            for length in range(self.n_start + 1, sequences.shape[1] + 1):
                self(sequences[:, :length], None)
        assert self.counts is not None
        new = [sequence[self.n_start :].tolist() for sequence in sequences]
        return [tokens[: count or None] for tokens, count in zip(new, self.counts.tolist(), strict=True)]


# Settings of a generation_config that would change a greedy choice and that `GreedyChoice` does not follow.
_CHANGE_GREEDY = """
no_repeat_ngram_size encoder_no_repeat_ngram_size encoder_repetition_penalty bad_words_ids min_length min_new_tokens forced_bos_token_id
forced_eos_token_id suppress_tokens begin_suppress_tokens sequence_bias exponential_decay_length_penalty stop_strings
watermarking_config
"""
CHANGE_GREEDY = tuple(_CHANGE_GREEDY.split())


class GreedyChoice:
    """The next token of each sequence as `generate(do_sample=False)` of it alone would choose it.

    Follows the model's own repetition penalty; `InputError` for other settings of its generation_config that change greedy choices.
    `end_ids` are the tokens that end a sequence, none of them before `min_new_tokens` new ones.
    """

    def __init__(self, model: Any, min_new_tokens: int = 0):
        config = model.generation_config
        for name in CHANGE_GREEDY:
            value = getattr(config, name, None)
            if value and (name, value) != ("encoder_repetition_penalty", 1.0):
                raise InputError(f"the model's generation_config sets {name}, which generated rewards do not follow: set it to None first")
        end = config.eos_token_id
        self.end_ids = frozenset([] if end is None else [end] if isinstance(end, int) else end)
        penalty = getattr(config, "repetition_penalty", None) or 1.0
        self._penalty = None if penalty == 1.0 else RepetitionPenaltyLogitsProcessor(penalty=float(penalty))
        self._min_new_tokens = min_new_tokens

    def __call__(self, sequences: Sequence[Sequence[int]], logits_BV: Tensor, n_new: Sequence[int]) -> list[int]:
        """The chosen ids (B); `sequences` are the tokens so far, prompts included, `n_new` how many of each are new."""
        scores_BV = logits_BV.float()
        if self._penalty is not None:
            penalty: Any = self._penalty
            ids = [torch.tensor([sequence], device=scores_BV.device) for sequence in sequences]
            scores_BV = torch.cat([penalty(tokens, scores_BV[at : at + 1]) for at, tokens in enumerate(ids)])
        if early := [row for row, n in enumerate(n_new) if n < self._min_new_tokens]:
            scores_BV[torch.tensor(early)[:, None], torch.tensor(sorted(self.end_ids), dtype=torch.long)] = -torch.inf
        return scores_BV.argmax(-1).tolist()
