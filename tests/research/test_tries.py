"""What the tries at a policy a prompt are judged by, on made matrices."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from drllm import Route
from drllm.methods.matrix import Matrix
from drllm_research.studies import tries

ROUTES = tuple(Route.parse(text) for text in ("111111", "111101", "111011", "111001"))


def made(n: int = 240, seed: int = 0) -> tries.Seen:
    """Two kinds that the features tell apart: in "a" the second route is nearly always right, in "b" the base."""
    rng = np.random.default_rng(seed)
    tasks = tuple("a" if place % 2 else "b" for place in range(n))
    in_a = np.array(tasks) == "a"
    chances = np.where(in_a[:, None], [0.4, 0.95, 0.4, 0.4], [0.95, 0.3, 0.3, 0.3])
    correct = rng.random((n, 4)) < chances
    margins = np.where(correct, 1.0, -1.0).astype(np.float32) + rng.normal(0, 0.1, (n, 4)).astype(np.float32)
    features = rng.normal(0, 1, (n, 6)) + 3 * in_a[:, None]
    ids = tuple(map(str, range(n)))
    matrix = Matrix(ROUTES, tasks, ids, tuple((place,) for place in range(n)), correct, margins, "raw", "made")
    return tries.Seen(matrix, {2: features}, {2: rng.normal(0, 1, n)}, {"a": "a", "b": "b"})


def test_parts_deal_every_task_evenly():
    tasks = np.array(["a"] * 53 + ["b"] * 10)
    part = tries.parts(tasks)
    assert all(sorted(np.bincount(part[tasks == task], minlength=tries.FOLDS)) in ([10, 10, 11, 11, 11], [2] * 5) for task in ("a", "b"))


def test_a_kind_s_route_is_found_and_a_single_route_gains_less():
    seen = made()
    one, told, predicted = (
        tries.within(seen, tries.answered(seen, attempt), [1.0]).get(1.0)
        for attempt in tries.tries(seen)
        if attempt.name in ("one route for all", "told the task", "task predicted, read before block 2")
    )
    assert one is not None
    assert told is not None
    assert predicted is not None
    assert told.gain[1] > 0.15 > one.gain[0]
    assert predicted.gain[0] > told.gain[0] - 0.05
    assert told.switched == pytest.approx(0.5)
    assert told.over_dealt == (0.0, 0.0, 0.0)  # within a task all take the same route


@pytest.mark.parametrize("budget", [0.95, 0.9, 0.85])
def test_a_budget_is_kept(budget: float):
    seen = made()
    for attempt in tries.tries(seen):
        found = tries.within(seen, tries.answered(seen, attempt), [2.0, budget])
        kept, free = found.get(budget), found.get(2.0)
        assert free is not None
        if kept is None:  # the whole base was run before
            assert "second look" in attempt.name
        else:
            assert kept.passes <= 6 * budget + 1e-9


def test_what_runs_twice_is_counted():
    seen = made()
    known = np.arange(200)
    routes = (ROUTES[0], Route.parse("101111"), Route.parse("111101"))
    kept = {name: getattr(seen.matrix, name) for name in ("tasks", "ids", "prompts")}
    matrix = Matrix(routes, **kept, correct=seen.matrix.correct[:, :3], margins=seen.matrix.margins[:, :3], prompt_format="raw", key="made")
    seen = tries.Seen(matrix, seen.features, seen.lens, seen.kind_of)
    assert list(tries.by_ridge(seen, known, 2, "question").passes) == [6, 5 + 1, 5]
    assert list(tries.by_ridge(seen, known, 2, "question", again=True).passes) == [6, 5 + 5, 5 + 2]


def test_dealt_is_the_mean_over_all_deals():
    seen, picked = made(40), np.random.default_rng(1).integers(0, 4, 40)
    right, rng = seen.matrix.correct.astype(float), np.random.default_rng(2)
    deals, part = [], np.arange(40) // 20
    for _ in range(4000):
        dealt = picked.copy()
        for task, fold in itertools.product(("a", "b"), range(2)):
            places = np.flatnonzero((seen.tasks == task) & (part == fold))
            dealt[places] = picked[rng.permutation(places)]
        deals.append(right[np.arange(40), dealt].mean())
    assert tries.expected_dealt(right, picked, seen.tasks, part).mean() == pytest.approx(np.mean(deals), abs=0.005)


def test_the_area_under_the_curve():
    assert tries.area(np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, False, True, True])) == 1.0
    assert tries.area(np.array([0.4, 0.3, 0.2, 0.1]), np.array([False, False, True, True])) == 0.0
    assert tries.area(np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, False, True])) == 0.5


def test_nested_routes_contain_one_another():
    matrix = made().matrix
    allowed = np.array([False, True, True, True])
    chosen = tries.choose_nested(matrix, allowed, 3, tries.USUAL, 0.0)
    assert len(chosen) == 2  # of 111101 and 111011 neither contains the other, 111001 lies in both
    assert 3 in chosen
    assert len(tries.choose_nested(matrix, allowed, 1, tries.USUAL, 0.0)) == 1


def test_a_curve_learns_from_fewer_questions_and_never_from_the_part_it_answers():
    seen = made()
    for fold in range(tries.FOLDS):
        known = np.flatnonzero(seen.part != fold)
        shares = [tries.first_parts(seen, known, share) for share in range(1, tries.FOLDS)]
        assert [len({*seen.part[places].tolist()}) for places in shares] == [1, 2, 3, 4]
        assert all(fold not in seen.part[places] for places in shares)
        assert sorted(shares[-1].tolist()) == known.tolist()


def test_tries_kept_before_are_of_the_same_questions(tmp_path: Path):
    path = tmp_path / "tries.json"
    path.write_text(json.dumps({"questions": 3, "tries": {"one": {}}}))
    assert tries.kept_before(path, {"questions": 3}) == {"one": {}}
    with pytest.raises(SystemExit, match="other questions"):
        tries.kept_before(path, {"questions": 4})


def test_what_is_chosen_by_the_same_questions_looks_better():
    seen = made(40)
    found = {
        one.name: tries.within(seen, tries.answered(seen, one), [1.0])[1.0] for one in tries.tries(seen) if "told the task" in one.name
    }
    assert found["told the task, chosen by the same questions"].gain[0] >= found["told the task"].gain[0]
