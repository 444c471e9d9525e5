"""`RoutedModel`: a base model whose blocks can be skipped, executed or repeated once per prompt.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drllm.errors import ArtifactError, InputError
from drllm.model import artifact
from drllm.model.blocks import RoutedBlock, find_blocks, probe_blocks
from drllm.model.cache import RoutedCache, new_slots
from drllm.model.families import check_family, check_structure
from drllm.model.generation import UNROUTABLE_OPTIONS, new_token_counts, refuse_options
from drllm.model.load import fingerprint, load_base
from drllm.model.policy import Policy, RoutePolicy, RowRoutes
from drllm.model.prompts import Prompt, check_context, encode_prompts, left_pad
from drllm.routes import Route


@dataclass(frozen=True)
class Output:
    """One generated answer. `token_ids` are the new tokens up to and including the end token, never pads."""

    text: str | None
    token_ids: list[int]
    route: Route
    n_prompt_tokens: int
    n_new_tokens: int


class RoutedModel:
    """A base model with routed blocks. Made by `wrap` or `from_pretrained`; the base's weights never change.

    Attributes:
        model: the transformers model, wrapped in place.
        tokenizer: its tokenizer, or None.
        policy: decides each prompt's route; None is the base model.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, base_id: str, revision: str | None):
        """Wrap in place; use `wrap`."""
        self.model: Any = model
        self.tokenizer = tokenizer
        self.base_id = base_id
        self.revision = revision
        self.config = self.model.config.get_text_config(decoder=True)
        check_structure(self.config)
        blocks = find_blocks(model)
        if any(isinstance(vars(block).get("forward"), RoutedBlock) for block in blocks):
            raise InputError("this model is wrapped already: use that RoutedModel, or call its unwrap() first")
        new_slots(self.config, len(blocks))  # refuses families whose state is not per block
        check_family(self.config)
        returns_tuple = probe_blocks(model, blocks)
        self.fingerprint = fingerprint(model)
        parameters = inspect.signature(self.model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5.2x
        self.takes_position_ids = "position_ids" in parameters
        self.n_layers = len(blocks)
        self.hidden_size: int = self.config.hidden_size
        self._policy: Policy | None = None
        self.blocks = blocks
        self._spent = False
        for index, block in enumerate(blocks):
            block.forward = RoutedBlock(block, index, returns_tuple)  # type: ignore[method-assign]

    @classmethod
    def wrap(
        cls,
        model_or_id: nn.Module | str,
        tokenizer: Any = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> RoutedModel:
        """Make a model routable, in place.

        Args:
            model_or_id: a transformers causal language model, or what `load_base` loads: Hub id, folder, `.gguf` file, alias.
            tokenizer: needed only for text prompts; loaded with an id, not with a model.
            dtype, device: where to put the model; a model that is passed keeps its own unless they are given.

        Raises:
            UnsupportedModelError: by structure, before anything about the model changes.
            InputError: nothing can be loaded by that name.
        """
        if isinstance(model_or_id, str):
            base = load_base(model_or_id, dtype, device, tokenizer)
            return cls(base.model, base.tokenizer, base.base_id, base.revision)
        if not isinstance(model_or_id, nn.Module):
            raise InputError(f"cannot wrap a {type(model_or_id).__name__}: give a transformers model, a Hub id, a folder or a .gguf file")
        model: Any = model_or_id
        if dtype is not None or device is not None:
            model = model.to(dtype=dtype, device=device)
        return cls(model, tokenizer, getattr(model, "name_or_path", "") or "", getattr(model.config, "_commit_hash", None))

    def unwrap(self) -> nn.Module:
        """Give the base model back as it was; this object is spent."""
        self._spent = True
        for block in self.blocks:
            forward = vars(block).get("forward")
            if isinstance(forward, RoutedBlock):
                forward.remove(block)
        return self.model

    @property
    def policy(self) -> Policy | None:
        """What decides each prompt's route; None is the base model. Accepts a Policy, a Route or None."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | Route | None) -> None:
        self._policy = None if policy is None else self._as_policy(policy)

    @property
    def device(self) -> torch.device:
        """Where prompts go: the embedding's device."""
        return self.model.get_input_embeddings().weight.device

    def _as_policy(self, policy: Policy | Route | Sequence[Route]) -> Policy:
        """Any way of saying routes, as a policy of the right number of blocks."""
        made = policy if isinstance(policy, Policy) else RoutePolicy(policy) if isinstance(policy, Route) else None
        if made is None:
            routes = list(policy) if isinstance(policy, Sequence) else []  # type: ignore[arg-type]
            lengths = {len(route) for route in routes if isinstance(route, Route)}
            if not routes or len(lengths) != 1 or any(not isinstance(route, Route) for route in routes):
                raise InputError(
                    f"expected a Policy, a Route or a list of one Route a prompt, each of {self.n_layers} blocks; got {policy!r}"
                )
            made = RoutePolicy(routes[0]) if len(routes) == 1 else RowRoutes(routes)
        if made.n_layers != self.n_layers:
            raise InputError(f"got a route or policy of {made.n_layers} blocks, the model has {self.n_layers}")
        return made

    def new_cache(self, policy: Policy, prompt_mask: Tensor) -> RoutedCache:
        """A cache that routes one forward or generation by `policy`; `prompt_mask` (B, T) marks what the policy may read."""
        if self._spent:
            raise InputError("this model was unwrapped: its blocks follow no route any more; wrap it again")
        return RoutedCache(self.config, self.n_layers, policy, prompt_mask)

    def forward(self, cache: RoutedCache, **inputs: Any) -> Any:
        """One step of the base model under a routed cache."""
        return self.model(**inputs, **{self._cache_argument: cache}, use_cache=True)

    def decoder_forward(self, cache: RoutedCache, **inputs: Any) -> Any:
        """As `forward`, without the output head: for what reads hidden states only."""
        decoder = self.model.get_decoder()
        name = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
        return decoder(**inputs, **{name: cache}, use_cache=True)

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        routes: Policy | Route | Sequence[Route] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of the whole sequence under a route.

        Args:
            input_ids: (B, T).
            attention_mask, position_ids: passed on unchanged, as to the base model.
            prompt_mask: (B, T), the tokens a policy may read; default the attention mask. Put 0 on a continuation being scored.
            routes: a Route, one Route a row, or a Policy; default the model's policy. No policy: the base model, bit for bit.
            **kwargs: any other argument of the base model's forward.

        Returns:
            The base model's output, with `.logits` (B, T, V).
        """
        refuse_options(kwargs, ("past_key_values", "cache", "use_cache"), "forward always starts a sequence with its own cache")
        policy = self.policy if routes is None else self._as_policy(routes)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if position_ids is not None:
            if not self.takes_position_ids:
                raise InputError(f"model_type {self.config.model_type!r} takes no position_ids: it derives them from the attention mask")
            inputs["position_ids"] = position_ids
        if policy is None or (policy.route is not None and policy.route.is_full):
            return self.model(**inputs)
        refuse_options(kwargs, ("output_hidden_states", "output_attentions"), "a route has no fixed number of layer outputs")
        if prompt_mask is None:
            prompt_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if prompt_mask.shape != input_ids.shape:
            raise InputError(f"prompt_mask has shape {tuple(prompt_mask.shape)}, expected that of input_ids, {tuple(input_ids.shape)}")
        return self.forward(self.new_cache(policy, prompt_mask), **inputs)

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        policy: Policy | Route | Sequence[Route] | None = None,
        max_new_tokens: int = 64,
        check_prompt_format: bool = True,
        **hf: Any,
    ) -> list[Output]:
        """Generate with one route a prompt, decided at prefill from the prompt's tokens alone.

        Args:
            prompts: texts (raw, with the tokenizer's specials) or lists of messages (chat template); or
            input_ids, attention_mask: (B, T), left-padded.
            policy: a Policy, a Route, or a list of one Route a prompt; default the model's own. None of them: the base model.
            check_prompt_format: refuse prompts of another format than the policy was trained on.
            **hf: options of transformers' `generate`: do_sample, temperature, num_return_sequences, stop_strings, streamer, ...

        Returns:
            One `Output` a prompt, times `num_return_sequences`, in the order of `generate`.
        """
        chosen = self.policy if policy is None else self._as_policy(policy)
        if (prompts is None) == (input_ids is None):
            raise InputError("give either prompts or input_ids")
        if input_ids is None:
            batch = [prompts] if _is_single(prompts) else list(prompts)  # type: ignore[arg-type]
            rows, prompt_format = encode_prompts(self.tokenizer, batch)  # type: ignore[arg-type]
            if policy is None and chosen is not None and check_prompt_format and chosen.prompt_format not in (None, prompt_format):
                raise InputError(
                    f"the policy was trained on {chosen.prompt_format!r} prompts, these are {prompt_format!r}: its routes would "
                    "be arbitrary; pass check_prompt_format=False to use it all the same"
                )
            input_ids, attention_mask = left_pad(rows, self.pad_id, self.device)
        elif input_ids.ndim != 2 or input_ids.shape[0] == 0:
            raise InputError(f"input_ids has shape {tuple(input_ids.shape)}, expected (B, T) with at least one row")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        n_prompt_B = attention_mask.sum(1).tolist()
        if not input_ids.shape[1] or not all(n_prompt_B):
            raise InputError(f"prompt {n_prompt_B.index(0) if 0 in n_prompt_B else 0} is empty: give it at least one token")
        if not bool(attention_mask[:, -1].all()):
            raise InputError("the batch is padded on the right: pad input_ids and attention_mask on the left")
        check_context(max(n_prompt_B), max_new_tokens, self.config)
        if isinstance(chosen, RowRoutes) and len(chosen.actions_BL) != len(input_ids):
            raise InputError(f"got {len(chosen.actions_BL)} routes for {len(input_ids)} prompts, expected one a prompt")

        options = {"pad_token_id": self.pad_id, "tokenizer": self.tokenizer if hf.get("stop_strings") else None} | hf
        refuse_options(options, ("return_dict_in_generate",), "outputs are drllm's own")
        n_each = self._setting(options, "num_return_sequences") or 1
        cache: RoutedCache | None = None
        if chosen is not None and not (chosen.route is not None and chosen.route.is_full):
            self._refuse_unroutable(options)
            expanded = RowRoutes([r for r in _routes(chosen) for _ in range(n_each)]) if isinstance(chosen, RowRoutes) else chosen
            cache = self.new_cache(expanded, attention_mask.repeat_interleave(n_each, dim=0))
            options[self._cache_argument] = cache
        sequences = self.model.generate(input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens, **options)
        n_start = input_ids.shape[1]
        routes = cache.routes if cache is not None else [Route.full(self.n_layers)] * len(sequences)
        counts = new_token_counts(sequences, n_start, self.model, self.tokenizer, options)
        outputs = []
        for index, (row, n_new, route) in enumerate(zip(sequences, counts, routes, strict=True)):
            token_ids = row[n_start : n_start + n_new].tolist()
            text = None if self.tokenizer is None else self.tokenizer.decode(token_ids, skip_special_tokens=True)
            outputs.append(Output(text, token_ids, route, n_prompt_B[index // n_each], n_new))
        return outputs

    def _setting(self, options: dict[str, Any], name: str) -> Any:
        """An option of `generate`, wherever it was given: as an argument, in a generation_config, or in the model's own."""
        given = options.get("generation_config") or self.model.generation_config
        return options[name] if options.get(name) is not None else getattr(given, name, None)

    def _refuse_unroutable(self, options: dict[str, Any]) -> None:
        """Ways of generating that would decide a route on part of a prompt or move cache rows."""
        found = {name: self._setting(options, name) for name in UNROUTABLE_OPTIONS}
        if found["num_beams"] == 1:
            found["num_beams"] = None
        if found["use_cache"] is True:
            found["use_cache"] = None
        why = "with a route, drllm generates greedily or by sampling, the whole prompt in one step, with its own cache"
        refuse_options(found, UNROUTABLE_OPTIONS, why)

    @property
    def pad_id(self) -> int:
        """A token to pad with: the tokenizer's, else an end token, else 0; it is masked wherever it stands."""
        config = self.model.generation_config
        end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
        for token in (getattr(self.tokenizer, "pad_token_id", None), config.pad_token_id, end):
            if token is not None:
                return token
        return 0

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the policy and what it was made for; never base weights."""
        return artifact.save(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base: RoutedModel | nn.Module | str | None = None,
        tokenizer: Any = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> RoutedModel:
        """Load a saved policy onto its base.

        `base` may be the model in memory, or another place to load the same weights from; a different fingerprint is refused with
        `ArtifactError`.
        """
        saved = artifact.read(Path(folder))
        given = isinstance(base, RoutedModel)
        routed = base if given else cls.wrap(saved.base_id if base is None else base, tokenizer, dtype, device)
        try:
            routed.policy = artifact.load_policy(saved, routed)
        except ArtifactError:
            if not given:
                routed.unwrap()
            raise
        return routed


def _is_single(prompts: Any) -> bool:
    """One text, or one list of messages, rather than a list of prompts."""
    return isinstance(prompts, str) or (isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], dict))


def _routes(rows: RowRoutes) -> list[Route]:
    return [Route(actions) for actions in rows.actions_BL.tolist()]
