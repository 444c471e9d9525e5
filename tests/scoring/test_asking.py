"""`Bench.ensure`: what is known is looked up, what is missing is asked once and kept, whoever is killed in between."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from drllm import Route, SearchConfig
from drllm.policies.constant import GivenRoutes, RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from drllm.runs.shards import Shards
from drllm.runs.store import Store
from drllm.scoring import asking
from drllm.scoring.asking import Ask, asking_here
from drllm.scoring.scorer import scorer_of
from drllm.tasks import load_task
from runs import TASK, L, folder_bytes, model

CONFIG = SearchConfig(max_step_tokens=600)
ROUTES = [Route.parse(text) for text in ("1111", "1121", "0111", "1101")]


@pytest.fixture(scope="module")
def tiny():
    return model()


@pytest.fixture(scope="module")
def ask(tiny, data) -> Ask:
    """Twelve questions along four routes."""
    task = load_task(TASK, data)
    scorer = scorer_of(tiny, task.task, CONFIG)
    questions = [scorer.question(task.task, example) for example in task.examples["fit"][:12]]
    return Ask(scorer, task.task, CONFIG, "fit", questions, [ROUTES] * 12)


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Three questions a shard."""
    monkeypatch.setattr(asking, "UNIT", 12)


def n_asked(run: Path) -> int:
    """Pairs that were computed and kept; one that was asked twice would be two rows."""
    return Store(run / "verdicts").shards.table().num_rows


def test_every_pair_is_asked_once_and_answered_as_the_scorer_answers(tiny, ask, tmp_path):
    bench = asking_here(tiny, tmp_path)
    [found] = bench.ensure([replace(ask, routes=[ROUTES[:2]] * 12)], "two")
    assert n_asked(tmp_path) == 24
    [more] = bench.ensure([ask], "all")
    assert n_asked(tmp_path) == 48
    assert all(one[route] == two[route] for one, two in zip(found, more, strict=True) for route in ROUTES[:2])
    before = folder_bytes(tmp_path)
    assert asking_here(tiny, tmp_path).ensure([ask, ask], "again") == [more, more]
    assert folder_bytes(tmp_path) == before
    plain = scorer_of(tiny, ask.task, CONFIG).score_all(list(ask.questions), ROUTES)
    assert [[one[route] for route in ROUTES] for one in more] == plain
    turned = replace(ask, questions=ask.questions[::-1], routes=[[*ROUTES[::-1], ROUTES[0]]] * 12)
    [other] = asking_here(tiny, tmp_path / "b").ensure([turned], "turned")
    assert other[::-1] == more, "whatever the order of questions and routes, and those that are named twice"
    assert n_asked(tmp_path / "b") == 48


def test_other_conditions_are_other_rows(tiny, ask, tmp_path):
    bench = asking_here(tiny, tmp_path)
    bench.ensure([ask], "acc_norm")
    by_acc = replace(CONFIG, metric="acc")
    [found] = bench.ensure([replace(ask, scorer=scorer_of(tiny, ask.task, by_acc), config=by_acc)], "acc")
    assert n_asked(tmp_path) == 48, "both metrics are stored"
    assert all(verdict.correct == verdict.acc for one in found for verdict in one.values())
    wider = replace(CONFIG, max_step_tokens=900)
    bench.ensure([replace(ask, scorer=scorer_of(tiny, ask.task, wider), config=wider)], "wider steps")
    assert n_asked(tmp_path) == 96
    asking_here(model(seed=1), tmp_path).ensure([replace(ask, scorer=scorer_of(model(seed=1), ask.task, CONFIG))], "other weights")
    assert n_asked(tmp_path) == 144


def times(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / "verdicts").glob("*.parquet")}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_write_and_asked_again_leaves_the_same_bytes(moment, tiny, ask, tmp_path, monkeypatch, small_shards):
    asking_here(tiny, tmp_path / "whole").ensure([ask], "whole")
    whole, write = folder_bytes(tmp_path / "whole" / "verdicts"), Shards.write
    assert len(whole) == 4
    for last in (1, 3):
        out = tmp_path / f"{moment}-{last}"
        pid = os.fork()
        if not pid:
            written: list[str] = []

            def dying(self, name, rows, written=written, last=last):
                written.append(name)
                if moment == "after":
                    write(self, name, rows)
                if len(written) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                if moment == "before":
                    write(self, name, rows)

            monkeypatch.setattr(Shards, "write", dying)
            asking_here(tiny, out).ensure([ask], "killed")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        before = times(out)
        asking_here(tiny, out).ensure([ask], "again")
        assert folder_bytes(out / "verdicts") == whole
        assert before.items() <= times(out).items(), "what was written is not asked again"


def test_a_shard_that_is_lost_is_made_again_and_nothing_else(tiny, ask, tmp_path, small_shards):
    asking_here(tiny, tmp_path).ensure([ask], "whole")
    before = folder_bytes(tmp_path)
    next((tmp_path / "verdicts").iterdir()).unlink()
    kept = times(tmp_path)
    asking_here(tiny, tmp_path).ensure([ask], "again")
    assert folder_bytes(tmp_path) == before
    assert kept.items() <= times(tmp_path).items()


def test_policies_decide_once_and_share_what_they_answer(tiny, ask, tmp_path):
    routers = Routers(RouterConfig(L, tiny.hidden_size, n_windows=4, width=16), seed=3)
    routers.tensors["w2"] = routers.tensors["w2"] * 30
    policies = [None, RoutePolicy(ROUTES[2]), GivenRoutes([ROUTES[2], *[ROUTES[0]] * 11]), routers]
    bench = asking_here(tiny, tmp_path)
    found = bench.answers(ask, policies, "policies")
    assert [routes for _, routes in found[:3]] == [[ROUTES[0]] * 12, [ROUTES[2]] * 12, [ROUTES[2], *[ROUTES[0]] * 11]]
    assert len(set(found[3][1])) > 1
    pairs = {(place, route) for _, routes in found for place, route in enumerate(routes)}
    assert n_asked(tmp_path) == len(pairs), "a route that two policies take is asked once"
    decided = folder_bytes(tmp_path / "decided")
    assert len(decided) == 1
    assert asking_here(tiny, tmp_path).answers(ask, policies, "again") == found
    assert n_asked(tmp_path) == len(pairs)
    next(iter(routers.tensors.values())).add_(1.0)
    bench.answers(ask, [routers], "another policy")
    assert len(folder_bytes(tmp_path / "decided")) == 2
