"""How far routes are from the base: on some texts, prompt by prompt along its answer, and which blocks can be left out for least of it.

What is measured for a run is kept in its folder, and never computed again.

Shapes: B texts of a step, W its width, D hidden size, V vocabulary, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drllm.core.digest import json_digest
from drllm.core.errors import InputError
from drllm.core.files import read_json, remove_partials, write_json
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.healing.prompts import Ids
from drllm.healing.teacher import CHUNK, Text, divergence, greedy, joined
from drllm.model.routed import RoutedModel
from drllm.runs.stages import read_kept
from drllm.scoring.prefixes import PrefixRunner, padded_width
from drllm.scoring.route_prediction import prompt_inputs, prompt_steps

HEAD_TOKENS = 128  # that go through the output head together
STATE_BYTES = 2**30  # of prefixes that routes share
TRIED = 8  # blocks that are tried at each step but the first: those that cost least when they were tried last
TOGETHER = 4  # routes measured between two writes
_ADVICE = "delete it and run the same command again"


class Distance(NamedTuple):
    """Of what a model says from what the base says: nats a token, and the share of tokens whose most likely successor is the base's.

    Both are means by the weights of the texts.
    """

    kl: float
    same: float


def own_rows(logits_BWV: Tensor, texts: Sequence[Text]) -> Tensor:
    """The logits (N, V) of left-padded texts, without those of pads."""
    return torch.cat([row[-len(text.ids) :] for row, text in zip(logits_BWV, texts, strict=True)])


@torch.no_grad()
def distance(routed: RoutedModel, texts: Sequence[Text], max_step_tokens: int, forward: Callable[..., Any]) -> Distance:
    """Of a forward that takes what the model's takes, on these texts; a mean over their tokens, by their weights."""
    total, same, n = 0.0, 0.0, 0.0
    for members, inputs in prompt_steps(routed, [text.ids for text in texts], max_step_tokens, by_length=True):
        step = [texts[member] for member in members]
        logits_NV = own_rows(forward(**inputs).logits, step).float()
        top, logs, rest, weights = joined(step, logits_NV.device)
        total += float((divergence(logits_NV, top, logs, rest) * weights).double().sum())
        same += float(weights[logits_NV.argmax(1) == top[:, 0]].double().sum())
        n += float(weights.double().sum())
    return Distance(total / n, same / n)


class RouteMeter:
    """The KL of routes on some texts; what their paths share is computed once."""

    def __init__(self, routed: RoutedModel, texts: Sequence[Text], max_step_tokens: int):
        self.routed, self.texts = routed, texts
        self.runner = PrefixRunner(routed, max_step_tokens, STATE_BYTES)
        with torch.no_grad():
            self._roots = self.runner.open_all([text.ids for text in texts], partial(prompt_inputs, routed), (0,), padded_width)

    def kls(self, routes: Sequence[Route]) -> dict[Route, float]:
        """In nats a token, by the texts' weights, of each route; several together fill steps. `InputError` where one is NaN or infinite."""
        weights = [text.weights.double() for text in self.texts]
        total = sum(float(part.sum()) for part in weights)
        found = self.by_token(routes)
        return {route: sum(float(kls @ part) for kls, part in zip(of, weights, strict=True)) / total for route, of in found.items()}

    @torch.no_grad()
    def by_token(self, routes: Sequence[Route]) -> dict[Route, list[Tensor]]:
        """Of each route, text by text: the KL (N,) behind each token, float64. `InputError` where one is NaN or infinite."""
        for route in routes:
            for index, root in enumerate(self._roots):
                self.runner.submit(root, route, (route, index))
        found: dict[Any, Tensor] = {}
        for tag, node in self.runner.ends(len(routes) * len(self.texts)):
            assert isinstance(tag, tuple)
            assert node.state is not None
            found[tag] = self._of(node.state, self.texts[tag[1]])
            self.runner.release(node)
        for (route, _), kls_N in found.items():
            if not math.isfinite(kl := float(kls_N.sum())):
                raise InputError(f"the KL of route {route} is {kl}: load the base in bfloat16 or float32")
        return {route: [found[route, index] for index in range(len(self.texts))] for route in routes}

    def _of(self, state_WD: Tensor, text: Text) -> Tensor:
        """Behind each of a text's tokens (N,), from the states behind its last block."""
        states_ND, found = state_WD[-len(text.ids) :], []
        for start in range(0, len(states_ND), HEAD_TOKENS):
            part = slice(start, start + HEAD_TOKENS)
            logits_NV = self.runner.finish(states_ND[part]).float()
            kept = (one[part].to(logits_NV.device) for one in (text.top, text.logs, text.rest))
            found.append(divergence(logits_NV, *kept).double().cpu())
        return torch.cat(found)


