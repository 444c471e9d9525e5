"""What routers learn from: the states entering each block along a label path, pooled over the prompt's windows, computed once.

The base is frozen and the path is the label's (teacher forcing, section 3.2), so these never change between epochs.

Shapes: N records, L blocks, W windows, D hidden size, B sequences, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drllm.core.errors import ArtifactError, first_line
from drllm.core.files import write_bytes
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.policies.constant import GivenRoutes
from drllm.policies.routers import pool, pool_matrix
from drllm.scoring.route_prediction import prompt_steps


@dataclass(frozen=True)
class Features:
    """pooled (N, L, W, D) bfloat16, valid (N, W) bool, labels (N, L) long; entry i belongs to the i-th record."""

    pooled: Tensor
    valid: Tensor
    labels: Tensor


@torch.no_grad()
def extract_features(
    routed: RoutedModel, prompts: Sequence[Sequence[int]], labels: Sequence[Route], n_windows: int, max_step_tokens: int
) -> Features:
    """One forward of each record's prompt (token ids) along its label path, in steps of similar length, at most so many padded tokens."""
    shape = (len(prompts), routed.n_layers, n_windows, routed.hidden_size)
    pooled = torch.zeros(shape, dtype=torch.bfloat16)
    valid = torch.zeros((len(prompts), n_windows), dtype=torch.bool)
    with Progress("features", len(prompts)) as progress:
        for members, inputs in prompt_steps(routed, prompts, max_step_tokens, by_length=True):
            mask, given = inputs["attention_mask"], GivenRoutes([labels[index] for index in members])
            weights_BWT, valid_BW = pool_matrix(mask, n_windows)

            def keep(block: int, x_BTD: Tensor, _: Any, members: list[int] = members, weights_BWT: Tensor = weights_BWT) -> None:
                pooled[members, block] = pool(weights_BWT.to(x_BTD.device), x_BTD).to("cpu", torch.bfloat16)

            # The head is not needed: the inner decoder alone.
            routed.decoder_forward(routed.new_cache(given, mask, keep), **inputs)
            valid[members] = valid_BW.cpu()
            progress.advance(len(members))
    return Features(pooled, valid, torch.tensor([tuple(label) for label in labels], dtype=torch.long))


def kept_tensors(path: Path, key: str, names: Sequence[str], compute: Callable[[], dict[str, Tensor]]) -> list[Tensor]:
    """Tensors of a file written under this key, which names what they depend on ("": the file's name does); else computed."""
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key", "") == key:
                    return [file.get_tensor(name) for name in names]
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} is not a readable feature file ({first_line(error)}): delete it and train again") from None
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(found, metadata={"key": key} if key else None))
    return [found[name] for name in names]
