"""vLLM's `vllm.general_plugins` entry point: names our models, nothing more."""

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


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