def choose_route(routed: RoutedModel, texts: Sequence[Text], n_passes: int, known_file: Path, max_step_tokens: int) -> Route:
    """The route of `n_passes` blocks, each run once. The KL of every route tried is written to `known_file`, and looked up there.

    Every block is tried first. Later ones are those that cost least when they were tried last: what a block costs changes little when
    another goes.
    """
    known: dict[str, float] = read_json(known_file, _ADVICE, dict) if known_file.is_file() else {}
    meter: RouteMeter | None = None
    costs = dict.fromkeys(range(routed.n_layers), -math.inf)
    route, so_far = Route.full(routed.n_layers), 0.0
    sizes = [routed.n_layers, *[TRIED] * (routed.n_layers - n_passes - 1)][: routed.n_layers - n_passes]
    with Progress("heal: choosing the route", sum(sizes)) as progress:
        for size in sizes:
            tried = sorted((block for block in costs if route[block]), key=lambda block: (costs[block], block))[:size]
            note = f"({routed.n_layers - route.n_passes} left out, KL {so_far:.3f})"
            new = [one for block in tried if str(one := route.edit(block, 0)) not in known]
            progress.advance(len(tried) - len(new), note)
            for start in range(0, len(new), TOGETHER):
                meter = meter or RouteMeter(routed, texts, max_step_tokens)
                known |= {str(one): kl for one, kl in meter.kls(new[start : start + TOGETHER]).items()}
                write_json(known_file, known)
                progress.advance(len(new[start : start + TOGETHER]), note)
            costs |= {block: known[str(route.edit(block, 0))] - so_far for block in tried}
            best = min(tried, key=lambda block: (costs[block], block))
            route = route.edit(best, 0)
            so_far = known[str(route)]
    return route


def answer_kls(
    routed: RoutedModel, texts: Sequence[Text], prompts: Sequence[Ids], routes: Sequence[Route], folder: Path, max_step_tokens: int
) -> np.ndarray:
    """The KL of each route on each prompt (prompts, routes), in nats a token of the base's answer, which `texts` have behind it."""
    found: list[list[float]] = []
    with Progress("the KL of every route", len(prompts)) as progress:
        for path, chunk in _chunks(folder, "kl", prompts):
            of = texts[len(found) : len(found) + len(chunk)]
            key = json_digest([[list(text.ids) for text in of], [len(ids) for ids in chunk], [str(route) for route in routes]])
            if (kept := read_kept(path, key, _ADVICE)) is None:
                by_route = RouteMeter(routed, of, max_step_tokens).by_token(routes)
                rows = zip(chunk, *(by_route[route] for route in routes), strict=True)
                kept = {"key": key, "kl": [[float(kls_N[len(ids) - 1 :].mean()) for kls_N in of] for ids, *of in rows]}
                write_json(path, kept)
            found += kept["kl"]
            progress.advance(len(chunk))
    return np.array(found).reshape(len(prompts), len(routes))


def greedy_answers(
    routed: RoutedModel, prompts: Sequence[Ids], routes: Sequence[Iterable[Route]], new_tokens: int, folder: Path
) -> list[dict[Route, tuple[int, ...]]]:
    """Of each prompt, the greedy answer along each of its `routes`: token ids, its end token among them."""
    found: list[dict[Route, tuple[int, ...]]] = []
    with Progress("greedy answers", len(prompts)) as progress:
        for path, chunk in _chunks(folder, "answers", prompts):
            wanted = [sorted(map(str, of)) for of in routes[len(found) : len(found) + len(chunk)]]
            key = json_digest([[list(ids) for ids in chunk], wanted, new_tokens])
            if (kept := read_kept(path, key, _ADVICE)) is None:
                kept = {"key": key, "answers": _answered(routed, chunk, wanted, new_tokens)}
                write_json(path, kept)
            answers: list[Mapping[str, Any]] = kept["answers"]
            found += [{Route.parse(text): tuple(ids) for text, ids in of.items()} for of in answers]
            progress.advance(len(chunk))
    return found


def _answered(routed: RoutedModel, prompts: Sequence[Ids], routes: Sequence[Sequence[str]], new_tokens: int) -> list[dict[str, list[int]]]:
    """Route by route, so that an answer along a route depends on the prompts of its file alone."""
    found: list[dict[str, list[int]]] = [{} for _ in prompts]
    for text in sorted({text for of in routes for text in of}):
        places = [place for place, of in enumerate(routes) if text in of]
        answers = greedy(routed, [prompts[place] for place in places], Route.parse(text), new_tokens)
        for place, answer in zip(places, answers, strict=True):
            found[place][text] = answer
    return found


def _chunks(folder: Path, name: str, prompts: Sequence[Ids]) -> Iterable[tuple[Path, Sequence[Ids]]]:
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    for index, start in enumerate(range(0, len(prompts), CHUNK)):
        yield folder / f"{name}-{index:05d}.json", prompts[start : start + CHUNK]
