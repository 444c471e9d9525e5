"""Seconds of generation by the base and by a policy, in turn on the same prompts: the paper's throughput (table 7) and latency.

Base and policy take turns, in an order that alternates, so that a busy machine slows both alike; each round has other prompts. The
figure is the geometric mean of the rounds' ratios, with the t interval of their logarithms.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.model.pool import torch_threads
from drllm.model.prompts import left_pad
from drllm.model.routed import RoutedModel
from drllm.policies.policy import RouteSource
from drllm.policies.timed import TimedPolicy
from drllm.scoring.loglik import LoglikScorer
from drllm.scoring.scorer import askable, scorer_of
from drllm.searching.cost import listed_cost
from drllm.tasks import load_task

TIMED = 8  # questions of a task, of which the one of middling length is timed
DECODED = 8  # answers of other routes, at most, that are decoded beside the base's to time one
WARM_TOKENS = 4

Prompts = Sequence[Sequence[int]]  # token ids


def throughput(
    routed: RoutedModel, policy: RouteSource, prompts: Prompts, batches: Sequence[int], n_tokens: int, rounds: int
) -> list[dict[str, float]]:
    """One row a batch size: seconds and tokens a second of the base and of the policy, and the ratio of their seconds.

    Rounds take the prompts in their order, again from the first where there are too few; every row generates `n_tokens`.
    """
    rows = []
    with Progress("throughput", len(batches) * rounds) as progress:
        for size in batches:
            found = _in_turn(routed, policy, prompts, size, n_tokens, rounds, progress)
            made = size * found["tokens"]
            rows.append({"batch": size} | {f"{side}_tokens_s": made / found[side] for side in ("base", "routed")} | found)
    return rows


def latency(
    routed: RoutedModel, policy: RouteSource, prompts: Prompts, batches: Sequence[int], n_tokens: int, rounds: int
) -> dict[str, float]:
    """Seconds of long answers to one prompt each, by the base and by the policy, and those that the policy takes to decide."""
    with Progress("latency", rounds) as progress:
        found = _in_turn(routed, policy, prompts, batches[0], n_tokens, rounds, progress)
    timed = TimedPolicy(policy)  # apart: its own clock would slow what is measured
    for round_ in range(rounds + 1):
        ids_BT, mask_BT = _batch(routed, prompts, round_, 1)
        _generate(routed, timed, ids_BT, mask_BT, 1)
    return found | {"router": float(np.median(timed.prefills[1:]))}  # the first warms up


@torch.no_grad()
def model_ratio(model: Any, base: Any, ids_BT: Tensor, n_tokens: int, rounds: int) -> dict[str, float]:
    """Seconds that a model takes for a greedy answer of `n_tokens`, against another's, both as transformers runs them."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    length = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "do_sample": False}
    with Progress("clock", rounds + 1) as progress:
        for round_ in range(rounds + 1):  # the first warms up
            for side, one in ((0, model), (1, base)) if round_ % 2 else ((1, base), (0, model)):
                call = partial(one.generate, ids_BT, attention_mask=torch.ones_like(ids_BT), **length)
                seconds[side].append(_timed(ids_BT.device, call)[0])
            progress.advance(1)
    return _ratio(seconds[0][1:], seconds[1][1:])


def batched_ms(routed: RoutedModel, tasks: Sequence[str], config: Any, data: str | Path | None) -> float:
    """Milliseconds of a plain forward as searches and scans run it, many at once: the mean over the tasks, each timed on one question.

    `config` says how answers are judged. On a CPU one thread is clocked and divided by torch's threads: as many workers share the work.
    Where answers are generated the unit is a whole answer of the base, decoded beside others.
    """
    found, n_layers = [], routed.n_layers
    n_threads = torch.get_num_threads() if routed.device.type == "cpu" else 1
    for name in tasks:
        loaded = load_task(name, data)
        scorer = scorer_of(routed, loaded.task, config)
        step = 1 if isinstance(scorer, LoglikScorer) else -(-n_layers // DECODED)
        routes = [Route([int(block != at) for block in range(n_layers)]) for at in range(-1, n_layers, step)]  # all, then all but another
        questions, reasons = askable(scorer, loaded.task, loaded.select("tune" if loaded.task.only_measured else "fit", TIMED))
        if not questions:
            raise InputError(f"none of the first {len(reasons)} questions of {name} can be asked ({next(iter(reasons.values()))})")
        middle = sorted(questions, key=lambda one: one.n_tokens)[len(questions) // 2]  # of middling length
        with torch_threads(1 if n_threads > 1 else 0):  # beside other jobs several threads wait for each other, up to 45 times as long
            scorer.score_all([middle], routes[:1])  # the first warms up
            found.append(_timed(routed.device, partial(scorer.score_all, [middle], routes))[0] / listed_cost(n_layers, routes))
    return 1000 * float(np.mean(found)) / n_threads


def _in_turn(
    routed: RoutedModel, policy: RouteSource, prompts: Prompts, size: int, n_tokens: int, rounds: int, progress: Progress
) -> dict[str, float]:
    """Median seconds of the base and of the policy, their ratio with its 95 % interval, the passes of the policy's routes, and the tokens.

    Fewer tokens are generated where the context ends before.
    """
    base = Route.full(routed.n_layers)
    limit = getattr(routed.config, "max_position_embeddings", None)
    if limit is not None:
        n_tokens = max(1, min(n_tokens, limit - max(map(len, prompts))))
    seconds: dict[str, list[float]] = {"base": [], "routed": []}
    passes: list[int] = []
    for round_ in range(rounds):
        ids_BT, mask_BT = _batch(routed, prompts, round_, size)
        if not round_:
            for chosen in (base, policy):
                _generate(routed, chosen, ids_BT, mask_BT, min(n_tokens, WARM_TOKENS))
        sides = [("base", base), ("routed", policy)]
        for side, chosen in sides if round_ % 2 == 0 else sides[::-1]:
            spent, outputs = _generate(routed, chosen, ids_BT, mask_BT, n_tokens)
            seconds[side].append(spent)
            passes += [output.route.n_passes for output in outputs] if side == "routed" else []
        progress.advance(1)
    medians = {side: float(np.median(found)) for side, found in seconds.items()}
    return medians | _ratio(seconds["routed"], seconds["base"]) | {"passes": float(np.mean(passes)), "tokens": n_tokens}


def _ratio(ours: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Seconds against the base's, from rounds in turn, with the 95 % interval."""
    logs = np.log(np.array(ours) / np.array(base))
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5)
    low, middle, high = (float(np.exp(logs.mean() + shift)) for shift in (-half, 0.0, half))
    return {"ratio": middle, "ratio_low": low, "ratio_high": high}


def _batch(routed: RoutedModel, prompts: Prompts, round_: int, size: int) -> tuple[Tensor, Tensor]:
    return left_pad([prompts[(round_ * size + row) % len(prompts)] for row in range(size)], routed.pad_id, routed.device)


def _generate(routed: RoutedModel, policy: Any, ids_BT: Tensor, mask_BT: Tensor, n_tokens: int) -> tuple[float, list[Any]]:
    length: dict[str, Any] = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens}
    call = partial(routed.generate, input_ids=ids_BT, attention_mask=mask_BT, policy=policy, do_sample=False, **length)
    return _timed(routed.device, call)


def _timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    waits = torch.cuda.synchronize if device.type == "cuda" else lambda: None  # a GPU works on after the call has returned
    waits()
    started = time.perf_counter()
    result = call()
    waits()
    return time.perf_counter() - started, result
