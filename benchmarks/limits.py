"""What mixed routes could save at best in transformers: `t_other(B) + sum over blocks of t_block(rows executing it)`.

`t_block(n)` is what one block takes in a step of n rows and `t_other(B)` what a step of B rows takes beside its blocks, by clocks around
the blocks of a model that drllm has not touched.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from drllm import Route
from drllm.model.prompts import left_pad
from timing import Turns, now

Parts = tuple[float, float]  # seconds in the blocks of a step, and beside them


class _Read(StoppingCriteria):
    """Notes after each step what its thread has spent in blocks so far."""

    def __init__(self, spent: dict[int, float]):
        self.spent, self.after = spent, [0.0]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.after.append(self.spent[threading.get_ident()])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def _clocked(layers: Sequence[Any], device: torch.device) -> Iterator[dict[int, float]]:
    """Clocks around blocks: the seconds spent in them, by the thread that runs them."""
    spent: dict[int, float] = defaultdict(float)

    def timed(forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = now(device)
            out = forward(*args, **kwargs)
            spent[threading.get_ident()] += now(device) - started
            return out

        return run

    for layer in layers:
        layer.forward = timed(layer.forward)
    try:
        yield spent
    finally:
        for layer in layers:
            del layer.forward


def seconds_by_rows(
    stock: Any, prompts: Sequence[list[int]], sizes: Sequence[int], n_new: int, pad_id: int, rng: random.Random
) -> dict[int, tuple[Parts, Parts]]:
    """Of the first n prompts, for each n of `sizes`: the parts of the prefill and of a mean decoding step; all sizes in turns."""

    def answer(n: int, reads: _Read, criteria: StoppingCriteriaList) -> None:
        ids, mask = left_pad(list(prompts[:n]), pad_id, stock.device)
        stock.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=n_new,
            do_sample=False,
            pad_token_id=pad_id,
            stopping_criteria=StoppingCriteriaList([reads, *criteria]),
        )

    with _clocked(stock.model.layers, stock.device) as spent:
        reads = {n: _Read(spent) for n in sizes}
        turns = {n: Turns(functools.partial(answer, n, reads[n])) for n in sizes}
        waiting = list(sizes)
        while waiting:
            rng.shuffle(waiting)
            waiting = [n for n in waiting if turns[n].take()]
    found = {}
    for n in sizes:
        inside, steps = reads[n].after, turns[n].seconds
        decoding = len(steps) - 1
        blocks = (inside[-1] - inside[1]) / decoding
        found[n] = ((inside[1], steps[0] - inside[1]), (blocks, sum(steps[1:]) / decoding - blocks))
    return found


def limit_of(routes: Sequence[Route], by_rows: dict[int, Parts], n_layers: int) -> float:
    """Seconds of a step that pays each block for the rows that run it and nothing else."""
    rows = [sum(route[block] > n_pass for route in routes) for block in range(n_layers) for n_pass in (0, 1)]
    return by_rows[len(routes)][1] + sum(by_rows[n][0] / n_layers for n in rows if n)
