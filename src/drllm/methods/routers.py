"""The paper's routers (arXiv 2510.12773, section 3): one small network a block, trained on the searched routes.

Departures, each a knob: inputs are scaled to unit RMS (`normalize`), since the states entering different blocks differ in scale by up
to 800 times, and part of the fit questions is held back to print F1 on (`val_fraction`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.config import RoutersConfig
from drllm.errors import ArtifactError
from drllm.files import write_text
from drllm.methods.base import Method
from drllm.progress import Progress

if TYPE_CHECKING:
    from drllm.methods.material import Material
    from drllm.model.policy import Policy
    from drllm.model.routed import RoutedModel


def fit(routed: RoutedModel, material: Material, config: RoutersConfig, folder: Path) -> Policy:
    """Pool the states along each kept label path, then train all routers together; metrics go to `folder/metrics.jsonl`."""
    import torch

    from drllm.model.routers import RouterConfig
    from drllm.training.features import extract_features, load_features, save_features
    from drllm.training.loop import train_routers

    kept = [
        (question, record)
        for task in material.tasks
        for question, record in zip(task.questions, task.records, strict=True)
        if record.chosen is not None
    ]
    if not kept:
        raise ArtifactError(
            "the search kept no route (no question was answered rightly on any path): search more questions or another task"
        )
    formats = {task.scorer.prompt_format for task in material.tasks}
    if len(formats) != 1:
        raise ArtifactError(
            f"the searched tasks use {len(formats)} prompt formats ({', '.join(sorted(formats))}): search them into separate runs"
        )
    cache = folder / "features.safetensors"
    key = f"{material.key}:{config.n_windows}:{routed.model.dtype}"
    features = load_features(cache, key)
    if features is None:
        features = extract_features(
            routed,
            [question.context_ids for question, _ in kept],
            [record.chosen for _, record in kept if record.chosen is not None],
            config.n_windows,
            material.search_config.max_step_tokens,
        )
        save_features(cache, features, key)
    router_config = RouterConfig(
        n_layers=routed.n_layers, hidden_size=routed.hidden_size, n_windows=config.n_windows, width=config.width, normalize=config.normalize
    )
    lines: list[str] = []
    with Progress("train routers", config.epochs) as progress:

        def on_epoch(metrics: dict[str, Any]) -> None:
            # An action that neither labels nor predictions hold has no F1: null, for strict JSON readers.
            lines.append(json.dumps({name: None if value != value else value for name, value in metrics.items()}))
            progress.print(epoch_line(metrics, config.epochs))
            progress.advance(1)

        held_back = torch.tensor([_held_back(record.id, config) for _, record in kept])
        policy = train_routers(features, held_back, config, router_config, on_epoch)
    write_text(folder / "metrics.jsonl", "\n".join(lines) + "\n")
    policy.prompt_format = formats.pop()
    return policy


def epoch_line(metrics: dict[str, Any], n_epochs: int) -> str:
    """One epoch in a line: loss, F1 of each action and their mean, passes; in brackets on the held-back records."""
    line = f"epoch {metrics['epoch']}/{n_epochs}: loss {metrics['loss']:.4f}"
    for name, label in (("macro_f1", "macro-F1"), ("f1_skip", "skip"), ("f1_execute", "execute"), ("f1_repeat", "repeat")):
        line += f", {label} {metrics[name]:.3f}" + (f" ({metrics[f'val_{name}']:.3f})" if f"val_{name}" in metrics else "")
    return (
        line + f", passes {metrics['mean_passes']:.2f}" + (f" ({metrics['val_mean_passes']:.2f})" if "val_mean_passes" in metrics else "")
    )


def _held_back(example_id: str, config: RoutersConfig) -> bool:
    """Whether a fit question is only measured on; by its id, so that the same questions are held back for every method."""
    place = int.from_bytes(hashlib.sha256(f"val:{config.seed}:{example_id}".encode()).digest()[:6], "big") / 2**48
    return place < config.val_fraction


METHOD = Method("routers", "one small network a block, trained on the searched routes", "Dr.LLM, arXiv 2510.12773", RoutersConfig, fit)
