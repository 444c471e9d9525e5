"""Records of a search: what was chosen, with verdicts from the run's store; the same bytes for the same search."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import TEMPORARY_SUFFIX
from drllm.core.route import Route
from drllm.runs.manifest import read_manifest
from drllm.runs.records import Check, read_matrix, read_records, read_shard, shard_indices, shard_path, write_shard
from record_factory import ROUTES, any_record, control, record, task_folder, verdict, write_verdicts


def write(run, some, task="arc_easy", index=0):
    """A shard and its verdicts; the task folder."""
    folder = run / "search" / task
    write_verdicts(run, some, f"{task}-{index}")
    write_shard(folder, index, some)
    return folder


@pytest.mark.long
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_record(), min_size=1, max_size=5, unique_by=lambda one: one.asked.question))
def test_what_is_written_is_read(tmp_path_factory, some):
    folder = write(tmp_path_factory.mktemp("run"), some)
    back = read_shard(shard_path(folder, 0))
    assert repr(back) == repr(some)  # as text: nan differs from itself
    for one, other in zip(back, some, strict=True):
        assert all(repr(one.verdicts[route]) == repr(other.verdicts[route]) for route in other.verdicts)


@pytest.mark.parametrize(
    ("base", "others", "kept", "improved"),
    [(0.0, (1.0,), True, True), (1.0, (0.0,), True, False), (0.0, (0.0, 0.0), False, False), (1.0, (1.0,), True, False)],
)
def test_kept_and_improved(base, others, kept, improved):
    one = record(base=base, others=others)
    assert (one.kept, one.improved, one.base_correct) == (kept, improved, bool(base))
    assert one.rewards == (base, *others)


def test_every_route_has_a_verdict_and_there_is_a_base(tmp_path):
    good = record()
    for change in ({"routes": (*good.routes, ROUTES[3])}, {"control_routes": (ROUTES[3],)}):
        with pytest.raises(InputError, match="the run holds no verdict of route 1001"):
            replace(good, **change)
    with pytest.raises(InputError, match="at least one route, the base's"):
        replace(good, routes=())
    folder = write(tmp_path, [good])
    for path in (tmp_path / "verdicts").iterdir():
        path.unlink()
    with pytest.raises(ArtifactError, match=r"shard-00000\.parquet holds a broken record .*: delete it and run the search again"):
        read_records(folder)


def test_all_records_of_a_run_by_task_then_shard(tmp_path):
    for task, index in (("piqa", 0), ("arc_easy", 100000), ("arc_easy", 11), ("arc_easy", 2)):
        write(tmp_path, [record(task, f"{index}-{n}") for n in range(2)], task, index)
    search = tmp_path / "search"
    (search / "arc_easy" / f"shard-00003.parquet.77{TEMPORARY_SUFFIX}").write_bytes(b"PAR1")
    (search / "arc_easy" / "shard-copy.parquet").write_bytes(b"not ours")
    names = [(one.task, one.id) for one in read_records(search)]
    assert names == [("arc_easy", f"{index}-{n}") for index in (2, 11, 100000) for n in range(2)] + [("piqa", "0-0"), ("piqa", "0-1")]
    assert read_records(search / "piqa") == read_records(search)[-2:]
    assert shard_indices(search / "arc_easy") == [2, 11, 100000]
    assert shard_indices(search / "none") == read_records(search / "none") == []


def test_foreign_shards_and_changed_values_are_refused(tmp_path):
    path = shard_path(write(tmp_path, [record()]), 0)
    whole = path.read_bytes()
    for change, message in (
        (lambda table: table.drop_columns(["chosen"]), "is no table of this kind"),
        (lambda table: table.set_column(table.schema.get_field_index("seed"), "seed", [[6]]), "its content and its digest differ"),
    ):
        pq.write_table(change(pq.ParquetFile(path).read()), path)
        with pytest.raises(ArtifactError, match=message):
            read_shard(path)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "solved", "by_control"),
    [
        ({}, True, None),
        (control(True), True, True),
        (control(False, True), True, True),  # the search stopped at its first try, and might have had more
        ({"others": (0.0, 0.0), **control(False, True)}, False, True),
        ({"base": 1.0, **control(True)}, False, False),
        ({"others": (), **control(True)}, False, True),
    ],
)
def test_the_control_has_as_many_tries_as_the_search_may_take(change, solved, by_control):
    one = record(**change)
    assert (one.improved, one.control_solved) == (solved, by_control)


def test_the_checks_of_a_route_by_name():
    base, kept, other = ROUTES[:3]
    one = record(checks=(Check(base, "fp32", False, 0.0), Check(kept, "fp32", True, 0.1), Check(kept, "rotated:1", False, -0.1)))
    assert (one.verified(kept), one.verified(other)) == ({"fp32": True, "rotated:1": False}, {})


def test_test_questions_are_never_recorded():
    assert record(split="calibrate").split == "calibrate"
    for split in ("test", "", "train"):
        with pytest.raises(InputError, match="expected one of fit, tune, calibrate"):
            record(split=split)


def test_a_task_folder_is_read_from_anywhere(tmp_path, monkeypatch):
    folder = task_folder(tmp_path / "run" / "search" / "arc_easy", [record(name="q1"), record(name="q2")])
    monkeypatch.chdir(folder)
    assert [one.id for one in read_records(type(folder)())] == ["q1", "q2"]


def test_a_matrix_is_of_the_questions_that_every_route_has_answered(tmp_path):
    """Kept is the shortest right route, of equals that of the larger margin, a margin that is none the least, then the first."""
    base, skip, *_ = routes = tuple(map(Route.parse, ("1111", "0111", "1011", "1101", "1121")))
    nan = float("nan")
    told = {
        "shortest": ([True, True, False, False, True], [0.9, 0.1, 0.5, 0.6, 0.9]),
        "surest": ([True, True, True, True, True], [0.9, 0.1, 0.3, 0.2, 0.9]),
        "first": ([False, True, True, True, False], [0.9, 0.3, 0.3, 0.2, 0.9]),
        "no margin": ([False, True, False, True, False], [0.9, nan, 0.3, -5.0, 0.9]),
        "wrong": ([False] * 5, [0.5] * 5),
    }
    asked = [
        record(name=name, routes=routes, others=(0.0,) * 4, verdicts=dict(zip(routes, map(verdict, right, margins), strict=True)))
        for name, (right, margins) in told.items()
    ]
    broken = replace(verdict(False, nan), broken=True)
    asked.append(record(name="broken", routes=routes, others=(0.0,) * 4, verdicts=dict.fromkeys(routes, broken)))
    folder = task_folder(tmp_path / "paths" / "arc_easy", asked, paths=[str(route) for route in routes])
    manifest = read_manifest(folder)
    found = {one.id: one for one in read_matrix(folder, manifest)}
    kept = {name: one.chosen for name, one in found.items()}
    assert kept == {"shortest": skip, "surest": routes[2], "first": skip, "no margin": routes[3], "wrong": None, "broken": None}
    for one in found.values():
        assert (one.routes, one.control_routes, one.seed, one.asked.task) == (routes, (), 0, "arc_easy")
        assert (one.conditions, one.counts, one.broken) == (asked[0].conditions, "acc_norm", one.id == "broken")
    assert found["broken"].verified(base) == {"finite": False}
    assert read_matrix(folder, manifest.changed(paths=["2111", *map(str, routes)])) == [], "a route that nobody was asked along"
