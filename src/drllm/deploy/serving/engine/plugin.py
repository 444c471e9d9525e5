"""vLLM's `vllm.general_plugins` entry point, which names our models; what routes have not been tested with, refused by name."""

from typing import Any

from drllm.core.errors import UnsupportedModelError

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ATTENTION = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")  # whose metadata of some sequences does not disturb that of all
PLAIN_CACHES = ("auto", "float16", "bfloat16", "float32")


def architecture(base: str) -> str:
    """Under which name vLLM knows the routed model of a base architecture."""
    return f"Drllm{base}"


def register() -> None:
    """Called by vLLM in every process it starts, maybe more than once."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for base in FAMILIES:
        if architecture(base) not in known:
            name = f"Routed{base.removesuffix('ForCausalLM')}"
            ModelRegistry.register_model(architecture(base), f"drllm.deploy.serving.engine.models:{name}")


def refuse(vllm_config: Any, mode: str) -> None:
    """`UnsupportedModelError` for an engine that routes cannot run in; `mode` as in `ServeSpec`."""
    parallel, cache, scheduler = vllm_config.parallel_config, vllm_config.cache_config, vllm_config.scheduler_config
    used = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "tensor parallelism": parallel.tensor_parallel_size > 1,
        "data parallelism": parallel.data_parallel_size > 1,
        "speculative decoding": vllm_config.speculative_config is not None,
        "LoRA": vllm_config.lora_config is not None,
        "a key-value connector": vllm_config.kv_transfer_config is not None,
        "fast prefill": cache.kv_sharing_fast_prefill,
        "a quantised key-value cache": cache.cache_dtype not in PLAIN_CACHES,
        "quantised weights": vllm_config.quant_config is not None,
        "dual-chunk attention": getattr(vllm_config.model_config.hf_config, "dual_chunk_attention_config", None) is not None,
        "the V2 model runner": vllm_config.use_v2_model_runner,
    }
    if found := [name for name, value in used.items() if value]:
        raise UnsupportedModelError(f"routes are not tested with {found[0]}: start the server without it")
    whole = {
        "chunked prefill": scheduler.enable_chunked_prefill,
        "the prefix cache": cache.enable_prefix_caching,
        "async scheduling": scheduler.async_scheduling,
        "a threshold of long prompts": scheduler.long_prefill_token_threshold > 0,  # cuts prompts also where chunks are off
    }
    if mode == "engine" and (found := [name for name, value in whole.items() if value]):
        raise UnsupportedModelError(f"a policy that decides in the engine must see whole prompts: start the server without {found[0]}")


def refuse_attention(backend: str, n_groups: int, windows: set[Any]) -> None:
    """`UnsupportedModelError` for attention that sequences cannot be taken out of."""
    if windows != {None}:
        raise UnsupportedModelError("routes are not tested with sliding-window attention on vLLM: serve with transformers")
    if n_groups != 1:
        raise UnsupportedModelError(f"routes need one attention group in the cache, this model has {n_groups}")
    if backend not in ATTENTION:
        raise UnsupportedModelError(f"routes are not tested with the {backend} attention backend: choose one of {', '.join(ATTENTION)}")
