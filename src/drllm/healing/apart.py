"""How far routes are from the base on single prompts: the KL of their next tokens along the base's answer, and the answers they give.

Both are kept in the run folder, some prompts a file, and never computed again.

Shapes: N prompts, K routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.digest import json_digest
from drllm.core.files import remove_partials, write_json
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.healing.measuring import RouteMeter
from drllm.healing.prompts import Ids
from drllm.healing.teacher import CHUNK, Text, greedy
from drllm.model.routed import RoutedModel
from drllm.runs.stages import read_kept

_ADVICE = "delete it and run the same command again"


def answer_kls(
    routed: RoutedModel, texts: Sequence[Text], prompts: Sequence[Ids], routes: Sequence[Route], folder: Path, max_step_tokens: int
) -> np.ndarray:
    """(N, K): of each route on each prompt, the mean over the tokens of the base's answer, in nats a token.

    Args:
        texts: of the prompts, with an answer behind each (`Teacher`).
        folder: of the files.
    """
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
    """The file of each part of the prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    for index, start in enumerate(range(0, len(prompts), CHUNK)):
        yield folder / f"{name}-{index:05d}.json", prompts[start : start + CHUNK]
