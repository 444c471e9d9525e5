"""The search by two worker processes: the records of a single process, also when a worker is killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import families
from byte_tokens import byte_tokenizer
from drllm import Resources, Route, RoutedModel, SearchConfig, evaluate, search, train
from drllm.core.errors import DrllmError, InputError
from drllm.model import pool
from drllm.model.pool import processes
from drllm.runs.manifest import read_manifest
from drllm.runs.provenance import read_jobs
from drllm.runs.records import read_records, shard_indices
from drllm.scoring import asking
from runs import EVALUATE, TASK, TRAIN, L, copy_run, folder_bytes, matrix, model
from worker_processes import replicas

SEARCH = SearchConfig(n_simulations=30, group_size=2)
TWO = Resources(executor="processes", workers=2, pool_size=4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> RoutedModel:
    """A tiny model that other processes can load."""
    folder = tmp_path_factory.mktemp("model")
    model().unwrap().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return RoutedModel.wrap(str(folder), dtype=torch.float32, device=families.DEVICE)


@pytest.fixture(scope="module")
def single(saved, data, tmp_path_factory) -> Path:
    """The run of a single process."""
    return search(saved, [TASK], SEARCH, tmp_path_factory.mktemp("single"), data)


def gone(pids: list[int]) -> bool:
    """Whether these processes have ended; a killed one takes a moment."""
    deadline = time.monotonic() + 30
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


@pytest.mark.gpu
@pytest.mark.long
def test_two_workers_write_the_records_of_one_process(saved, data, single, tmp_path):
    search(saved, [TASK], SEARCH, tmp_path, data, resources=TWO)
    assert folder_bytes(tmp_path / "search") == folder_bytes(single / "search")
    assert folder_bytes(tmp_path / "verdicts") == folder_bytes(single / "verdicts")
    (job,) = read_jobs(tmp_path)
    assert job["config"]["resources"] | {"executor": "processes", "workers": 2, "threads": 1} == job["config"]["resources"]
    assert gone(replicas())


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True])
def test_two_workers_search_loops_and_lists_of_loops_as_one_process_does(listed, saved, data, tmp_path):
    full = Route.full(L)
    routes = [full.loop(1, 2), full.loop(1, 2, 0.5), Route.parse("0-1,0-1/4")] if listed else None
    config = dataclasses.replace(SEARCH, n_simulations=10, limit=8, max_loop_span=0 if listed else 2)
    for where, resources in (("one", Resources()), ("two", TWO)):
        search(saved, [TASK], config, tmp_path / where, data, resources=resources, routes=routes)
    for kind in ("paths" if listed else "search", "verdicts"):
        assert folder_bytes(tmp_path / "one" / kind) == folder_bytes(tmp_path / "two" / kind)
    records = matrix(tmp_path / "two") if listed else read_records(tmp_path / "two" / "search")
    tried = {route for record in records for route in record.routes}
    assert any(not route.is_in_place for route in tried)
    assert gone(replicas())


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_nothing_and_repeats_nothing(saved, data, single, tmp_path):
    folder, killed = tmp_path / "search" / TASK, []

    def kill() -> None:
        while not shard_indices(folder) or len(replicas()) < 2:
            time.sleep(0.01)
        victim = replicas()[0]
        os.kill(victim, signal.SIGKILL)
        killed.append((victim, len(shard_indices(folder))))

    thread = threading.Thread(target=kill)
    thread.start()
    search(saved, [TASK], SEARCH, tmp_path, data, resources=TWO)
    thread.join(timeout=10)
    n_shards = len(shard_indices(single / "search" / TASK))
    ((_, n_before),) = killed
    assert 1 <= n_before < n_shards, "it died in the middle"
    assert folder_bytes(tmp_path / "search") == folder_bytes(single / "search")
    assert folder_bytes(tmp_path / "verdicts") == folder_bytes(single / "verdicts")
    ids = [record.id for record in read_records(tmp_path / "search")]
    assert len(ids) == len(set(ids)) == len(read_records(single / "search"))


@pytest.mark.slow
def test_a_killed_driver_resumes_on_another_executor(saved, data, single, tmp_path):
    """kill -9 of the driver amid its run; the same command in one process finishes it."""
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.path[:0] = sys.argv[4:]; import test_on_workers as t\n"
        "from drllm import RoutedModel, search\n"
        "search(RoutedModel.wrap(sys.argv[1], dtype=torch.float32), [t.TASK], t.SEARCH, sys.argv[2], sys.argv[3], resources=t.TWO)"
    )
    here = Path(__file__).parent
    arguments = [sys.executable, "-c", code, saved.base_id, str(tmp_path), str(data), str(here), str(here.parent / "support")]
    driver = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "search" / TASK
    while not shard_indices(folder):
        assert driver.poll() is None
        time.sleep(0.01)
    workers = replicas(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert workers
    assert gone(workers), "a dead driver leaves no worker behind"
    n_before = len(shard_indices(folder))
    search(saved, [TASK], SEARCH, tmp_path, data)
    assert 1 <= n_before < len(shard_indices(folder))
    assert folder_bytes(tmp_path / "search") == folder_bytes(single / "search")
    assert folder_bytes(tmp_path / "verdicts") == folder_bytes(single / "verdicts")
    subprocess.run(["pkill", "-9", "-s", str(driver.pid)], check=False)


METHODS = ["static", "routers", "shuffled-routers", "random"]


@pytest.fixture(scope="module")
def compared(saved, data, single, tmp_path_factory) -> Path:
    """A trained run, compared by a single process."""
    out = copy_run(single, tmp_path_factory.mktemp("compared"), "search", "verdicts")
    for method in ("static", "routers"):
        saved.policy = train(saved, out, method, TRAIN if method == "routers" else None)
        saved.save_pretrained(out / method)
    saved.policy = None
    evaluate(saved, METHODS, [TASK], out, EVALUATE, data)
    return out


PLACE = f"evaluate/{EVALUATE.folder}"


@pytest.fixture
def trained(compared, single, tmp_path) -> Path:
    """The same run before it was compared."""
    return copy_run(single, copy_run(compared, tmp_path / "run", "static", "routers"), "search", "verdicts")


@pytest.mark.slow
def test_two_workers_answer_as_one_process_does(saved, data, compared, trained, monkeypatch):
    """Policies and their controls, in a run folder named from where the command stands; the second time nothing is asked."""
    monkeypatch.chdir(trained.parent)
    summary = evaluate(saved, METHODS, [TASK], "run", EVALUATE, data, resources=TWO)
    for part in (PLACE, "verdicts", "decided"):
        assert folder_bytes(trained / part) == folder_bytes(compared / part)
    assert gone(replicas())
    written = {path: path.stat().st_mtime_ns for part in ("verdicts", "decided") for path in (trained / part).rglob("*")}
    assert evaluate(saved, METHODS, [TASK], "run", EVALUATE, data, resources=TWO) == summary
    assert {path: path.stat().st_mtime_ns for part in ("verdicts", "decided") for path in (trained / part).rglob("*")} == written
    # One process goes on where workers stopped.
    for path in sorted((trained / "verdicts").iterdir())[::2]:
        path.unlink()
    evaluate(saved, METHODS, [TASK], "run", EVALUATE, data)
    assert folder_bytes(trained / PLACE) == folder_bytes(compared / PLACE)


@pytest.fixture
def replica(request, monkeypatch):
    """Workers of another kind."""
    monkeypatch.setattr(asking, "Replica", request.param)


class Mortal(asking.Replica):
    """Its first life ends at its first questions."""

    def work(self, jobs):
        died = Path(os.environ["DRLLM_TEST_DIED"])
        if jobs and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(jobs)


@pytest.mark.parametrize("replica", [Mortal], indirect=True)
@pytest.mark.slow
def test_a_worker_killed_while_it_answers_loses_nothing(saved, data, compared, trained, tmp_path, monkeypatch, replica):
    monkeypatch.setenv("DRLLM_TEST_DIED", str(tmp_path / "died"))
    evaluate(saved, METHODS, [TASK], trained, EVALUATE, data, resources=TWO)
    assert (tmp_path / "died").exists()
    for part in (PLACE, "verdicts", "decided"):
        assert folder_bytes(trained / part) == folder_bytes(compared / part)


class Deadly(asking.Replica):
    """Dies of one question, as of one that needs more memory than there is."""

    def work(self, groups):
        if any(example.id == "q7" for _, ticket in groups for example in (one.example for one in ticket.group)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(groups)


@pytest.mark.parametrize("replica", [Deadly], indirect=True)
@pytest.mark.slow
def test_a_group_that_kills_its_workers_is_named_and_the_others_are_kept(saved, data, tmp_path, replica):
    with pytest.raises(DrllmError, match=rf"{TASK}: group \d+ \(q.*\) ended {pool.MAX_DEATHS} workers") as caught:
        search(saved, [TASK], SEARCH, tmp_path, data, resources=TWO)
    blamed = int(str(caught.value).split()[2])
    ids = read_manifest(tmp_path / "search" / TASK).ids
    assert "q7" in ids[blamed * SEARCH.group_size :][: SEARCH.group_size], "of the groups a worker had, the one to blame"
    assert "q7" not in {record.id for record in read_records(tmp_path / "search")}
    (job,) = read_jobs(tmp_path)
    assert job["status"] == "failed"


class Full(asking.Replica):
    """Finds its disk full."""

    def work(self, groups):
        if groups:
            raise OSError(28, "No space left on device", "/shared/shard")
        return super().work(groups)


@pytest.mark.parametrize("replica", [Full], indirect=True)
@pytest.mark.slow
def test_a_full_disk_of_a_worker_reaches_the_driver_as_such(saved, data, tmp_path, replica):
    with pytest.raises(OSError, match="No space left on device") as error:
        search(saved, [TASK], SEARCH, tmp_path, data, resources=TWO)
    assert (type(error.value), error.value.filename) == (OSError, "/shared/shard")


@pytest.mark.slow
def test_other_weights_on_the_workers_are_refused(saved, data, tmp_path):
    """The driver's weights were changed after loading: what workers load is another model."""
    other = RoutedModel.wrap(saved.base_id, dtype=torch.float32)
    with torch.no_grad():
        next(iter(other.model.parameters())).add_(1.0)
    changed = RoutedModel.wrap(other.unwrap(), other.tokenizer)
    changed.base_id = saved.base_id
    with pytest.raises(DrllmError, match="loads other weights"):
        search(changed, [TASK], SEARCH, tmp_path, data, resources=TWO)


