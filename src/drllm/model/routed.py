"""`RoutedModel`: a base model whose blocks can be skipped, executed or repeated once per prompt. Shapes: B sequences, T tokens."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteriaList
from transformers.cache_utils import Cache

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.model import generation
from drllm.model.adapters import adopt, drop_all
from drllm.model.blocks import RoutedBlock, find_blocks, is_routed, probe_blocks
from drllm.model.cache import Observer, RoutedCache, new_slots
from drllm.model.families import check_family, check_model, check_structure
from drllm.model.generation import Output
from drllm.model.load import Device, Dtype, dtype_of, fingerprint, load_base
from drllm.model.prompts import Prompt, check_ids, check_prompt_mask, encode_prompts, left_pad
from drllm.model.transformers_private import cache_argument, causal_lm, commit_of
from drllm.policies.adapter import Adapter
from drllm.policies.card import CardFacts
from drllm.policies.constant import as_source, check_batch, is_identity, repeated
from drllm.policies.policy import Policy, RouteSource, check_fits
from drllm.policies.routers import Routers
from drllm.policies.saved import SavedPolicy, open_folder, open_policy, save_policy
from drllm.policies.saved_config import BaseIdentity


class RoutedModel:
    """A base model with routed blocks. Made by `wrap` or `from_pretrained`; the base's weights never change.

    Attributes:
        model: the transformers model, wrapped in place.
        tokenizer: its tokenizer, or None.
        policy: decides each prompt's route; None is the base model.
        by_name: whether all of it was loaded by `base_id`, so that another process can load the same.
        adapters: those of healed routes, by their names.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, base_id: str, revision: str | None, by_name: bool = False):
        if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "get_text_config"):
            raise InputError(f"cannot wrap a {type(model).__name__}: give a transformers model, a Hub id, a folder or a .gguf file")
        self.model: Any = model
        self.tokenizer, self.base_id, self.revision, self.by_name = tokenizer, base_id, revision, by_name
        self.config = self.model.config.get_text_config(decoder=True)
        check_structure(self.config)
        check_model(model)
        blocks = find_blocks(model)
        if any(is_routed(block) for block in blocks):
            raise InputError("this model is wrapped already: use that RoutedModel, or call its unwrap() first")
        new_slots(self.config, len(blocks))  # refuses families whose state is not per block
        check_family(self.config)
        returns_tuple = probe_blocks(model, blocks)
        forward = causal_lm(model).forward
        self.cache_argument = cache_argument(forward)
        self.takes_position_ids = "position_ids" in inspect.signature(forward).parameters
        self.blocks, self.n_layers, self.hidden_size = blocks, len(blocks), int(self.config.hidden_size)
        self._policy: RouteSource | None = None
        self._spent = False
        self.routed_blocks = [RoutedBlock(block, index, returns_tuple) for index, block in enumerate(blocks)]
        self.adapters: dict[str, Adapter] = {}
        for routed_block in self.routed_blocks:
            routed_block.all, routed_block.block.forward = dict(enumerate(self.routed_blocks)), routed_block
            routed_block.adapters = self.adapters

    @classmethod
    def wrap(cls, model_or_id: nn.Module | str | Path, tokenizer: Any = None, dtype: Dtype = None, device: Device = None) -> RoutedModel:
        """Make a model routable, in place.

        Args:
            model_or_id: a transformers causal language model, or what `load_base` loads: Hub id, folder, `.gguf` file, alias.
            tokenizer: needed only for text prompts; loaded with an id, not with a model.
            dtype: of the weights; a model that is passed keeps its own unless it is given. So with `device`, where to put the model.

        Raises `UnsupportedModelError`, before anything about the model changes, and `InputError` where that name loads nothing.
        """
        wanted = dtype_of(dtype)
        model: Any = model_or_id
        if isinstance(model_or_id, str | Path):
            model, own = load_base(str(model_or_id), wanted, device, tokenizer)
            return cls(model, own, str(model_or_id), commit_of(model.config), by_name=tokenizer is None)
        routed = cls(model, tokenizer, getattr(model, "name_or_path", "") or "", commit_of(getattr(model, "config", None)))
        if wanted is not None or device is not None:
            model.to(dtype=wanted, device=device)
        return routed

    def unwrap(self) -> nn.Module:
        """Give the base model back as it was; this object is spent. `InputError` when a later hook sits on top of a routed block."""
        if self._spent:
            return self.model
        for routed_block in self.routed_blocks:
            if vars(routed_block.block).get("forward") is not routed_block:
                raise InputError(f"block {routed_block.index} was hooked after wrapping: remove that hook first, then unwrap")
        for routed_block in self.routed_blocks:
            routed_block.remove()
        drop_all(self.blocks)
        self._spent = True
        return self.model

    @property
    def fingerprint(self) -> str:
        """Identifies the base's weights as they are now (see `drllm.model.load.fingerprint`)."""
        return fingerprint(self.model)

    @property
    def identity(self) -> BaseIdentity:
        """What this base is, its weights as they are now."""
        return BaseIdentity(self.base_id, self.revision, self.fingerprint, self.config.model_type, self.n_layers, self.hidden_size)

    @property
    def policy(self) -> RouteSource | None:
        """What decides each prompt's route; None is the base model. Accepts a Policy, a Route or None."""
        return self._policy

    @policy.setter
    def policy(self, policy: RouteSource | Route | None) -> None:
        self._policy = None if policy is None else self.as_source(policy)

    @property
    def device(self) -> torch.device:
        """Where prompts go: the embedding's device."""
        return self.model.get_input_embeddings().weight.device

    def as_source(self, given: RouteSource | Route | Sequence[Route]) -> RouteSource:
        """Any way of giving routes, checked against this model's shape; the adapters that come with it are the model's from now on."""
        source = as_source(given, self.n_layers)
        check_fits(source, self.n_layers, self.hidden_size)
        if isinstance(source, Routers):
            source = source.to(self.device)  # else their weights follow the states, a copy a block
        for adapter in source.adapters:
            self.adopt(adapter)
        for route in (*source.routes, source.route):
            if route is not None:
                self.check_adapter(route)
        return source

    def load_policy(self, folder: Path) -> Policy:
        """The saved policy of a local folder, on this base, with its adapters ready; the model's own policy stays."""
        policy = open_folder(folder).load(self.identity)
        self.as_source(policy)
        return policy

    def adopt(self, adapter: Adapter) -> None:
        """Have an adapter ready for routes that end in its name; the base itself stays as it is."""
        if adapter.name not in self.adapters:
            adopt(self.blocks, adapter)
            self.adapters[adapter.name] = adapter

    def check_adapter(self, route: Route) -> None:
        """`InputError` for a route whose adapter this model was not given, or was trained for another route."""
        found = self.adapters.get(route.adapter)
        if route.adapter and found is None:
            raise InputError(f"route {route} needs an adapter that this model was not given: load the healed policy that holds it")
        if found is not None and found.route != route.bare:
            raise InputError(f"adapter {route.adapter} was trained for route {found.route}, not for {route.bare}: heal that route, too")

    def new_cache(
        self, source: RouteSource, prompt_mask: Tensor, observe: Observer | None = None, input_ids: Tensor | None = None
    ) -> RoutedCache:
        """A cache that routes one forward or generation (arguments of `RoutedCache`); `InputError` where the model was unwrapped."""
        if self._spent:
            raise InputError("this model was unwrapped: its blocks follow no route any more; wrap it again")
        return RoutedCache(self.config, self.n_layers, source, prompt_mask, observe, input_ids)

    def forward(self, cache: RoutedCache, **inputs: Any) -> Any:
        """One step of the base model under a routed cache."""
        n_before = cache.n_seen
        out = self.model(**inputs, **{self.cache_argument: cache}, use_cache=True)
        cache.check_complete(n_before)
        return out

    def run_block(self, block: int, x_BTD: Tensor, arguments: dict[str, Any], adapter: str = "") -> Tensor:
        """One pass of one block, given the other arguments that the base model passes to it: the states behind it."""
        return self.routed_blocks[block].run(x_BTD, arguments, adapter)[0]

    def decoder_forward(self, cache: Cache, **inputs: Any) -> Any:
        """As `forward`, without the output head: for what reads hidden states only. A stock cache runs the base."""
        model = causal_lm(self.model)
        decoder = model.get_decoder()
        if decoder is model.get_output_embeddings():  # ModernBERT calls its head so
            decoder = model.base_model
        out = decoder(**inputs, **{cache_argument(decoder.forward): cache}, use_cache=True)
        if isinstance(cache, RoutedCache):
            cache.check_complete(0)
        return out

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        routes: RouteSource | Route | Sequence[Route] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output on the whole sequence under a route, with `.logits` (B, T, V).

        Args:
            input_ids: (B, T).
            attention_mask: passed on unchanged, as to the base model; so are `position_ids`.
            prompt_mask: (B, T), the tokens a policy may read; default the attention mask. Put 0 on a continuation being scored.
            routes: a Route, one Route a sequence, or a Policy; default the model's policy. No policy: the base model, bit for bit.
            **kwargs: any other argument of the base model's forward.
        """
        generation.refuse_options(kwargs, ("past_key_values", "cache", "use_cache"), "forward always starts a sequence with its own cache")
        source = self.policy if routes is None else self.as_source(routes)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if position_ids is not None:
            if not self.takes_position_ids:
                raise InputError(f"model_type {self.config.model_type!r} takes no position_ids: it derives them from the attention mask")
            inputs["position_ids"] = position_ids
        if source is not None:
            check_batch(source, len(input_ids))
        if source is None or is_identity(source):
            return self.model(**inputs)
        generation.refuse_layer_outputs(self.config, kwargs)
        mask = check_prompt_mask(input_ids, attention_mask, prompt_mask)
        return self.forward(self.new_cache(source, mask, input_ids=input_ids), **inputs)

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        policy: RouteSource | Route | Sequence[Route] | None = None,
        max_new_tokens: int | None = None,
        check_prompt_format: bool = True,
        epsilon: float | None = None,
        **hf: Any,
    ) -> list[Output]:
        """Generate with one route a prompt, decided at prefill from the prompt's tokens alone.

        Args:
            prompts: texts (raw, with the tokenizer's specials) or lists of messages (chat template); or `input_ids`.
            input_ids: (B, T), left-padded, with `attention_mask` (B, T).
            policy: a Policy, a Route, or a list of one Route a prompt; default the model's own. None of them: the base model.
            max_new_tokens: default 64, unless `max_length` or a generation_config says otherwise.
            check_prompt_format: refuse prompts of another format than a policy was trained on; one route for all takes both.
            epsilon: refuse a policy that is not promised to lose less accuracy than this (`drllm train --calibrate`); the base passes.
            **hf: options of transformers' `generate`: do_sample, temperature, num_return_sequences, stop_strings, streamer, ...

        Returns:
            One `Output` a prompt, times `num_return_sequences`, in the order of `generate`.
        """
        source = self.policy if policy is None else self.as_source(policy)
        if epsilon is not None:
            generation.check_promise(source, epsilon, str(self.model.dtype))
        if (prompts is None) == (input_ids is None):
            raise InputError("give either prompts or input_ids")
        if input_ids is None:
            encoded, prompt_format = encode_prompts(self.tokenizer, prompts)
            generation.check_format(source, prompt_format, check_prompt_format, epsilon is not None)
            input_ids, attention_mask = left_pad(encoded, self.pad_id, self.device)
        input_ids, attention_mask, n_prompt_B = check_ids(input_ids, attention_mask)
        if source is not None:
            check_batch(source, len(input_ids))
        options = generation.generate_options(self.model, self.tokenizer, hf, max_new_tokens, max(n_prompt_B))
        if epsilon is not None:
            generation.check_covered(source, options, bool(generation.setting(self.model, options, "do_sample")))
        n_each = generation.setting(self.model, options, "num_return_sequences") or 1
        cache: RoutedCache | None = None
        if source is not None and not is_identity(source):
            generation.refuse_unroutable(self.model, options)
            mask, ids = (each.repeat_interleave(n_each, dim=0) for each in (attention_mask, input_ids))
            options[self.cache_argument] = cache = self.new_cache(repeated(source, n_each), mask, input_ids=ids)
        ends = generation.SequenceEnds(self.model, self.tokenizer, options, input_ids.shape[1])
        if (generation.setting(self.model, options, "num_beams") or 1) == 1:
            options["stopping_criteria"] = StoppingCriteriaList([ends])
        sequences = self.model.generate(input_ids, attention_mask=attention_mask, **options)
        routes = [Route.full(self.n_layers)] * len(sequences)
        if cache is not None:
            cache.check_complete()
            routes = cache.routes
        outputs = []
        for index, (token_ids, route) in enumerate(zip(ends.new_tokens(sequences), routes, strict=True)):
            text = None if self.tokenizer is None else self.tokenizer.decode(token_ids, skip_special_tokens=True)
            outputs.append(Output(text, token_ids, route, n_prompt_B[index // n_each], len(token_ids)))
        return outputs

    @property
    def pad_id(self) -> int:
        """The token to pad with: the tokenizer's, else the model's own or its end (`drllm.model.generation.padding_token`)."""
        return generation.padding_token(self.model, self.tokenizer)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the policy, what it was made for and a model card; never base weights. A run's commands add figures to the card."""
        save_policy(self.policy, self.identity, Path(folder))
        saved = open_folder(Path(folder))
        saved.write_card(CardFacts())
        return saved.folder

    def push_to_hub(self, repo_id: str, revision: str | None = None, private: bool | None = None, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to a Hub repository, made if there is none; the commit's address."""
        with tempfile.TemporaryDirectory() as place:
            return open_folder(self.save_pretrained(Path(place) / "policy")).push(repo_id, revision, private, token)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | SavedPolicy,
        base: RoutedModel | nn.Module | str | None = None,
        tokenizer: Any = None,
        dtype: Dtype = None,
        device: Device = None,
        revision: str | None = None,
    ) -> RoutedModel:
        """Load a saved policy, from a folder, by its Hub id or opened already, onto its base.

        `revision` is the policy's, on the Hub: a branch, tag or commit. `base` may be the model in memory, or another place to load the
        same weights from; a different fingerprint is refused with `ArtifactError`.
        """
        saved = open_policy(folder, revision)
        given = isinstance(base, RoutedModel)
        if base is None and not saved.config.base_id:
            raise ArtifactError(f"the policy in {saved.folder} was made for a model in memory: pass it as base=...")
        routed = base if given else cls.wrap(saved.config.base_id if base is None else base, tokenizer, dtype, device)
        try:
            routed.policy = saved.load(routed.identity)
        except ArtifactError:
            if not given:
                routed.unwrap()
            raise
        return routed
