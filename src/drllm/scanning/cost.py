"""What a scan costs before it runs, in plain forwards. Who goes on from round to round is drawn blindly. No torch."""

from __future__ import annotations

import random
from collections.abc import Sequence

from drllm.core.config import ScanConfig
from drllm.scanning.claims import Claim
from drllm.scanning.race import by_round, schedule
from drllm.scanning.spans import Candidate, candidates, forwards_a_question, race_cost, rounds_cost
from drllm.searching.cost import listed_cost


def race_guess(n_layers: int, pool: Sequence[Candidate], n_raced: int, config: ScanConfig) -> float:
    """About how many plain forwards the race takes, the base on every question before it among them."""
    sizes = schedule(n_raced, config.first_questions)
    return n_raced + race_cost(sizes, rounds_cost(n_layers, pool, len(sizes), config.winners))


def again_guess(n_layers: int, pool: Sequence[Candidate], n_raced: int, n_fresh: int, config: ScanConfig) -> float:
    """About how many plain forwards: winners and random spans on new questions, the random ones on the others, too."""
    n = config.winners + len(config.kinds) - 1
    drawn = random.Random(0).sample(list(pool), min(2 * n, len(pool)))
    return n_fresh * forwards_a_question(n_layers, drawn) + n_raced * forwards_a_question(n_layers, drawn[:n])


def claim_cost(n_layers: int, one: Claim, n_fresh: int) -> float:
    """Plain forwards of a claim and its other places on new questions."""
    return n_fresh * listed_cost(n_layers, one.routes)


def stages_of(n_layers: int, n_raced: int, n_fresh: int, claims: Sequence[Claim], config: ScanConfig) -> dict[str, float]:
    """Plain forwards of each stage by its name."""
    found = {}
    if n_raced:
        pool = candidates(n_layers, config.kinds, config.strength, config.max_span)
        sizes = schedule(n_raced, config.first_questions)
        counts = by_round([one.kind for one in pool], len(sizes), config.winners)
        rounds = ", ".join(f"{count} on {size}" for count, size in zip(counts, sizes, strict=True))
        found[f"the race: candidates on questions by round: {rounds}"] = race_guess(n_layers, pool, n_raced, config)
        if n_fresh:
            found[f"winners and random spans on {n_fresh} new questions"] = again_guess(n_layers, pool, n_raced, n_fresh, config)
    for one in claims if n_fresh else ():
        name = f"{one.one.route} as claimed and at {len(one.others)} other places, on {n_fresh} questions"
        found[name] = claim_cost(n_layers, one, n_fresh)
    return found
