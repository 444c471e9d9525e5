"""Which blocks to leave out: one after the other, where the KL to the base grows least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from drllm.core.files import read_json, write_json
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.healing.measuring import RouteMeter
from drllm.healing.teacher import Text
from drllm.model.routed import RoutedModel

TRIED = 8  # blocks that are tried at each step but the first: those that cost least when they were tried last

TOGETHER = 4  # routes measured between two writes


def choose_route(routed: RoutedModel, texts: Sequence[Text], n_passes: int, known_file: Path, max_step_tokens: int) -> Route:
    """The route of `n_passes` blocks, each run once. The KL of every route tried is written to `known_file`, and looked up there.

    Every block is tried first. Later ones are those that cost least when they were tried last: what a block costs changes little when
    another goes.
    """
    known: dict[str, float] = read_json(known_file, "delete it and run the same command again", dict) if known_file.is_file() else {}
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
