"""Routes that somebody says help, each beside the same change at other blocks, drawn blindly. No torch, no model."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.config import ScanConfig
from drllm.core.errors import InputError, first_line
from drllm.core.files import read_json_lines
from drllm.core.progress import say
from drllm.core.route import Route
from drllm.runs.scan_result import CLAIM_LEAD, CLAIMED, ELSEWHERE, Measured, Said
from drllm.scanning.measure import difference, measured
from drllm.scanning.race import by_round, schedule
from drllm.scanning.spans import Candidate, candidates, described, elsewhere, forwards_a_question, race_cost, rounds_cost
from drllm.searching.cost import listed_cost

N_ELSEWHERE = 5  # other places of a claimed change, at most
_SPAN = re.compile(r"(?:blocks? )?(\d+)(?: ?(?:-|to) ?(\d+))? (twice|skipped)")
_KEYS = 'claim (a route, or such as "12-15 twice"), and optionally gain (points, a number) and source'


def read_claims(texts: Sequence[str], n_layers: int | None = None) -> dict[Route, Said]:
    """Of --claimed: routes, spans of blocks such as "12-15 twice", .jsonl files of such; `n_layers` None: only whether they read."""
    return {claimed_route(str(one["claim"]), n_layers): Said(one.get("gain"), str(one.get("source", ""))) for one in _listed(texts)}


def claimed_route(text: str, n_layers: int | None) -> Route:
    """The route of one claim; `InputError` where it cannot be read, or leads past the model."""
    if (found := _SPAN.fullmatch(text.strip())) is None:
        try:
            return Route.parse(text, n_layers)
        except InputError as error:
            raise InputError(f"{error}; or say it as '12-14 twice' or '12-14 skipped'") from None
    first, last = int(found[1]), int(found[2] or found[1])
    full = Route.full(n_layers or last + 2)
    if not first <= last < len(full):
        raise InputError(f"{text!r} names blocks {first} to {last}, the model has {len(full)}, 0 to {len(full) - 1}")
    return full.loop(first, last) if found[3] == "twice" else full.edit(first, *[0] * (last - first + 1))


def _listed(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        if not text.endswith(".jsonl"):
            yield {"claim": text}
            continue
        for line, one in read_json_lines(Path(text), f"a line has {_KEYS}"):
            known = isinstance(one, dict) and {"claim"} <= set(one) <= {"claim", "gain", "source"}
            if not known or not isinstance(one.get("gain", 0), int | float):
                raise InputError(f"{text}, line {line}: got {first_line(one)}, expected {_KEYS}")
            yield one


@dataclass(frozen=True)
class Claim:
    """A claimed route, and the same change at other places; none where it fits nowhere else."""

    one: Candidate
    others: tuple[Route, ...]

    @property
    def routes(self) -> list[Route]:
        """All that is measured, the claim first."""
        return [self.one.route, *self.others]

    def forwards(self, n_questions: int) -> float:
        """Plain forwards of so many questions along the base and these."""
        return n_questions * listed_cost(len(self.one.route), self.routes)


def claim(route: Route, config: ScanConfig) -> Claim:
    """The claim with its other places, which depend on the route and the seed alone."""
    others = elsewhere(route, N_ELSEWHERE, random.Random(f"{config.seed}:{route}"))
    if not others:
        say(f"scan: {route} fits at no other blocks: nothing random stands beside it")
    return Claim(described(route, config.strength) or Candidate("", -1, -1, route), tuple(others))


def compared(found: Claim, verdicts_QR: np.ndarray, tasks: Sequence[str], config: ScanConfig) -> tuple[list[Measured], list[Measured]]:
    """The claim's row; and the mean over the other places, and the claim minus that mean, question by question.

    `verdicts_QR`: on new questions, the base first, then `found.routes`; `tasks`: of the questions.
    """
    rows = measured(CLAIMED, [found.one], {(CLAIMED, True): verdicts_QR[:, :2]}, {True: tasks}, config)
    if not found.others:
        return rows, []
    mean_Q, base_Q, ours_Q = verdicts_QR[:, 2:].mean(1), verdicts_QR[:, 0].astype(float), verdicts_QR[:, 1].astype(float)
    passes = float(np.mean([route.n_passes for route in found.others]))
    about = {"route": str(found.one.route), "passes": passes}
    beside = Measured(group=ELSEWHERE, **about, fresh=difference(mean_Q, base_Q, tasks, config))
    return rows, [beside, Measured(group=CLAIM_LEAD, **about, fresh=difference(ours_Q, mean_Q, tasks, config))]


def stages_of(n_layers: int, n_raced: int, n_fresh: int, claims: Sequence[Claim], config: ScanConfig) -> dict[str, float]:
    """About how many plain forwards each stage of a scan takes, by its name."""
    found = {}
    if n_raced:
        pool = candidates(n_layers, config.kinds, config.strength, config.max_span)
        sizes = schedule(n_raced, config.first_questions)
        counts = by_round([one.kind for one in pool], len(sizes), config.winners)
        rounds = ", ".join(f"{count} on {size}" for count, size in zip(counts, sizes, strict=True))
        raced = race_cost(sizes, rounds_cost(n_layers, pool, len(sizes), config.winners))
        found[f"the race: candidates on questions by round: {rounds}"] = n_raced + raced  # the base on every question comes first
        if n_fresh:
            n = config.winners + len(config.kinds) - 1
            drawn = random.Random(0).sample(pool, min(2 * n, len(pool)))  # winners and random spans; these on the raced questions, too
            again = n_fresh * forwards_a_question(n_layers, drawn) + n_raced * forwards_a_question(n_layers, drawn[:n])
            found[f"winners and random spans on {n_fresh} new questions"] = again
    for one in claims if n_fresh else ():
        found[f"{one.one.route} as claimed and at {len(one.others)} other places, on {n_fresh} questions"] = one.forwards(n_fresh)
    return found
