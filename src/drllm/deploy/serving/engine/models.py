"""vLLM's own models of four families, their blocks run along routes.

The base checkpoint is loaded unchanged. A block's second pass is a copy of the block module that shares every weight and owns an
attention of its own, hence keys and values of its own; a third pass is another.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from drllm.core.errors import UnsupportedModelError
from drllm.core.route import Route
from drllm.deploy.serving.engine.plugin import refuse
from drllm.deploy.serving.engine.schedule import Loop, Schedule, number, run_schedule
from drllm.deploy.serving.engine.segments import Segment, compiled, compiled_loops, compiled_single, cuts, looped, most_passes, single
from drllm.deploy.serving.engine.vllm_private import (
    Blocks,
    current_schedule,
    is_compiled,
    leave_out,
    new_pass,
    run_once,
    set_passes,
    stock_class,
)
from drllm.deploy.serving.spec import ServeSpec

MOST_LOOPS = 1024  # uncompiled ones kept


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
        self.loops: dict[Loop, Segment] = {}  # compiled
        self.plain_loops: dict[Loop, Segment] = {}  # uncompiled, made where they are first needed
        self.cut_before = np.array([block for block, _ in cuts(spec.laid_routes)] if spec.routes else [])
        self.most_passes = np.array(most_passes(spec.laid_routes) if spec.routes else [])
        self.fixed = spec.fixed
        for block, n_passes in enumerate(spec.n_caches):
            if n_passes == 0:
                leave_out(layers, block, vllm_config)
        later = [(block, n_pass) for block, n_passes in enumerate(spec.n_caches) for n_pass in range(1, n_passes)]
        passes = {f"{step[0]}_{step[1]}": new_pass(layers[step[0]], spec.n_layers + place, vllm_config) for place, step in enumerate(later)}
        self.passes = nn.ModuleDict(passes)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As the base does; a fixed route is then the list of blocks that the base's own forward walks."""
        loaded = super().load_weights(weights)  # type: ignore[misc]
        if self.fixed is None:
            return loaded
        # vLLM looks for parameters that no weight was loaded into, by the names that they have by then.
        filled = {id(parameter) for name, parameter in self.named_parameters() if name in loaded}  # type: ignore[attr-defined]
        set_passes(self.model, self.along(self.fixed))
        return {name for name, parameter in self.named_parameters() if id(parameter) in filled}  # type: ignore[attr-defined]

    def along(self, route: Route) -> list[nn.Module]:
        """What runs, in order: the module of each pass, and one for each span with a strength."""
        used, modules = [0] * len(route), []
        for span in route.spans:
            blocks = [self.block(*step) for step in number(span, used).steps]
            modules += blocks if span.strength == 1 else [Blocks(blocks, span.strength)]
        return modules

    def block(self, block: int, n_pass: int) -> Any:
        return self.passes[f"{block}_{n_pass}"] if n_pass else self.model.layers[block]

    def prepare(self) -> None:
        """After the weights are in their final form: what a routed step runs, compiled where the base is and the routes are known."""
        if self.fixed is not None:
            return
        self.singles = [single(self.block, block, n_pass) for block, n in enumerate(self.spec.n_caches) for n_pass in range(n)]
        if not is_compiled(self.model):
            return
        if self.spec.routes:
            self.segments = compiled(self.spec.laid_routes, self.block, self.vllm_config)
            self.loops = compiled_loops(self.spec.laid_routes, self.block, self.vllm_config)
        made = [*self.segments, *self.loops.values()]
        if self.spec.mode == "engine":  # prompts are read block by block
            self.singles = [compiled_single(one, self.vllm_config) for one in self.singles]
            made += self.singles
        run_once([segment.run for segment in made], self.vllm_config, self.model.norm.weight)

    def plain_loop(self, loop: Loop) -> Segment:
        if len(self.plain_loops) >= MOST_LOOPS:  # requests may name any
            self.plain_loops.clear()
        if loop not in self.plain_loops:
            self.plain_loops[loop] = looped(self.block, loop)
        return self.plain_loops[loop]

    def forward(self, input_ids: Tensor | None, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None):
        """A step without a schedule, or whose sequences all take the base's route, is the base's own, compiled where that is."""
        schedule: Schedule | None = current_schedule()
        if schedule is None or schedule.is_base:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]
        states = self.model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        schedule.in_segments = (
            bool(self.segments) and not schedule.undecided and schedule.keeps_to(self.cut_before, self.most_passes, self.loops)
        )
        if schedule.in_segments:
            states, residual = run_schedule(schedule, self.segments, positions, states, self.loops.__getitem__)
        else:
            states, residual = run_schedule(schedule, self.singles, positions, states, self.plain_loop)
        return self.model.norm(states, residual)[0]


class RoutedLlama(RoutedMixin, stock_class("LlamaForCausalLM")):
    """Llama, SmolLM2 and all that load as Llama."""


class RoutedMistral(RoutedMixin, stock_class("MistralForCausalLM")):
    """Mistral without a sliding window."""


class RoutedQwen2(RoutedMixin, stock_class("Qwen2ForCausalLM")):
    """Qwen2 and 2.5."""


class RoutedQwen3(RoutedMixin, stock_class("Qwen3ForCausalLM")):
    """Qwen3, dense."""
