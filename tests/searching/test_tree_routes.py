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

from drllm.core.route import Route
from drllm.searching.edits import EditSpace
from drllm.searching.presets import make_tree
from drllm.searching.prior import EditPrior
from landscapes import KINDS, additive, config_of, noise, run, seen_by

GOLDEN = Path(__file__).parents[1] / "golden" / "tree_routes.json"
N_CASES = 300


def drawn_prior(n_layers: int, max_skip_run: int, draw: random.Random) -> EditPrior:
    """A prior of random weights, some edits dead; now and then without a scale."""
    space = EditSpace(n_layers, max_skip_run)
    full, share = Route.full(n_layers), draw.choice((0.0, 0.2, 0.6))
    sizes = [draw.random() ** 3 + 1e-3 if space.apply(full, code) and draw.random() >= share else 0.0 for code in range(space.n_codes)]
    total = math.fsum(sizes) or 1.0
    scale = draw.choice((math.nan, 0.0, draw.random()))
    return EditPrior(n_layers, max_skip_run, tuple(size / total for size in sizes), scale, 8)


def asked_and_chosen(case: int) -> list[str]:
    """Every route asked in a search whose preset, options, prior, verdicts and margins are drawn for the case; last the chosen one."""
    draw = random.Random(f"case {case}")
    kind, n_layers = draw.choice(list(KINDS)), draw.choice((1, 2, 3, 6, 12, 24, 36))
    config = config_of(
        kind,
        n_simulations=draw.choice((0, 5, 30, 80)),
        exploration=draw.choice((0.0, 1.8, 5 * draw.random())),
        length_penalty=draw.choice((0.0, 3.0, 10 * draw.random())),
        random_prob=draw.choice((0.0, 0.1, draw.random())),
        max_skip_run=draw.choice((1, 2, 4)),
        max_passes_ratio=draw.choice((1.0, 1.25, 2.0)),
        widening=draw.choice((0.3, 2.0, 8.0)),
        early_stop=draw.random() < 0.4,
        patience=draw.choice((0, 3, 10)),
        comfort=draw.choice((0.0, 0.5, 1.0)),
    )
    if draw.random() < 0.5:
        answer = noise(case, draw.choice((0.05, 0.3, 0.8)), draw.choice((None, True, False)))
    else:
        gains = {(block, action): draw.gauss(-0.1, 0.5) for block in range(n_layers) for action in (0, 2)}
        answer = additive(gains, draw.choice((-1.0, 0.3)), draw.gauss(0.0, 0.3))
    broken = draw.choice((0.0, 0.1))

    def judged(route: Route) -> tuple[bool, float]:
        pick = random.Random(f"broken {case}:{route}").random()
        return answer(route) if pick >= broken else (False, math.nan if pick > broken / 2 else -math.inf)

    prior = drawn_prior(n_layers, config.max_skip_run, draw) if config.preset == "default" and draw.random() < 0.6 else None
    tree = make_tree(n_layers, config, draw.getrandbits(64), prior)
    return [*(str(route) for route in run(tree, seen_by(kind, judged))), str(tree.chosen)]


def digests() -> list[str]:
    return [hashlib.sha256(" ".join(asked_and_chosen(case)).encode()).hexdigest()[:12] for case in range(N_CASES)]


def test_trees_ask_for_and_choose_the_routes_of_earlier_versions():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    now = digests()
    assert [case for case, (before, after) in enumerate(zip(golden, now, strict=True)) if before != after] == []


if __name__ == "__main__":
    print(json.dumps(digests()))
