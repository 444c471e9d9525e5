"""The routes whose speed benchmarks measure on a model of some depth. They are made by hand: what they answer is not looked at."""

from __future__ import annotations

import random

from drllm import Route

MODEL = "smollm2-135m-q4"
KEPT, LAST = 24, 8  # passes of the common route; blocks at the end that all nested routes keep
LOOP = range(12, 16)  # blocks that the looped route runs twice


def _cut(n_layers: int, before: int, n: int) -> str:
    """Skips the `n` blocks before block `before`."""
    return "1" * (before - n) + "0" * n + "1" * (n_layers - before)


def common(n_layers: int) -> str:
    """24 passes: what is skipped ends eight blocks before the end. `SystemExit` for a model that has no more blocks."""
    if n_layers <= KEPT:
        raise SystemExit(f"the timed routes are for models of more than {KEPT} blocks, this one has {n_layers}")
    return _cut(n_layers, n_layers - LAST, n_layers - KEPT)


def nested(n_layers: int) -> list[str]:
    """Four: each skips what the one before skips, and three more; the first is the base's."""
    return [_cut(n_layers, n_layers - LAST, n) for n in (0, 3, 6, 9)]


def deeper(n_layers: int) -> list[str]:
    """Four nested ones that skip six to fifteen blocks."""
    return [_cut(n_layers, n_layers - LAST, n) for n in (6, 9, 12, 15)]


def looped(n_layers: int) -> str:
    """A span of four blocks twice."""
    return f"0-{LOOP[-1]},{LOOP[0]}-{n_layers - 1}"


def in_place(n_layers: int) -> str:
    """The passes of `looped`, each block's one after the other."""
    return "".join("2" if block in LOOP else "1" for block in range(n_layers))


def different(n: int, n_layers: int, seed: int = 0) -> list[Route]:
    """As many routes as rows, six skips each at places of their own."""
    rng = random.Random(seed)
    routes: list[Route] = []
    while len(routes) < n:
        skipped = set(rng.sample(range(1, n_layers - 1), 6))
        route = Route([0 if block in skipped else 1 for block in range(n_layers)])
        routes += [route] if route not in routes else []
    return routes
