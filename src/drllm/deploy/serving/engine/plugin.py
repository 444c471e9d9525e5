"""vLLM's `vllm.general_plugins` entry point: names our models, nothing more."""

FAMILIES = {
    "LlamaForCausalLM": "RoutedLlama",
    "MistralForCausalLM": "RoutedMistral",
    "Qwen2ForCausalLM": "RoutedQwen2",
    "Qwen3ForCausalLM": "RoutedQwen3",
}


def architecture(base: str) -> str:
    """Under which name vLLM knows the routed model of a base architecture."""
    return f"Drllm{base}"


def register() -> None:
    """Called by vLLM in every process it starts, maybe more than once."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for base, name in FAMILIES.items():
        if architecture(base) not in known:
            ModelRegistry.register_model(architecture(base), f"drllm.deploy.serving.engine.models:{name}")
