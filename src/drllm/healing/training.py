"""Training an adapter by KL to the base, on the route's own blocks and nothing else. PEFT makes the low-rank weights.

The order of prompts follows from the seed, there is no dropout, and the state is written whole: killed and resumed with as many threads on
the same processor, the adapter has the same bytes. On a GPU it may round otherwise.

Shapes: N tokens of a step.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from drllm.core.config import HealConfig
from drllm.core.errors import ArtifactError, InputError, UnsupportedModelError, first_line
from drllm.core.files import remove_partials, write_bytes
from drllm.core.progress import Progress, say
from drllm.core.route import Route
from drllm.healing.measuring import Distance, distance, own_rows
from drllm.healing.teacher import Text, divergence, joined
from drllm.model.copies import block_list, difference_from, shortened
from drllm.model.routed import RoutedModel
from drllm.policies.adapter import DTYPE, Adapter
from drllm.scoring.route_prediction import prompt_inputs

EVERY = 20  # steps between two looks at the held-out texts
PATIENCE = 5  # looks without a gain after which training ends
SAVE_EVERY_S = 30.0
WARM_UP = 10  # steps
LARGEST_NORM = 1.0  # of a step's gradient
SCALE = 2.0  # of B A: lora_alpha over the rank
NAME = "default"  # PEFT's, of its one adapter


def need_peft() -> None:
    """`InputError` where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise InputError("healing needs the package peft, which is not installed: run `pip install peft`")


@dataclass
class Course:
    """How a training went, and where it is."""

    step: int = 0  # done
    looks: list[tuple[int, float, float]] = field(default_factory=list)  # (step, KL, share of the same next token) on held-out texts
    best: int = 0  # which of them had the lowest KL; the first is the route without an adapter
    ended: str = ""  # why, where it has ended before its last step
    seconds: float = 0.0  # spent on it, by all processes


def train_adapter(
    routed: RoutedModel, route: Route, steps: Sequence[Sequence[Text]], held_out: Sequence[Text], config: HealConfig, folder: Path
) -> tuple[Adapter, Course]:
    """The adapter of the best look at the held-out texts; the same call goes on where it was. `steps`: what each learns from.

    `UnsupportedModelError` for a family whose blocks compute something else in a shorter model, `InputError` where logits are not finite.
    """
    training = _Training(routed, route, config, folder)
    with Progress("heal: training", len(steps)) as progress:
        progress.resume(training.course.step)
        training.run(steps[training.course.step :], held_out, progress)
    return training.adapter(), training.course


