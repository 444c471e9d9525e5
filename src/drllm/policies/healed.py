"""One route for every prompt, and the adapter that was trained for it. `adapter_config.json` and its weights are PEFT's (`adapter.py`)."""

from __future__ import annotations

from pathlib import Path

from drllm.core.files import read_json, write_json
from drllm.core.route import Route
from drllm.policies.adapter import Adapter
from drllm.policies.files import PolicyFiles
from drllm.policies.policy import Policy

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FILES = PolicyFiles("healed route", "heal the route again", "healed.json", ADAPTER_WEIGHTS)


class HealedPolicy(Policy):
    name = "healed"
    about = "one route of blocks for every prompt, and an adapter that brings its answers back to the base's"

    def __init__(self, adapter: Adapter):
        self.adapters, self.route, self.n_layers = (adapter,), adapter.healed, len(adapter.route)

    def save(self, folder: Path) -> list[str]:
        (adapter,) = self.adapters
        write_json(folder / ADAPTER_CONFIG, adapter.config())
        about = {"route": str(adapter.route), "adapter": adapter.name, "blocks": adapter.blocks, "rank": adapter.rank}
        return [ADAPTER_CONFIG, *_FILES.save(folder, about, adapter.tensors())]

    @classmethod
    def load(cls, folder: Path) -> HealedPolicy:
        """Read back what `save` wrote; `ArtifactError` for anything missing or corrupt, and for an adapter of another route or rank."""
        about, tensors = _FILES.load(folder)
        peft = read_json(folder / ADAPTER_CONFIG, _FILES.remedy, dict)
        with _FILES.reading(folder):
            if peft["r"] != about["rank"]:
                raise ValueError(f"{ADAPTER_CONFIG} has rank {peft['r']}, healed.json {about['rank']}")
            route = Route.parse(about["route"])
            adapter = Adapter.of_tensors(route, about["blocks"], peft["lora_alpha"] / peft["r"], tensors)
            if adapter.rank != about["rank"]:
                raise ValueError(f"{ADAPTER_WEIGHTS} has rank {adapter.rank}, healed.json {about['rank']}")
            if adapter.name != about["adapter"]:
                raise ValueError(f"{ADAPTER_WEIGHTS} is not the adapter of route {route} that healed.json names")
            return cls(adapter)