def test_a_model_of_this_process_alone_cannot_go_to_workers(data, tmp_path):
    with pytest.raises(InputError, match="wrap it by its id, folder or file"):
        search(model(), [TASK], SEARCH, tmp_path, data, resources=TWO)


class Wrong:
    """Has a bug."""

    def work(self, jobs):
        raise LookupError("no such thing")


class Twice:
    """Says which model it has."""

    def __init__(self, base, out):
        self.base, self.out = base, out

    def work(self, jobs):
        routed = self.base.load(1, 1)
        for index, _ in jobs:
            (self.out / f"{index}-{os.getpid()}-{routed.model.dtype}").touch()


@pytest.mark.slow
def test_kept_workers_load_what_the_next_work_is_for_and_dead_ones_are_passed_over(saved, tmp_path):
    one, other = Resources(executor="processes", workers=1), RoutedModel.wrap(saved.base_id, dtype=torch.bfloat16)
    work = pool.Work(lambda index: bool(list(tmp_path.glob(f"{index}-*"))), lambda index, job: "a job")
    with processes() as place:
        for index, routed in enumerate((saved, other, saved)):
            if index == 2:
                os.kill(place.idle[0].process.pid, signal.SIGKILL)
                place.idle[0].process.wait()
            assert list(pool.work_on(place, Twice, (pool.Base.of(routed), tmp_path), [(index, None)], one, work)) == [index]
        pids = [worker.process.pid for worker in place.idle]
    found = [path.name.split("-") for path in sorted(tmp_path.iterdir())]
    assert [dtype for _, _, dtype in found] == ["torch.float32", "torch.bfloat16", "torch.float32"]
    assert found[0][1] == found[1][1] != found[2][1]
    assert gone([*pids, int(found[0][1])])


