"""Candidates of a scan: every span of blocks, run once more, run once more at part strength, or skipped; and what they cost. No torch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from drllm.core.route import Route
from drllm.core.span import in_place
from drllm.scanning.race import shares
from drllm.searching.cost import listed_cost


@dataclass(frozen=True, slots=True)
class Candidate:
    """One span of blocks and what is done with it."""

    kind: str  # "loop" (run once more), "damped" (once more at part strength) or "skip"
    first: int
    last: int  # in the span, too
    route: Route  # the base's with that change

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def candidate(kind: str, first: int, last: int, n_layers: int, strength: float) -> Candidate:
    full = Route.full(n_layers)
    if kind == "skip":
        return Candidate(kind, first, last, full.edit(first, *[0] * (last + 1 - first)))
    return Candidate(kind, first, last, full.loop(first, last, strength if kind == "damped" else 1.0))


def candidates(n_layers: int, kinds: Sequence[str], strength: float, max_span: int = 0) -> list[Candidate]:
    """Every span of at most `max_span` blocks (0: any) under every kind; the skip of all blocks is none.

    In an order in which routes that begin alike stand together, so that what they share is still in memory.
    """
    longest = max_span or n_layers
    spans = [(first, last) for last in range(n_layers) for first in range(max(0, last + 1 - longest), last + 1)]
    return [
        candidate(kind, first, last, n_layers, strength)
        for first, last in spans
        for kind in kinds
        if kind != "skip" or last + 1 - first < n_layers
    ]


def described(route: Route, strength: float) -> Candidate | None:
    """The candidate that a route is; None for a route that changes the base in another way."""
    n_layers = len(route)
    changed = [block for block in range(n_layers) if route[block] != 1]
    if not changed or (len(changed) == n_layers and route[0] == 0):
        return None
    kinds = ("skip",) if route[changed[0]] == 0 else ("loop", "damped")
    alike = [candidate(kind, changed[0], changed[-1], n_layers, strength) for kind in kinds]
    return next((one for one in alike if one.route == route), None)


def elsewhere(route: Route, n: int, generator: random.Random) -> list[Route]:
    """The same change of the base at other blocks: at most `n` places, drawn blindly; none where it fits nowhere else, or changes nothing.

    What runs at the changed blocks is moved by so many blocks, loops with their spans.
    """
    n_layers, visits = len(route), route.visits
    changed = [block for block, visit in enumerate(visits) if visit != in_place(block, 1)]
    if not changed:
        return []
    first = min([changed[0], *(span.first for block in changed for span in visits[block])])
    last = max(changed)
    moves = [by for by in range(-first, n_layers - last) if by]
    return [_moved(route, first, last, by) for by in generator.sample(moves, min(n, len(moves)))]


def _moved(route: Route, first: int, last: int, by: int) -> Route:
    """The route with what runs at blocks `first` to `last` moved."""
    visits, moved = route.visits, [in_place(block, 1) for block in range(len(route))]
    for block in range(first, last + 1):
        moved[block + by] = tuple(span._replace(first=span.first + by, last=span.last + by) for span in visits[block])
    return Route.of_visits(moved)


def random_spans(chosen: Sequence[Candidate], pool: Sequence[Candidate], seed: int) -> list[Candidate]:
    """For each chosen candidate another of the same kind and length, drawn blindly: none twice, none that is chosen itself.

    Where every span of that length is taken, the length is the nearest that has one; where the whole kind is, there is none.
    """
    generator, taken, found = random.Random(seed), set(chosen), []
    for one in chosen:
        free = [other for other in pool if other.kind == one.kind and other not in taken]
        if not free:
            continue
        nearest = min(abs(other.length - one.length) for other in free)
        drawn = generator.choice([other for other in free if abs(other.length - one.length) == nearest])
        taken.add(drawn)
        found.append(drawn)
    return found


def forwards_a_question(n_layers: int, chosen: Sequence[Candidate]) -> float:
    """Plain forwards that one question costs along the base's route and these."""
    return listed_cost(n_layers, [one.route for one in chosen])


def rounds_cost(n_layers: int, pool: Sequence[Candidate], n_rounds: int, n_kept: int) -> list[float]:
    """About how many plain forwards a question costs in each round of a race. Who goes on is drawn blindly: fewer share less.

    The first rounds of a longer race cost the same.
    """
    generator = random.Random(0)
    by_kind = [[one for one in pool if one.kind == kind] for kind in dict.fromkeys(one.kind for one in pool)]
    counts = [shares(len(alike), n_rounds, n_kept) for alike in by_kind]
    return [
        forwards_a_question(
            n_layers, [one for alike, of in zip(by_kind, counts, strict=True) for one in generator.sample(alike, of[number])]
        )
        for number in range(n_rounds)
    ]


def race_cost(sizes: Sequence[int], each: Sequence[float]) -> float:
    """Plain forwards of a race: `sizes` are questions after each round, `each` what one costs in it; of more rounds the first count."""
    new = [stop - start for start, stop in itertools.pairwise([0, *sizes])]
    return sum(n * cost for n, cost in zip(new, each, strict=False))
