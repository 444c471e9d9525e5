"""The routes that a tree asks for, and the one it chooses, are those of earlier versions: records depend on them.

`tests/golden/tree_routes.json` holds a digest of every case below. A change of these digests changes what a search finds and whether an
interrupted search can be resumed. `python tests/searching/test_tree_routes.py` (with `src` and `tests/support` on PYTHONPATH) prints them.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

from drllm.core.config import SearchConfig
from drllm.core.route import Route
from drllm.searching.tree import RouteTree
from landscapes import additive, noise, run

GOLDEN = Path(__file__).parents[1] / "golden" / "tree_routes.json"


def asked_and_chosen(case: int) -> list[str]:
    """Every route asked in a search whose options, verdicts and margins are drawn for the case; last the chosen one."""
    draw = random.Random(f"case {case}")
    n_layers = draw.choice((1, 2, 3, 6, 12, 24, 36))
    config = SearchConfig(
        counted=draw.choice(("all", "distinct")),
        n_simulations=draw.choice((0, 5, 30, 80)),
        exploration=draw.choice((0.0, 1.8, 5 * draw.random())),
        length_penalty=draw.choice((0.0, 3.0, 10 * draw.random())),
        random_prob=draw.choice((0.0, 0.1, draw.random())),
        max_skip_run=draw.choice((1, 2, 4)),
        max_passes_ratio=draw.choice((1.0, 1.25, 2.0)),
        max_loop_span=draw.choice((0, 0, 3)),
        widening=draw.choice((0.3, 2.0, 8.0)),
        early_stop=draw.random() < 0.4,
    )
    if draw.random() < 0.5:
        answer = noise(case, draw.choice((0.05, 0.3, 0.8)), draw.choice((None, True, False)))
    else:
        gains = {(block, action): draw.gauss(-0.1, 0.5) for block in range(n_layers) for action in (0, 2)}
        answer = additive(gains, draw.choice((-1.0, 0.3)), draw.gauss(0.0, 0.3))
    broken = draw.choice((0.0, 0.1, 1.0))  # 1: a reward without margins

    def judged(route: Route) -> tuple[bool, float]:
        pick = random.Random(f"broken {case}:{route}").random()
        right, margin = answer(route)
        return (right, margin) if pick >= broken else (right and broken == 1, math.nan)

    tree = RouteTree(n_layers, config, draw.getrandbits(64))
    return [*(str(route) for route in run(tree, judged)), str(tree.chosen)]


def digests() -> list[str]:
    return [hashlib.sha256(" ".join(asked_and_chosen(case)).encode()).hexdigest()[:12] for case in range(200)]


def test_trees_ask_for_and_choose_the_routes_of_earlier_versions():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    now = digests()
    assert [case for case, (before, after) in enumerate(zip(golden, now, strict=True)) if before != after] == []


if __name__ == "__main__":
    print(json.dumps(digests()))
