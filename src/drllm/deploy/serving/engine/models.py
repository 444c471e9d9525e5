"""vLLM's own models of four families, their blocks run along routes.

The base checkpoint is loaded unchanged. A block's second pass is a twin: a copy of the block module that shares every weight and owns an
attention of its own, hence keys and values of its own. Nothing here knows the inside of a family's block but the name of its attention.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from drllm.core.errors import UnsupportedModelError
from drllm.core.route import Route
from drllm.deploy.serving.engine.refusals import refuse
from drllm.deploy.serving.engine.schedule import Schedule, run_schedule
from drllm.deploy.serving.engine.segments import Segment, compiled, cuts, most_passes, single
from drllm.deploy.serving.engine.vllm_private import current_schedule, is_compiled, leave_out, make_twin, run_once, set_passes, stock_class
from drllm.deploy.serving.spec import ServeSpec


class RoutedMixin:
    """Stands before one of vLLM's `...ForCausalLM`, whose `model` has `layers` called with (positions, states, residual)."""

    model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        spec = ServeSpec.required(vllm_config.additional_config)
        refuse(vllm_config, spec.mode)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        layers = self.model.layers
        if len(layers) != spec.n_layers:
            raise UnsupportedModelError(f"the policy is for {spec.n_layers} blocks, the checkpoint has {len(layers)}")
        self.spec, self.vllm_config = spec, vllm_config
        self.segments: list[Segment] = []
        self.cut_before = np.array([block for block, _ in cuts(spec.routes, spec.decided)] if spec.routes else [])
        self.most_passes = np.array([most_passes(spec.routes, block) for block in range(spec.n_layers)] if spec.routes else [])
        self.fixed = None if spec.route is None else Route.parse(spec.route)
        for block, action in enumerate(self.fixed or ()):
            if action == 0:
                leave_out(layers, block, vllm_config)
        doubled = spec.repeatable if self.fixed is None else [block for block, action in enumerate(self.fixed) if action == 2]
        twins = {str(block): make_twin(layers[block], spec.n_layers + place, vllm_config) for place, block in enumerate(doubled)}
        self.twins = nn.ModuleDict(twins)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As the base does; a fixed route is then the list of blocks that the base's own forward walks."""
        loaded = super().load_weights(weights)  # type: ignore[misc]
        if self.fixed is None:
            return loaded
        # vLLM looks for parameters that no weight was loaded into, by the names that they have by then.
        filled = {id(parameter) for name, parameter in self.named_parameters() if name in loaded}  # type: ignore[attr-defined]
        set_passes(self.model, [self.block(block, n_pass) for block, action in enumerate(self.fixed) for n_pass in range(action)])
        return {name for name, parameter in self.named_parameters() if id(parameter) in filled}  # type: ignore[attr-defined]

    def block(self, block: int, n_pass: int) -> Any:
        """The module of a block's first (0) or second (1) pass."""
        return self.twins[str(block)] if n_pass else self.model.layers[block]

    def prepare(self) -> None:
        """After the weights are in their final form: what a routed step runs, compiled where the base is and the routes are known."""
        if self.fixed is not None:
            return
        passes = [(block, n_pass) for block in range(self.spec.n_layers) for n_pass in range(1 + (str(block) in self.twins))]
        self.singles = [single(self.block, *step) for step in passes]
        if self.spec.routes and is_compiled(self.model):
            self.segments = compiled(self.spec.routes, self.spec.decided, self.block, self.vllm_config)
            run_once([segment.run for segment in self.segments], self.vllm_config, self.model.norm.weight)

    def forward(self, input_ids: Tensor | None, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None):
        """A step without a schedule, or whose sequences all take the base's route, is the base's own, compiled where that is."""
        schedule: Schedule | None = current_schedule()
        if schedule is None or schedule.is_base:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]
        states = self.model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        # Sequences that are yet undecided stand as the base's, with which every codebook begins.
        schedule.in_segments = bool(self.segments) and schedule.keeps_to(self.cut_before, self.most_passes)
        states, residual = run_schedule(schedule, self.segments if schedule.in_segments else self.singles, positions, states)
        return self.model.norm(states, residual)[0]


class RoutedLlama(RoutedMixin, stock_class("LlamaForCausalLM")):
    """Llama, SmolLM2 and all that load as Llama."""


class RoutedMistral(RoutedMixin, stock_class("MistralForCausalLM")):
    """Mistral without a sliding window."""


class RoutedQwen2(RoutedMixin, stock_class("Qwen2ForCausalLM")):
    """Qwen2 and 2.5."""


class RoutedQwen3(RoutedMixin, stock_class("Qwen3ForCausalLM")):
    """Qwen3, dense."""