class _Training:
    """The model, its low-rank weights and the optimizer's state."""

    def __init__(self, routed: RoutedModel, route: Route, config: HealConfig, folder: Path):
        self.routed, self.route, self.config, self.path = routed, route, config, folder / "state.safetensors"
        self.model = _with_low_rank(routed, route, config)
        self.weights = {name: part for name, part in self.model.named_parameters() if part.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=config.lr, weight_decay=0.0)
        self.best = {name: part.detach().clone() for name, part in self.weights.items()}
        self.course = Course()
        remove_partials(folder)
        if self.path.is_file():
            self._resume()
        self._saved = time.monotonic()

    def run(self, steps: Sequence[Sequence[Text]], held_out: Sequence[Text], progress: Progress) -> None:
        if self.course.ended or self.course.step == self.config.steps:
            return
        if not self.course.looks:
            self._look(held_out, progress)
        for texts in steps:
            if self._step(texts):
                self.course.ended = f"the KL was NaN or infinite at step {self.course.step + 1}; the best adapter before it is kept"
                say(f"heal: {self.course.ended}")
                self._look(held_out, progress)
                break
            self.course.step += 1
            progress.advance(1, self._note())
            if self.course.step % EVERY == 0 or self.course.step == self.config.steps:
                self._look(held_out, progress)
            if len(self.course.looks) - 1 - self.course.best >= PATIENCE:
                self.course.ended = f"held-out prompts gained nothing in {PATIENCE * EVERY} steps"
                break
            if time.monotonic() - self._saved > SAVE_EVERY_S:
                self._save()
        self._save()

    def _step(self, texts: Sequence[Text]) -> bool:
        """True, and nothing changed, where loss or gradient is NaN or infinite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * min(1.0, (self.course.step + 1) / WARM_UP, 1 - self.course.step / self.config.steps)
        logits = self.model(**prompt_inputs(self.routed, [text.ids for text in texts])).logits
        logits_NV = own_rows(logits, texts).float()
        *told, weights = joined(texts, logits_NV.device)
        loss = (divergence(logits_NV, *told) * weights).sum() / weights.sum()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.weights.values(), LARGEST_NORM)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            return True
        self.optimizer.step()
        return False

    def _look(self, held_out: Sequence[Text], progress: Progress) -> None:
        """Measure on the held-out texts, and keep the weights if they are the best so far."""
        found = distance(self.routed, held_out, self.config.max_step_tokens, self.model)
        self.course.looks.append((self.course.step, found.kl, found.same))
        if found.kl <= self.course.looks[self.course.best][1]:
            self.course.best = len(self.course.looks) - 1
            self.best = {name: part.detach().clone() for name, part in self.weights.items()}
        progress.tell(self._note())

    def _note(self) -> str:
        _, kl, same = self.course.looks[-1]
        return f"(held-out KL {kl:.3f}, at first {self.course.looks[0][1]:.3f}; same next token {same:.0%})"

    def adapter(self) -> Adapter:
        blocks = self.model.get_submodule(block_list(self.routed))
        weights = {}
        for place, block in enumerate(self.route.path):
            for name, module in blocks[place].named_modules():
                if hasattr(module, "lora_A"):
                    weights[block, name] = self._best_of(module.lora_A[NAME].weight), self._best_of(module.lora_B[NAME].weight)
        return Adapter(self.route, block_list(self.routed), SCALE, weights)

    def _best_of(self, part: Tensor) -> Tensor:
        name = next(name for name, other in self.weights.items() if other is part)
        return self.best[name].cpu().to(DTYPE)

    def _save(self) -> None:
        now = time.monotonic()
        self.course.seconds, self._saved = self.course.seconds + now - self._saved, now
        tensors = {}
        for name, part in self.weights.items():
            tensors |= {f"now:{name}": part.detach(), f"best:{name}": self.best[name]}
            tensors |= {f"{key}:{name}": self.optimizer.state[part][key] for key in ("exp_avg", "exp_avg_sq") if self.optimizer.state[part]}
        tensors = {name: part.cpu().contiguous() for name, part in tensors.items()}
        write_bytes(self.path, save_tensors(tensors, {"course": json.dumps(vars(self.course))}))

    def _resume(self) -> None:
        try:
            with safe_open(self.path, "pt") as file:
                self.course = Course(**json.loads(file.metadata()["course"]))
                self.course.looks = [(step, kl, same) for step, kl, same in self.course.looks]
                for name, part in self.weights.items():
                    part.data.copy_(file.get_tensor(f"now:{name}"))
                    self.best[name].copy_(file.get_tensor(f"best:{name}"))
                    if self.course.step:
                        moments = {key: file.get_tensor(f"{key}:{name}").to(part.device) for key in ("exp_avg", "exp_avg_sq")}
                        self.optimizer.state[part] = {"step": torch.tensor(float(self.course.step)), **moments}
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"{self.path} is not readable ({first_line(error)}): delete it to train again") from None


def linear_maps(routed: RoutedModel, block: int, config: HealConfig) -> list[str]:
    """The linear maps of a block that are adapted, by their names in it."""
    linear = [name for name, module in routed.blocks[block].named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if not config.targets or name.rpartition(".")[2] in config.targets]


def check_targets(routed: RoutedModel, config: HealConfig) -> None:
    """`UnsupportedModelError` where no block has a linear map of a name that is to be adapted."""
    if not any(linear_maps(routed, block, config) for block in range(routed.n_layers)):
        there = {name.rpartition(".")[2] for name, module in routed.blocks.named_modules() if isinstance(module, nn.Linear)}
        what = f"no block holds a linear map named {', '.join(config.targets) or 'anything'}"
        raise UnsupportedModelError(f"{what}: there are {', '.join(sorted(there)) or 'none'}")


def _with_low_rank(routed: RoutedModel, route: Route, config: HealConfig) -> Any:
    """The base's blocks along the route in a model of their own, with PEFT's low-rank weights in float32, which alone are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        f"{block_list(routed)}.{place}.{name}" for place, block in enumerate(route.path) for name in linear_maps(routed, block, config)
    ]
    model = shortened(routed, route)
    difference_from(routed, route, model, "cannot be healed on this route")
    lora = LoraConfig(r=config.rank, lora_alpha=int(SCALE * config.rank), target_modules=targets)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = inject_adapter_in_model(lora, model)
    for part in model.parameters():
        if part.requires_grad:
            part.data = part.data.float()
    return model.eval()


def distance_along(routed: RoutedModel, route: Route, held_out: Sequence[Text], max_step_tokens: int) -> Distance:
    """Of the routed model itself along a route."""
    return distance(routed, held_out, max_step_tokens, lambda **inputs: routed(**inputs, routes=route))
