"""Blind baselines: routes with the same passes as a policy's, which look at no prompt. No torch."""

from collections.abc import Sequence

import numpy as np

from drllm.core.digest import number_of
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.core.span import Span, in_place

MAX_THROWS = 1000  # of a looped route's loops


def baseline_routes(name: str, routes: Sequence[Route], seed: str) -> list[Route]:
    """The routes of a blind baseline: "random" has the same passes and loops at random blocks, "shuffled" routes of other prompts."""
    rng = np.random.default_rng(number_of(f"{name}:{seed}"))
    if name == "random":
        return [scattered(route, rng) for route in routes]
    # A random cyclic order deals every route to another prompt.
    order = rng.permutation(len(routes))
    dealt: list[Route] = list(routes)
    for giver, taker in zip(order, np.roll(order, 1), strict=True):
        dealt[int(taker)] = routes[int(giver)]
    return dealt


def scattered(route: Route, rng: np.random.Generator) -> Route:
    """A route with the same passes in place and loops of the same lengths and strengths, all at random blocks.

    `InputError` for a path whose loops find no other place in `MAX_THROWS` throws.
    """
    if not route.loops:
        actions = rng.permutation([int(action) for action in route.in_place_actions]).tolist()
        return Route.of_visits([in_place(block, action) for block, action in enumerate(actions)])
    for _ in range(MAX_THROWS):  # loops that fall upon one another are thrown again
        found = _thrown(route, rng)
        if found is not None and _kinds(found) == _kinds(route):
            return found
    raise InputError(f"the loops of route {route} find no random place among {len(route)} blocks: evaluate it without the random baseline")


def _kinds(route: Route) -> tuple[list[int], list[tuple[int, float]]]:
    """What a blind baseline keeps of a route: passes in place, and its loops, wherever they are."""
    return sorted(route.in_place_actions), sorted((len(span.blocks), span.strength) for _, span in route.loops)


def _thrown(route: Route, rng: np.random.Generator) -> Route | None:
    """One throw, the loops first, then passes in place, none of them a skip in a loop of blocks that run; None where that cannot be."""
    loops, running = [], set[int]()
    for at, span in route.loops:
        end = int(rng.integers(len(span.blocks) - 1, len(route) - (at - span.last)))
        loops.append((end + at - span.last, Span(end - len(span.blocks) + 1, end, span.strength)))
        if all(route.in_place_actions[block] for block in span.blocks):
            running.update(loops[-1][1].blocks)
    passes = rng.permutation([int(action) for action in route.in_place_actions if action]).tolist()
    if len(running) > len(passes):
        return None
    inside = rng.permutation(sorted(running)).tolist()
    outside = rng.permutation([block for block in range(len(route)) if block not in running]).tolist()
    actions = dict.fromkeys(range(len(route)), 0) | dict(zip([*inside, *outside], passes, strict=False))
    visits = [list(in_place(block, actions[block])) for block in range(len(route))]
    for at, span in loops:
        visits[at].append(span)
    try:
        return Route.of_visits([tuple(visit) for visit in visits])
    except InputError:  # a block too often
        return None
