"""A low-rank adapter of one route (LoRA, arXiv 2106.09685): a linear map W x of its blocks becomes W x + scale B A x.

On disk it is PEFT's, for the checkpoint that holds the blocks of the route in the order they run: blocks are named by their place in that
order (of route 11011 the base's block 3 is "model.layers.2"), and one that runs again stands there again, with the same weights.

Shapes: r rank, I and O the inputs and outputs of a linear map.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from drllm.core.digest import SHORT
from drllm.core.route import Route

Linear = tuple[int, str]  # a block of the base, and a linear map in it, such as "self_attn.q_proj"
DTYPE = torch.float16  # of the weights, in memory and on disk: training ends with rounding to it


@dataclass(frozen=True, eq=False)
class Adapter:
    """What healing adds to the blocks of a route."""

    route: Route  # without an adapter
    blocks: str  # the name of the list that holds the blocks in a checkpoint, such as "model.layers"
    scale: float  # of B A
    weights: Mapping[Linear, tuple[Tensor, Tensor]]  # of each linear map, A (r, I) and B (O, r), float16

    @cached_property
    def name(self) -> str:
        """16 hexadecimal digits over the route and every weight."""
        found = hashlib.sha256(f"{self.route} {self.scale!r}".encode())
        for (block, linear), pair in sorted(self.weights.items(), key=lambda item: item[0]):
            found.update(f" {block} {linear} {[tuple(part.shape) for part in pair]}".encode())
            for part in pair:
                found.update(part.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:SHORT]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def healed(self) -> Route:
        return self.route.with_adapter(self.name)

    @property
    def rank(self) -> int:
        return next(iter(self.weights.values()))[0].shape[0]

    @property
    def n_weights(self) -> int:
        """A block that runs again has one set."""
        return sum(part.numel() for pair in self.weights.values() for part in pair)

    def merged(self, linear: Linear, weight: Tensor) -> Tensor:
        """W + scale B A (O, I), in the type of W, added in float32."""
        a, b = (part.to(weight.device).float() for part in self.weights[linear])
        return (weight.float() + self.scale * (b @ a)).to(weight.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """By PEFT's names, block by place."""
        found = {}
        for place, block in enumerate(self.route.path):
            for (of_block, linear), pair in self.weights.items():
                if of_block == block:
                    keys = (f"base_model.model.{self.blocks}.{place}.{linear}.lora_{letter}.weight" for letter in "AB")
                    found |= zip(keys, (part.clone() for part in pair), strict=True)  # safetensors stores no tensor twice
        return found

    def config(self) -> dict[str, Any]:
        """PEFT's `adapter_config.json`, as far as it is not PEFT's own defaults."""
        targets = sorted({linear.rpartition(".")[2] for _, linear in self.weights})
        about: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True}
        about |= {"r": self.rank, "lora_alpha": self.scale * self.rank, "target_modules": targets}
        return about | {"bias": "none", "lora_dropout": 0.0}

    @classmethod
    def of_tensors(cls, route: Route, blocks: str, scale: float, tensors: Mapping[str, Tensor]) -> Adapter:
        """The inverse of `tensors`; `ValueError` for names or shapes that no adapter of this route has."""
        pattern = re.compile(rf"base_model\.model\.{re.escape(blocks)}\.(?P<place>\d+)\.(?P<linear>.+)\.lora_A\.weight")
        weights: dict[Linear, tuple[Tensor, Tensor]] = {}
        for key, a in tensors.items():
            if key.endswith(".lora_B.weight"):
                continue
            match, b = pattern.fullmatch(key), tensors.get(key.replace(".lora_A.", ".lora_B."))
            if match is None or b is None or a.ndim != 2 or b.ndim != 2 or b.shape[1] != a.shape[0]:
                raise ValueError(f"not a low-rank pair below {blocks}: {key}")
            if int(match["place"]) >= route.n_passes:
                raise ValueError(f"more than the {route.n_passes} blocks of route {route}: {key}")
            weights[route.path[int(match["place"])], match["linear"]] = (a.to(DTYPE), b.to(DTYPE))
        if not weights or len({pair[0].shape[0] for pair in weights.values()}) > 1:
            raise ValueError(f"expected adapters of one rank, got {sorted({pair[0].shape[0] for pair in weights.values()})}")
        return cls(route, blocks, scale, weights)
