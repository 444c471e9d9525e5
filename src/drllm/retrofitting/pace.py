"""How fast prompts are run here and now, and how many steps and prompts of a healing fit into a user's minutes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from drllm.core.config import HealConfig
from drllm.core.errors import InputError
from drllm.core.route import kept_passes
from drllm.evaluation.clock import Prompts, throughput
from drllm.healing.measuring import TRIED
from drllm.methods.training_data import TrainingData
from drllm.model.routed import RoutedModel
from drllm.policies.policy import Policy
from drllm.scoring.route_prediction import prompt_inputs

ROUNDS, CLOCK_TOKENS = 8, 16
TIMED = 8  # prompts of one timed forward
# Of the time: what healing may take, and measuring on the prompts of each of the two other parts; the rest is for what cannot be foreseen.
HEALING, MEASURING = 0.55, 0.15
TRAINED = 4  # a token of a training step: forward and backward through low-rank weights
DECODED = 4  # a token that is decoded beside others
ALONG = 3  # routes along which an operating point sends a calibrate prompt, the base's among them
LEAST = {"heal": 40, "select": 20, "calibrate": 20}  # prompts, fewer say nothing
FEWEST_STEPS = 10


def answer_seconds(routed: RoutedModel, data: TrainingData, policy: Policy) -> dict[str, float]:
    """An answer's seconds against the base's, one prompt at a time, in turns on tune questions of every task, `ROUNDS` of each at most."""
    by_task = [[list(question.context_ids) for question in ask.questions] for ask in data.tune(ROUNDS)]
    return seconds_on(routed, [prompt for turn in itertools.zip_longest(*by_task) for prompt in turn if prompt is not None], policy)


def seconds_on(routed: RoutedModel, prompts: Prompts, policy: Policy) -> dict[str, float]:
    """The same on prompts that are given."""
    [row] = throughput(routed, routed.as_source(policy), prompts, (1,), CLOCK_TOKENS, ROUNDS)
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


@dataclass(frozen=True)
class PromptSizes:
    """What fits of a retrofit from prompts alone."""

    steps: int  # of each healing
    select: int  # prompts
    calibrate: int


def check_parts(parts: Mapping[str, Sequence[object]]) -> None:
    """`InputError` for too few prompts."""
    if any(len(parts[name]) < least for name, least in LEAST.items()):
        n, needed = sum(map(len, parts.values())), 2 * max(LEAST.values())
        raise InputError(f"got {n} different prompts that are short enough: give {needed} at least; a promise of 1 % needs 1,200")


def sizes_of_prompts(
    parts: Mapping[str, Sequence[Sequence[int]]],
    token_ms: float,
    minutes: float,
    config: HealConfig,
    shares: Sequence[float],
    n_layers: int,
) -> PromptSizes:
    """What fits, by costs in tokens of a plain forward; `InputError`, which says how many minutes would do, where too little does."""
    tokens, new, k = 60_000 * minutes / token_ms, config.new_tokens, len(shares)
    length = sum(map(len, parts["heal"])) / len(parts["heal"])
    choosing, step = costs_of_healing(parts["heal"], config, shares, n_layers)
    steps = min(config.steps, int((HEALING * tokens - choosing) / step))
    if steps < min(FEWEST_STEPS, config.steps):
        needed = math.ceil((choosing + FEWEST_STEPS * step) / HEALING * token_ms / 6_000) / 10
        raise InputError(f"{minutes:g} minutes are too short to heal {k} routes here: give --minutes {needed:g}, or fewer --budgets")
    select = (length + new) * (_told(length, new) + k)
    calibrate = ALONG * (length + DECODED * new)
    found = {name: max(LEAST[name], int(MEASURING * tokens / cost)) for name, cost in (("select", select), ("calibrate", calibrate))}
    return PromptSizes(steps, *(min(len(parts[name]), n) for name, n in found.items()))


def costs_of_healing(prompts: Sequence[Sequence[int]], config: HealConfig, shares: Sequence[float], n_layers: int) -> tuple[float, float]:
    """(choosing the routes, a training step of each of them and what the base says of its prompts)."""
    length = sum(map(len, prompts)) / len(prompts)
    tried = n_layers + TRIED * max(0, n_layers - kept_passes(min(shares), n_layers) - 1)
    choosing = tried * min(config.choose_on, len(prompts)) * (length + config.new_tokens) / 2  # half of each path is shared
    return choosing, config.step_tokens * (TRAINED * len(shares) + _told(length, config.new_tokens))


def _told(length: float, new: int) -> float:
    """The base's answer and its distributions, of a token of a prompt or an answer."""
    return (length + DECODED * new) / (length + new) + 1
