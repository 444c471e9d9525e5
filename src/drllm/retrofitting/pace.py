"""How fast questions are answered here and now, which the sizes of a retrofit's stages follow from.

At its end: what answers take, and how far they depend on the float type.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import RetrofitConfig, SearchConfig
from drllm.core.text import type_name
from drllm.evaluation.clock import Prompts, batched_ms, throughput
from drllm.evaluation.rounding import rounding
from drllm.methods.training_data import TrainingData
from drllm.model.routed import RoutedModel
from drllm.policies.policy import Policy
from drllm.retrofitting.sizes import Sizes, sizes_of
from drllm.runs.recommendation import ROUGH
from drllm.scoring.route_prediction import prompt_inputs

ROUNDS, CLOCK_TOKENS = 8, 16
TIMED = 8  # prompts of one timed forward
ROUNDED = 16  # prompts that are run in both float types


def sized(
    routed: RoutedModel,
    tasks: Sequence[str],
    config: SearchConfig,
    data: str | Path | None,
    asked: RetrofitConfig,
    available: Mapping[str, Mapping[str, int]],
) -> Sizes:
    """What fits into the time here and now (`drllm.retrofitting.sizes`); `InputError`, which says how many minutes would do, else."""
    return sizes_of(routed.n_layers, batched_ms(routed, tasks, config, data), asked, available)


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
