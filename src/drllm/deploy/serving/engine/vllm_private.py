"""The parts of vLLM that it does not document as its interface, under names of our own. No other module uses one.

Checked on vLLM 0.32; `tests/serving/test_serving_engine.py` names the part that a later version changed. vLLM is imported inside functions:
the launcher, and tests of one step, need no vLLM.

Shapes: N tokens of the step, S sequences, D hidden size.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from drllm.core.errors import UnsupportedModelError
from drllm.deploy.serving.engine.plugin import FAMILIES, refuse_attention

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SUPPORTED = "0.32"
ENTRY = "vllm.entrypoints.launchers.api_server.entry"  # what `python -m` starts the HTTP server by
CLASSES = {base: f"vllm.model_executor.models.{base.removesuffix('ForCausalLM').lower()}" for base in FAMILIES}
CLASSES |= {"CPUWorker": "vllm.v1.worker.cpu_worker", "Worker": "vllm.v1.worker.gpu_worker"}
KEY = "drllm"  # of the forward context's `additional_kwargs`, where a step's schedule lies


def stock_class(name: str) -> Any:
    """One of vLLM's own classes that ours extend: a model or a worker."""
    return getattr(importlib.import_module(CLASSES[name]), name)


def validation_error(message: str, parameter: str | None = None) -> Exception:
    """What vLLM's HTTP server answers with status 400."""
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=parameter)


def replace_beam_search(state: Any, beam_search: Callable[..., Any]) -> None:
    """Answer requests for beams with `beam_search`; `state` is that of the HTTP application."""
    for name in ("openai_serving_chat", "openai_serving_completion"):
        if (serving := getattr(state, name, None)) is not None:
            serving.beam_search = beam_search


def model_of(engine: Any) -> Any:
    """The model inside an `LLMEngine` that runs in this process."""
    return engine.model_executor.driver_worker.worker.model_runner.model


def attention_name(block: Any) -> str:
    return block.self_attn.attn.layer_name


def leave_out(layers: nn.ModuleList, block: int, vllm_config: VllmConfig) -> None:
    """A block that no route runs: neither weights nor cache."""
    from vllm.model_executor.models.utils import PPMissingLayer

    vllm_config.compilation_config.static_forward_context.pop(attention_name(layers[block]))
    layers[block] = PPMissingLayer()


def set_passes(decoder: Any, passes: Sequence[nn.Module]) -> None:
    decoder.layers = nn.ModuleList(passes)
    decoder.end_layer = len(passes)


