"""Looks, in the serving environment, for each part of vLLM that `vllm_private` uses; prints what has changed, a JSON list of lines."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
from typing import Any

# module, name inside, parameters by name (None: only the name matters), words that its source must hold: attributes set in there
PARTS: list[tuple[str, str, list[str] | None, list[str]]] = [
    ("vllm.exceptions", "VLLMValidationError.__init__", ["message", "parameter"], []),
    ("vllm.model_executor.models.utils", "PPMissingLayer.__init__", None, []),
    (
        "vllm.model_executor.layers.attention",
        "Attention.__init__",
        ["num_heads", "head_size", "scale", "num_kv_heads", "cache_config", "quant_config", "attn_type", "prefix"],
        [
            "self.layer_name",
            "self.num_heads",
            "self.head_size",
            "self.num_kv_heads",
            "self.impl",
            "self.attn_type",
            "self.sliding_window",
            "static_forward_context",
        ],
    ),
    ("vllm.compilation.decorators", "support_torch_compile", ["dynamic_arg_dims"], []),
    ("vllm.compilation.decorators", "_support_torch_compile", None, ["self.do_not_compile"]),
    ("vllm.config", "set_current_vllm_config", ["vllm_config"], []),
    ("vllm.forward_context", "set_forward_context", ["attn_metadata", "vllm_config", "num_tokens"], []),
    ("vllm.forward_context", "get_forward_context", [], []),
    ("vllm.forward_context", "is_forward_context_available", [], []),
    ("vllm.v1.worker.utils", "AttentionGroup.build_metadata", ["common_attn_metadata"], []),
    (
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner.__init__",
        None,
        ["self.attn_groups", "self.compilation_config", "self.input_batch", "self.requests"],
    ),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.get_model", ["self"], []),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.initialize_kv_cache", ["self", "kv_cache_config"], []),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._model_forward", ["self", "input_ids", "positions"], []),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._update_states", ["self", "scheduler_output"], ["finished_req_ids"]),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.execute_model", None, ["self._update_states", "self._model_forward"]),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._build_attention_metadata", None, ["attn_group.build_metadata"]),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch.req_ids", None, []),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch.num_reqs", None, []),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch.__init__", None, ["self.num_computed_tokens_cpu"]),
    ("vllm.v1.worker.cpu_worker", "CPUWorker.init_device", ["self"], ["self.model_runner"]),
    ("vllm.v1.worker.cpu_worker", "CPUWorker.compile_or_warm_up_model", ["self"], []),
    ("vllm.v1.worker.gpu_worker", "Worker.__init__", None, ["self.model_runner"]),
    ("vllm.v1.worker.gpu_worker", "Worker.init_device", ["self"], []),
    ("vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model", ["self"], []),
    ("vllm.entrypoints.generate.api_router", "init_generate_state", None, ["state.openai_serving_chat", "state.openai_serving_completion"]),
    ("vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat.beam_search", None, []),
    ("vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion.beam_search", None, []),
    ("vllm.model_executor.models.llama", "LlamaModel.__init__", None, ["self.end_layer", "self.layers", "self.norm"]),
    ("vllm.model_executor.models.llama", "LlamaModel.embed_input_ids", ["self", "input_ids"], []),
    ("vllm.model_executor.models.llama", "LlamaModel.forward", ["self", "input_ids", "positions"], ["self.layers", "self.end_layer"]),
    ("vllm.model_executor.models.llama", "LlamaDecoderLayer.forward", ["self", "positions", "hidden_states", "residual"], []),
]
FIELDS: list[tuple[str, str, set[str]]] = [
    ("vllm.forward_context", "ForwardContext", {"attn_metadata", "slot_mapping", "additional_kwargs"}),
    ("vllm.v1.worker.gpu_input_batch", "CachedRequestState", {"sampling_params", "output_token_ids"}),
    ("vllm.config", "ParallelConfig", {"pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size"}),
    ("vllm.config", "CacheConfig", {"kv_sharing_fast_prefill", "cache_dtype", "enable_prefix_caching"}),
    ("vllm.config", "SchedulerConfig", {"enable_chunked_prefill", "async_scheduling", "long_prefill_token_threshold"}),
    ("vllm.config", "VllmConfig", {"speculative_config", "lora_config", "kv_transfer_config", "quant_config", "additional_config"}),
    ("vllm.config", "CompilationConfig", {"static_forward_context"}),
]
# Of a step's metadata: what `StepAttention.of` cuts, and what is the same, or unused, for some of the sequences of the families served.
CUT = {
    *("query_start_loc", "query_start_loc_cpu", "seq_lens", "seq_lens_cpu_upper_bound", "num_reqs", "num_actual_tokens"),
    *("max_query_len", "block_table_tensor", "slot_mapping", "positions", "is_prefilling", "_num_computed_tokens_cache"),
    *("_token_to_req_indices_cache",),
}
KEPT = {
    *("max_seq_len", "causal", "logits_indices_padded", "num_logits_indices", "max_logits_per_req", "encoder_seq_lens"),
    *("encoder_seq_lens_cpu", "dcp_local_seq_lens", "dcp_local_seq_lens_cpu_upper_bound", "req_idx", "mm_req_doc_ranges"),
    *("rswa_prefix_lens", "replayssm_decode_base_cpu"),
}


def look_up(module: str, name: str) -> Any:
    """The part itself; None where it is gone."""
    if importlib.util.find_spec(module.rpartition(".")[0]) is None or importlib.util.find_spec(module) is None:
        return None
    found: Any = importlib.import_module(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return found


def changed() -> list[str]:
    """One line for each part that is not as `vllm_private` takes it."""
    from drllm.deploy.serving.engine.vllm_private import CLASSES, ENTRY

    lines = [] if look_up(ENTRY, "__name__") else [f"{ENTRY}: the module is gone"]
    lines += [f"{module}: {name} is gone" for name, module in CLASSES.items() if look_up(module, name) is None]
    for module, name, parameters, words in PARTS:
        found = look_up(module, name)
        if found is None:
            lines.append(f"{module}: {name} is gone")
            continue
        if parameters:
            taken = inspect.signature(found).parameters
            lines += [f"{module}: {name} takes no {missing}" for missing in parameters if missing not in taken]
        if words:  # what `__init__` of a class sets may stand in a method that it calls
            whole = name.endswith(("__init__", "execute_model"))
            source = inspect.getsource(look_up(module, name.partition(".")[0]) if whole else found)
            lines += [f"{module}: {name} has no {word}" for word in words if word not in source]
    for module, name, wanted in FIELDS:
        found = look_up(module, name)
        names = {field.name for field in dataclasses.fields(found)} if found else set()
        lines += [f"{module}: {name} has no field {field}" for field in sorted(wanted - names)]
    metadata = look_up("vllm.v1.attention.backend", "CommonAttentionMetadata")
    names = {field.name for field in dataclasses.fields(metadata)} if metadata else set()
    lines += [f"CommonAttentionMetadata: {field} is gone" for field in sorted((CUT | KEPT) - names)]
    lines += [f"CommonAttentionMetadata: {field} is new, and StepAttention.of does not cut it" for field in sorted(names - CUT - KEPT)]
    return lines


if __name__ == "__main__":
    print(json.dumps(changed()))