@pytest.mark.slow
def test_what_a_worker_failed_of_reaches_the_reader():
    work = pool.Work(lambda index: False, lambda index, job: "a job")
    with processes() as place, pytest.raises(RuntimeError, match=r"(?s)a worker failed:\nTraceback .*raise LookupError.*no such thing"):
        list(pool.work_on(place, Wrong, (), [(0, None)], Resources(executor="processes", workers=1), work))


def test_a_scan_takes_a_process_a_core_where_it_may(saved, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    torch.set_num_threads(2)
    try:
        chosen = {
            "a scan": pool.settled(saved, Resources(), scanning=True),
            "a search": pool.settled(saved, Resources()),
            "a scan with threads": pool.settled(saved, Resources(threads=2), scanning=True),
            "a scan of a model of this process": pool.settled(model(), Resources(), scanning=True),
            "a scan of a changed model": pool.settled(RoutedModel.wrap(saved.base_id, byte_tokenizer()), Resources(), scanning=True),
            "a scan that memory bears once": pool.settled(saved, Resources(cache_bytes=2**50), scanning=True),
        }
    finally:
        torch.set_num_threads(1)
    assert {what: (one.executor, one.workers, one.threads) for what, one in chosen.items()} == {
        what: ("processes", 2, 1) if what == "a scan" else ("local", 1, 2) for what in chosen
    }
