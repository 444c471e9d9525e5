"""The random baseline's routes: the same passes and loops, at other blocks."""

from __future__ import annotations

import numpy as np
import pytest

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.evaluation.baselines import baseline_routes, scattered


def kinds(route: Route) -> tuple:
    """What must stay: passes in place, and the loops' lengths and strengths."""
    return sorted(route.in_place_actions), sorted((len(span.blocks), span.strength) for _, span in route.loops)


@pytest.mark.parametrize(
    "text", ["1021", "0-14,12-29", "0-14,(12-14)*0.5,15-29", "0-14,0-14/30", "0-20,0-20/30", "7-21,7-21/30", "2-9,5-9,4-29", "1,1,1,2-5"]
)
def test_passes_and_loops_stay_and_their_blocks_do_not(text):
    """Long loops among many skips too, for which blocks that run must be found."""
    route = Route.parse(text)
    rng = np.random.default_rng(0)
    found = [scattered(route, rng) for _ in range(20)]
    assert all(kinds(one) == kinds(route) and len(one) == len(route) for one in found)
    assert len(set(found)) > 3
    assert baseline_routes("random", [route], "a") == baseline_routes("random", [route], "a")


def test_every_prompt_gets_another_s_route():
    routes = [Route.parse(text) for text in ("0111", "1011", "1101", "1110", "2011", "0221", "1111")]
    found = [baseline_routes("shuffled", routes, str(seed)) for seed in range(10)]
    for shuffled in found:
        assert sorted(map(str, shuffled)) == sorted(map(str, routes))
        assert all(ours != own for ours, own in zip(shuffled, routes, strict=True))
    assert found[0] == baseline_routes("shuffled", routes, "0")
    for name in ("shuffled", "random"):
        assert len({tuple(baseline_routes(name, routes, str(seed))) for seed in range(10)}) > 5


def test_a_path_that_finds_no_place_is_an_error_not_a_hang():
    with pytest.raises(InputError, match=r"^the loops of route .* find no random place among 6 blocks: evaluate it without the random"):
        scattered(Route.parse("1,0,1,0,1,0,1,0/6"), np.random.default_rng(0))
