"""The blind baseline's routes, and every single edit."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.searching.edits import random_routes, single_edits
from landscapes import closure

CONFIG = SearchConfig()


@settings(deadline=None, max_examples=40)
@given(n_layers=st.integers(6, 16), n=st.integers(0, 20), seed=st.integers(0, 2**64 - 1), ratio=st.floats(1, 2), run=st.integers(1, 4))
def test_random_routes_are_distinct_legal_and_of_one_to_three_edits(n_layers, n, seed, ratio, run):
    config = SearchConfig(max_passes_ratio=ratio, max_skip_run=run)
    routes = random_routes(n_layers, n, config, seed)
    assert len(set(routes)) == len(routes) == n
    for route in routes:
        assert not route.is_full
        assert 1 <= route.n_passes <= ratio * n_layers + 1e-9
        assert sum(action == 2 for action in route) <= 3
        assert sum(action != 1 for action in route) <= 3 * run
    assert random_routes(n_layers, n, config, seed) == routes


def test_random_routes_differ_by_seed_and_leave_the_global_generator_alone():
    random.seed(5)
    before = random.getstate()
    assert random_routes(30, 50, CONFIG, 1) != random_routes(30, 50, CONFIG, 2)
    assert random.getstate() == before


@pytest.mark.long
def test_random_routes_are_drawn_as_stated():
    """Edits a route 1 : 2 : 1.5, each drawn alike from all legal ones; expected counts with four standard errors."""
    single = SearchConfig(max_skip_run=1)
    n = 500
    edits = Counter(sum(action != 1 for action in route) for seed in range(n) for route in random_routes(20, 1, single, seed))
    for n_edits, share in ((1, 1 / 4.5), (2, 2 / 4.5), (3, 1.5 / 4.5)):
        assert abs(edits[n_edits] / n - share) < 4 * math.sqrt(share * (1 - share) / n)
    kinds = Counter(str(route).strip("1") for seed in range(500) for route in random_routes(20, 1, CONFIG, seed))
    alone = np.array([kinds[kind] for kind in ("2", "0", "00")])
    assert np.all(abs(alone / alone.sum() - 1 / 3) < 4 * math.sqrt(2 / 9 / alone.sum()))


@pytest.mark.parametrize(("n_layers", "ratio", "n_routes"), [(1, 2.0, 1), (1, 1.0, 0), (2, 2.0, 7), (3, 2.0, 25)])
def test_all_random_routes_there_are_can_be_had_and_no_more(n_layers, ratio, n_routes):
    config = SearchConfig(max_passes_ratio=ratio)
    routes = random_routes(n_layers, n_routes, config, 0)
    assert {*routes, Route.full(n_layers)} == closure(n_layers, 2, ratio * n_layers)
    with pytest.raises(InputError, match=f"asked for {n_routes + 1} random routes over {n_layers} blocks, found {n_routes}"):
        random_routes(n_layers, n_routes + 1, config, 0)


@pytest.mark.parametrize(("n_layers", "max_skip_run", "n_routes"), [(1, 1, 1), (2, 2, 4), (3, 3, 8), (12, 2, 35), (30, 2, 89)])
def test_every_single_edit_is_there_once(n_layers, max_skip_run, n_routes):
    """The run over all blocks is the empty path and not among them."""
    routes = single_edits(n_layers, max_skip_run)
    assert len(set(routes)) == len(routes) == n_routes
    assert {str(route).strip("1") for route in routes} <= {"2", *("0" * length for length in range(1, max_skip_run + 1))}
