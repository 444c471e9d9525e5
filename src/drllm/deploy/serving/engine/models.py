"""vLLM's own models of four families, their blocks run along routes.

The base checkpoint is loaded unchanged. A block's second pass is a twin: a copy of the block module that shares every weight and owns an
attention of its own, hence keys and values of its own. Nothing here knows the inside of a family's block but the name of its attention.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import PPMissingLayer

from drllm.core.errors import UnsupportedModelError
from drllm.core.route import Route
from drllm.deploy.serving.engine.plan import StepPlan, run_plan
from drllm.deploy.serving.engine.refusals import refuse
from drllm.deploy.serving.engine.segments import Stretch, compiled, cuts, most_passes, single, warm_up
from drllm.deploy.serving.spec import KEY, ServeSpec


class RoutedMixin:
    """Stands before one of vLLM's `...ForCausalLM`, whose `model` has `layers` called with (positions, states, residual)."""

    model: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        spec = ServeSpec.from_config(vllm_config.additional_config)
        if spec is None:
            raise UnsupportedModelError("this architecture is started by `drllm serve`, which says what to route")
        refuse(vllm_config, spec.mode)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        layers = self.model.layers
        if len(layers) != spec.n_layers:
            raise UnsupportedModelError(f"the policy is for {spec.n_layers} blocks, the checkpoint has {len(layers)}")
        self.spec, self.vllm_config = spec, vllm_config
        self.stretches: list[Stretch] = []
        self.cut_before = np.array([block for block, _ in cuts(spec.routes, spec.decided)] if spec.routes else [])
        self.most_passes = np.array([most_passes(spec.routes, block) for block in range(spec.n_layers)] if spec.routes else [])
        self.fixed = None if spec.route is None else Route.parse(spec.route)
        known = vllm_config.compilation_config.static_forward_context
        for block, action in enumerate(self.fixed or ()):
            if action == 0:  # neither weights nor cache
                known.pop(layers[block].self_attn.attn.layer_name)
                layers[block] = PPMissingLayer()
        doubled = spec.repeatable if self.fixed is None else [block for block, action in enumerate(self.fixed) if action == 2]
        self.twins = nn.ModuleDict(
            {str(block): make_twin(layers[block], spec.n_layers + place, vllm_config) for place, block in enumerate(doubled)}
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As the base does; a fixed route is then the list of blocks that the base's own forward walks."""
        loaded = super().load_weights(weights)  # type: ignore[misc]
        if self.fixed is None:
            return loaded
        # vLLM looks for parameters that no weight was loaded into, by the names that they have by then.
        filled = {id(parameter) for name, parameter in self.named_parameters() if name in loaded}  # type: ignore[attr-defined]
        passes = [(block, n_pass) for block, action in enumerate(self.fixed) for n_pass in range(action)]
        self.model.layers = nn.ModuleList([self.block(*step) for step in passes])
        self.model.end_layer = len(passes)
        return {name for name, parameter in self.named_parameters() if id(parameter) in filled}  # type: ignore[attr-defined]

    def block(self, block: int, n_pass: int) -> Any:
        """The module of a block's first (0) or second (1) pass."""
        return self.twins[str(block)] if n_pass else self.model.layers[block]

    def prepare(self) -> None:
        """After the weights are in their final form: what a routed step runs, compiled where the base is and the routes are known."""
        if self.fixed is not None:
            return
        passes = [(block, n_pass) for block in range(self.spec.n_layers) for n_pass in (0, 1)]
        self.singles = [single(self.block, *step) for step in passes if step[1] == 0 or str(step[0]) in self.twins]
        if self.spec.routes and not self.model.do_not_compile:
            self.stretches = compiled(self.spec.routes, self.spec.decided, self.block, self.vllm_config)
            warm_up(self.stretches, self.vllm_config, self.model.norm.weight)

    def forward(self, input_ids: Tensor | None, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None):
        """A step without a plan, or whose rows all take the base's route, is the base's own, compiled where that is."""
        plan: StepPlan | None = get_forward_context().additional_kwargs.get(KEY) if is_forward_context_available() else None
        if plan is None or plan.is_base:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]
        states = self.model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        # Rows that are yet undecided stand as the base's, with which every code book begins.
        plan.stretched = bool(self.stretches) and plan.keeps_to(self.cut_before, self.most_passes)
        stretches = self.stretches if plan.stretched else self.singles
        states, residual = run_plan(plan, stretches, positions, states, get_forward_context())
        return self.model.norm(states, residual)[0]


def make_twin(block: nn.Module, index: int, vllm_config: VllmConfig) -> nn.Module:
    """A block that shares all weights of `block` and has keys and values of its own, as block `index` of the cache."""
    twin, attention = copy.copy(block), copy.copy(block.self_attn)
    twin._modules, attention._modules = dict(block._modules), dict(attention._modules)  # type: ignore[union-attr]
    first: Any = attention.attn  # type: ignore[union-attr]
    attention.attn = Attention(  # type: ignore[union-attr]
        first.num_heads,
        first.head_size,
        first.impl.scale,
        num_kv_heads=first.num_kv_heads,
        cache_config=vllm_config.cache_config,
        quant_config=vllm_config.quant_config,
        attn_type=first.attn_type,
        prefix=f"model.layers.{index}.self_attn.attn",
    )
    twin.self_attn = attention  # type: ignore[assignment]
    return twin


class RoutedLlama(RoutedMixin, LlamaForCausalLM):
    """Llama, SmolLM2 and all that load as Llama."""


class RoutedMistral(RoutedMixin, MistralForCausalLM):
    """Mistral without a sliding window."""


class RoutedQwen2(RoutedMixin, Qwen2ForCausalLM):
    """Qwen2 and 2.5."""


class RoutedQwen3(RoutedMixin, Qwen3ForCausalLM):
    """Qwen3, dense."""