class Blocks(nn.Module):
    """Consecutive blocks as one: (positions (N), states (N, D), residual (N, D)) to the latter two, whose sum is what enters and leaves.

    With a strength s below 1 the states h go only that far: h + s (F(h) - h). `given` is what a decoder gives each block besides.
    """

    def __init__(self, blocks: Sequence[nn.Module], strength: float = 1.0):
        super().__init__()
        self.blocks, self.strength = nn.ModuleList(blocks), strength

    def forward(self, positions: Tensor, states: Tensor, residual: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        return _through(self.blocks, self.strength, positions, states, residual, **given)


def _through(
    blocks: Iterable[Any], strength: float, positions: Tensor, states: Tensor, residual: Tensor, **given: Any
) -> tuple[Tensor, Tensor]:
    if strength == 1:
        for block in blocks:
            states, residual = block(positions, states, residual, **given)
        return states, residual
    before = states + residual
    states, residual = before, torch.zeros_like(before)
    for block in blocks:
        states, residual = block(positions, states, residual, **given)
    mixed = before + strength * (states + residual - before)
    return mixed, torch.zeros_like(mixed)


def new_pass(block: nn.Module, index: int, vllm_config: VllmConfig) -> nn.Module:
    """A block that shares all weights of `block` and has keys and values of its own, as block `index` of the cache."""
    from vllm.model_executor.layers.attention import Attention

    again: Any = copy.copy(block)
    attention: Any = copy.copy(block.self_attn)
    again._modules, attention._modules = dict(again._modules), dict(attention._modules)
    first, prefix = attention.attn, f"model.layers.{index}.self_attn.attn"
    sizes = {name: getattr(first, name) for name in ("num_heads", "head_size", "num_kv_heads", "attn_type")}
    configs: Any = {name: getattr(vllm_config, name) for name in ("cache_config", "quant_config")}
    attention.attn = Attention(scale=first.impl.scale, prefix=prefix, **sizes, **configs)
    again.self_attn = attention
    return again


def is_compiled(decoder: Any) -> bool:
    return not decoder.do_not_compile


def compile_blocks(blocks: Iterable[nn.Module], name: str, vllm_config: VllmConfig, strength: float = 1.0) -> Any:
    """As `Blocks`, compiled as vLLM compiles models; `name` must be another for each."""
    from vllm.compilation.decorators import support_torch_compile
    from vllm.config import set_current_vllm_config

    class Compiled(Blocks):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", blocks: Sequence[nn.Module] = (), strength: float = 1.0):
            super().__init__(blocks, strength)

        def forward(self, positions: Tensor, states: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
            return _through(self.blocks, self.strength, positions, states, residual)

    # A class of its own for each: vLLM keeps compiled code on disk by the qualified name of the method it compiled.
    Compiled.forward.__qualname__ = f"Segment.forward[{name}]"
    compiled: Any = support_torch_compile(dynamic_arg_dims={"positions": 0, "states": 0, "residual": 0})(Compiled)
    with set_current_vllm_config(vllm_config):
        return compiled(vllm_config=vllm_config, blocks=list(blocks), strength=strength)


def run_once(runs: Iterable[Callable[..., Any]], vllm_config: VllmConfig, like: Tensor) -> None:
    """Run what is compiled before the first request; `like` is some parameter of the model, for its type, device and width D."""
    from vllm.forward_context import set_forward_context

    n_tokens = vllm_config.scheduler_config.max_num_batched_tokens
    for run in runs:
        states = torch.zeros((n_tokens, like.shape[-1]), dtype=like.dtype, device=like.device)
        positions = torch.zeros(n_tokens, dtype=torch.long, device=like.device)
        with torch.inference_mode(), set_forward_context(None, vllm_config, num_tokens=n_tokens):
            run(positions, states, torch.zeros_like(states))


@dataclass(eq=False)
class Gathered:
    """Some sequences of a step: the places of their tokens (None: all of them), and what their attention needs."""

    tokens: Tensor | None
    metadata: Any
    slot_mapping: Tensor


@dataclass(eq=False)
class Place:
    """Where the tokens of some sequences lie in a step; `_on` is on the engine's device."""

    sequences: Tensor  # their numbers
    sequences_on: Tensor
    tokens_on: Tensor  # the places of their tokens
    ends: Tensor  # of each sequence's tokens once gathered, after a 0
    ends_on: Tensor
    longest: int  # tokens of a sequence


class StepSequence(NamedTuple):
    """One request of a step: its id, and the extra arguments of its sampling parameters."""

    request: str
    arguments: dict[str, Any]
    is_resumed: bool  # whether it begins again after it was thrown out of the cache


class StepAttention:
    """The attention metadata of one step.

    Args:
        context: the forward context, in which each attention finds its metadata and slots by name.
        common: the `CommonAttentionMetadata` of all sequences; `build` makes a backend's `metadata` of it.
    """

    def __init__(self, context: Any, common: Any, build: Callable[[Any], Any], metadata: Any):
        self._context, self._common, self._build = context, common, build
        self.starts = common.query_start_loc_cpu.numpy()  # (S + 1,) where each sequence's tokens begin, and the end
        self.whole = Gathered(None, metadata, common.slot_mapping)

    def of(self, place: Place) -> Gathered:
        where: dict[str, Tensor] = dict.fromkeys(("seq_lens", "block_table_tensor"), place.sequences_on)
        where |= dict.fromkeys(("seq_lens_cpu_upper_bound", "is_prefilling"), place.sequences)
        where |= dict.fromkeys(("slot_mapping", "positions"), place.tokens_on)
        whole = {name: getattr(self._common, name) for name in where}
        picked = {name: None if value is None else value[where[name]] for name, value in whole.items()}
        ends = {"query_start_loc": place.ends_on, "query_start_loc_cpu": place.ends, "max_query_len": place.longest}
        counts = {"num_reqs": len(place.sequences), "num_actual_tokens": len(place.tokens_on)}
        forgotten = dict.fromkeys(("_num_computed_tokens_cache", "_token_to_req_indices_cache"))
        part = self._common.replace(**picked, **ends, **counts, **forgotten)
        return Gathered(place.tokens_on, self._build(part), part.slot_mapping)

    def show(self, names: Sequence[str], gathered: Gathered) -> None:
        for name in names:
            self._context.attn_metadata[name] = gathered.metadata
            self._context.slot_mapping[name] = gathered.slot_mapping


def current_schedule() -> Any:
    """The schedule of the step under way; None where it has none."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    return get_forward_context().additional_kwargs.get(KEY) if is_forward_context_available() else None


class HookedRunner:
    """Stands before a V1 model runner class: watches a step's attention metadata being built, and hands the model the step's schedule."""

    drllm_keeper: Any  # a `worker.RouteKeeper`
    drllm_common: Any = None  # the step's CommonAttentionMetadata

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(*args, **kwargs)  # type: ignore[misc]
        groups = [group for groups in self.attn_groups for group in groups]  # type: ignore[attr-defined]
        known = self.compilation_config.static_forward_context  # type: ignore[attr-defined]
        windows = {known[name].sliding_window for group in groups for name in group.layer_names}
        refuse_attention(groups[0].backend.get_name(), len(groups), windows)
        (self.drllm_group,) = groups
        original = self.drllm_group.build_metadata

        def build_metadata(common: Any, *args: Any, **kwargs: Any) -> Any:
            self.drllm_common = common
            return original(common, *args, **kwargs)

        self.drllm_build = lambda common: original(common, 0)
        self.drllm_group.build_metadata = build_metadata

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        from vllm.forward_context import get_forward_context

        context, keeper = get_forward_context(), self.drllm_keeper
        common, self.drllm_common = self.drllm_common, None
        if keeper.is_static or context.attn_metadata is None:  # none where vLLM profiles and warms up
            return super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        if common is None or not isinstance(context.attn_metadata, dict):
            raise UnsupportedModelError("this step's attention metadata is not what drllm knows, so its sequences cannot be routed")
        metadata = context.attn_metadata[self.drllm_group.layer_names[0]]
        sequences = _sequences(self.input_batch, self.requests)  # type: ignore[attr-defined]
        schedule = keeper.schedule(sequences, StepAttention(context, common, self.drllm_build, metadata))
        context.additional_kwargs[KEY] = schedule
        out = super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        keeper.note(schedule, sequences)
        return out

    def _update_states(self, scheduler_output: Any) -> Any:
        self.drllm_keeper.forget(scheduler_output.finished_req_ids)
        return super()._update_states(scheduler_output)  # type: ignore[misc]


def _sequences(batch: Any, requests: dict[str, Any]) -> list[StepSequence]:
    """What a runner's `input_batch` and `requests` say of a step."""
    sequences = []
    for place, request in enumerate(batch.req_ids[: batch.num_reqs]):
        state = requests[request]
        arguments = (state.sampling_params and state.sampling_params.extra_args) or {}
        is_resumed = bool(state.output_token_ids) and int(batch.num_computed_tokens_cpu[place]) == 0
        sequences.append(StepSequence(request, arguments, is_resumed))
    return sequences


class HookedWorker:
    """Stands before a worker class, whose runner it turns into a `HookedRunner`."""

    new_keeper: Callable[[Any], Any]  # from the engine's `additional_config`, a `worker.RouteKeeper`

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        self.keeper = self.new_keeper(self.vllm_config.additional_config)  # type: ignore[attr-defined]
        runner: Any = self.model_runner  # type: ignore[has-type]
        runner.__class__ = type(f"Routed{type(runner).__name__}", (HookedRunner, type(runner)), {})
        runner.drllm_keeper = self.keeper

    def compile_or_warm_up_model(self) -> Any:
        self.model_runner.get_model().prepare()  # type: ignore[attr-defined]
        return super().compile_or_warm_up_model()  # type: ignore[misc]
