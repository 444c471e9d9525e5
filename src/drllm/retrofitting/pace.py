"""How fast questions are answered here and now, which the sizes of a retrofit's stages follow from.

At its end: what answers take, and how far they depend on the float type.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import RetrofitConfig, SearchConfig
from drllm.core.errors import InputError
from drllm.core.progress import say
from drllm.core.text import type_name
from drllm.evaluation.clock import Prompts, batched_ms, throughput
from drllm.evaluation.rounding import rounding
from drllm.methods.training_data import TrainingData
from drllm.model.routed import RoutedModel
from drllm.model.threads import torch_threads
from drllm.policies.policy import Policy
from drllm.retrofitting.sizes import Sizes, TooShort, sizes_of
from drllm.runs.recommendation import ROUGH
from drllm.scoring.route_prediction import prompt_inputs

CROWDED = 0.8  # of the time that all threads take; one thread that is faster says that the cores are not ours alone
ROUNDS, CLOCK_TOKENS = 8, 16
TIMED = 8  # prompts of one timed forward
ROUNDED = 16  # prompts that are run in both float types


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a plain forward here and now. Attributes: alone_ms: by one thread, where that is faster; crowded: says so, or ""."""

    ms: float
    alone_ms: float = 0.0
    crowded: str = ""

    def sizes(self, n_layers: int, asked: RetrofitConfig, available: Mapping[str, Mapping[str, int]]) -> tuple[Sizes, RetrofitConfig, str]:
        """What fits into the time; where nothing does, why, and what fits into the least time that bears something, by one thread too."""
        try:
            return sizes_of(n_layers, self.ms, asked, available), asked, ""
        except TooShort as error:
            why, longer = str(error), replace(asked, minutes=error.minutes)
        if not self.alone_ms:
            return sizes_of(n_layers, self.ms, longer, available), longer, why
        found, longer, _ = Measured(self.alone_ms).sizes(n_layers, asked, available)
        return found, longer, f"{why}; or give --threads 1, with which {longer.minutes:g} minutes are enough now: {self.crowded}"


def measured(routed: RoutedModel, tasks: Sequence[str], config: SearchConfig, data: str | Path | None) -> Measured:
    """With torch's threads as they are, and with one alone where that is faster."""
    spent, n_threads = batched_ms(routed, tasks, config, data), torch.get_num_threads()
    if routed.device.type != "cpu" or n_threads == 1:
        return Measured(spent)
    with torch_threads(1):
        alone = batched_ms(routed, tasks[:1], config, data)
    together = batched_ms(routed, tasks[:1], config, data) if len(tasks) > 1 else spent
    if alone > CROWDED * together:
        return Measured(spent)
    found = f"{n_threads} threads take {together:.0f} ms a question, one takes {alone:.0f}: other work seems to use the cores"
    return Measured(spent, spent * alone / together, found)


def sized(
    routed: RoutedModel,
    tasks: Sequence[str],
    config: SearchConfig,
    data: str | Path | None,
    asked: RetrofitConfig,
    available: Mapping[str, Mapping[str, int]],
) -> Sizes:
    """What fits into the time here and now (`drllm.retrofitting.sizes`); `InputError`, which says what is faster, where nothing does."""
    here = measured(routed, tasks, config, data)
    found, _, why = here.sizes(routed.n_layers, asked, available)
    if why:
        raise InputError(why)
    if here.crowded:
        say(f"{here.crowded}; --threads 1 is faster now")
    return found


def answer_seconds(routed: RoutedModel, data: TrainingData, policy: Policy) -> dict[str, float]:
    """An answer's seconds against the base's, one prompt at a time, in turns on tune questions of every task."""
    return seconds_on(routed, _prompts(data), policy)


def seconds_on(routed: RoutedModel, prompts: Prompts, policy: Policy) -> dict[str, float]:
    """The same on prompts that are given."""
    moved: Any = policy.to(routed.device)
    [row] = throughput(routed, moved, prompts, (1,), CLOCK_TOKENS, ROUNDS)
    return {key: row[key] for key in ("ratio", "ratio_low", "ratio_high")}


@torch.no_grad()
def token_ms(routed: RoutedModel, prompts: Prompts) -> float:
    """Milliseconds of a token of a plain forward of several prompts at once, here and now."""
    inputs = prompt_inputs(routed, prompts[:TIMED])
    times = []
    for _ in range(3):  # the first warms up
        started = time.perf_counter()
        routed.model(**inputs, use_cache=False).logits[0, -1, 0].item()
        times.append(time.perf_counter() - started)
    return 1000 * min(times[1:]) / inputs["input_ids"].numel()


def policy_rounding(routed: RoutedModel, data: TrainingData, policy: Policy) -> dict[str, Any]:
    """How far it depends on the float type (`drllm.evaluation.rounding`), on some of the same prompts."""
    moved: Any = policy.to(routed.device)
    found = rounding(routed, moved, _prompts(data)[:ROUNDED])
    counts = {"rough": sum(nats >= ROUGH for nats in found["policy"]), "rounded": len(found["policy"])}
    most = {"rounding": max(found["policy"]), "base_rounding": max(found["base"])}
    return counts | most | {"tested_in": type_name(routed.model.dtype)}


def _prompts(data: TrainingData) -> list[list[int]]:
    """Tune questions of every task by turns, `ROUNDS` of each at most."""
    by_task = [[list(question.context_ids) for question in ask.questions] for ask in data.tune(ROUNDS)]
    return [prompt for turn in itertools.zip_longest(*by_task) for prompt in turn if prompt is not None]
