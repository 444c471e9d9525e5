"""Finished runs: merged without loss or doubling, their rows shown and exported to files that other tools read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import TEMPORARY_SUFFIX
from drllm.runs.merge import export_rows, merge_runs, overview, rows_of
from drllm.runs.records import read_records, shard_path
from drllm.runs.store import Decided, Store
from record_factory import CONDITIONS, ROUTES, full_record, record, task_folder, verdict, write_verdicts
from runs import folder_bytes


def records_of(*names: str, **changes) -> list:
    return [record(name=name, **changes) for name in names]


def searched(run: Path, some: list, n_shards: int = 1, **changes) -> Path:
    task_folder(run / "search" / some[0].task, some, n_shards, **changes)
    return run


def test_two_runs_become_one(tmp_path):
    """Their rows together; what was searched of a task that one of them has is copied byte by byte, of a task that both have it is not."""
    a = searched(searched(tmp_path / "a", records_of("q1", "q2"), 2), records_of("q1", task="piqa"))
    b = searched(tmp_path / "b", records_of("q4", "q3"), questions="other")
    task_folder(b / "paths" / "boolq", records_of("q1", task="boolq"), 1, paths=["1111", "0111"])
    (a / "search" / "piqa" / f"shard-00001.parquet.1{TEMPORARY_SUFFIX}").write_bytes(b"")
    search, paths = tmp_path / "out" / "search", tmp_path / "out" / "paths"
    assert merge_runs([a, b], tmp_path / "out") == (12, 0, [search / "piqa", paths / "boolq"], [search / "arc_easy"])
    assert read_records(search) == records_of("q1", task="piqa")
    for run, folder in ((a, "search/piqa"), (b, "paths/boolq")):
        copied = tmp_path / "out" / folder
        assert [path.name for path in sorted(copied.iterdir())] == ["_plan.json", "shard-00000.parquet"]
        assert all(path.read_bytes() == (run / folder / path.name).read_bytes() for path in copied.iterdir())
    merge_runs([tmp_path / "out", a], tmp_path / "again")
    assert folder_bytes(tmp_path / "again" / "verdicts") == folder_bytes(tmp_path / "out" / "verdicts")


def test_the_bytes_of_a_merge_do_not_depend_on_how_its_sources_were_sharded_or_ordered(tmp_path):
    some = [full_record(f"q{n}") for n in range(7)]
    for name, n_shards in (("a", 1), ("b", 3)):
        searched(tmp_path / name, some, n_shards)
    write_verdicts(tmp_path / "c", some[:3], "some")
    merge_runs([tmp_path / "a", tmp_path / "c"], tmp_path / "one")
    merge_runs([tmp_path / "c", tmp_path / "b"], tmp_path / "other")
    assert folder_bytes(tmp_path / "one" / "verdicts") == folder_bytes(tmp_path / "other" / "verdicts")
    assert len(folder_bytes(tmp_path / "one" / "verdicts")) == 1
    assert all(str(read_records(tmp_path / name / "search")) == str(some) for name in ("one", "other"))


def test_equal_rows_are_kept_once_and_counted(tmp_path):
    """Also those with nan margins, which differ from themselves as numbers."""
    some = [full_record(f"q{n}") for n in (1, 2, 3)]
    a, b = searched(tmp_path / "a", some[:2]), searched(tmp_path / "b", some[1:], questions="other")
    assert merge_runs([a, b], tmp_path / "out")[:2] == (12, 4)
    assert merge_runs([a, a], tmp_path / "twice")[:2] == (8, 8)
    assert str(read_records(tmp_path / "twice" / "search")) == str(some[:2]), "one run given twice is one"


def test_runs_that_say_otherwise_are_not_merged(tmp_path):
    a = searched(tmp_path / "a", [full_record("q1"), full_record("q2")])
    b = searched(tmp_path / "b", [full_record("q1", verdicts={ROUTES[1]: verdict(False, 0.7)})], questions="other")
    with pytest.raises(ArtifactError, match="two runs say otherwise of task arc_easy, question arc_easy:q1, route 0111"):
        merge_runs([a, b], tmp_path / "out")
    for name, route in (("d", ROUTES[0]), ("e", ROUTES[1])):
        run = searched(tmp_path / name, records_of("q1"))
        Decided(run / "decided").write("policy", CONDITIONS, [(record().asked, route)])
    with pytest.raises(ArtifactError, match="two runs say otherwise of task arc_easy, question arc_easy:q1:"):
        merge_runs([tmp_path / "d", tmp_path / "e"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_search_that_cannot_be_read_is_refused_before_anything_is_written(tmp_path):
    run = searched(tmp_path / "a", records_of("q1"))
    shard_path(run / "search" / "arc_easy", 0).write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="not a readable shard"):
        merge_runs([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_without_verdicts_and_a_folder_with_some_are_refused(tmp_path):
    a, b = searched(tmp_path / "a", records_of("q1")), searched(tmp_path / "b", records_of("q2"))
    with pytest.raises(InputError, match="holds verdicts already: merge into a new folder"):
        merge_runs([a, b], a)
    (tmp_path / "bare").mkdir()
    for source, message in ((tmp_path / "bare", "bare holds no verdicts"), (tmp_path / "none", "none does not exist")):
        with pytest.raises(ArtifactError, match=message):
            merge_runs([source], tmp_path / "out")


def test_rows_are_picked_by_column_and_counted(tmp_path):
    run = searched(searched(tmp_path / "a", records_of("q1", "q2")), records_of("q1", "q2", "q3", task="piqa", others=()))
    assert len(rows_of(run)) == 7
    assert len(rows_of(run, {"task": ["arc_easy"], "route": ["0111"]})) == 2
    assert len(rows_of(run, {"task": ["arc_easy", "piqa"]})) == 7
    with pytest.raises(ArtifactError, match="holds no such rows: name another task"):
        rows_of(run, {"task": ["boolq"]})
    about = ("f00d", "torch.float32")
    assert overview(rows_of(run)) == [
        (*about, "arc_easy", "fit", "loglik", "2", "2", "4", "50.0", "50.0"),
        (*about, "piqa", "fit", "loglik", "3", "1", "3", "0.0", "0.0"),
    ]


def test_rows_as_json_lines_csv_and_a_shard(tmp_path):
    run = searched(tmp_path / "run", [full_record("q1", split="tune"), record(name='q,"2"\n', others=())])
    table = rows_of(run)
    for name in ("x.jsonl", "deep/x.csv", "X.CSV", "x.parquet"):
        assert export_rows(table, tmp_path / name) == 5
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == table.to_pylist()
    assert "NaN" not in "".join(lines)  # no JSON
    text = list(csv.DictReader(io.StringIO((tmp_path / "deep" / "x.csv").read_text(encoding="utf-8"))))
    assert [row["id"] for row in text] == [row["id"] for row in rows]
    assert [row["margin_acc"] for row in text][2:4] == ["-2.5", ""] or {row["margin_acc"] for row in text} >= {"-2.5", ""}
    assert (tmp_path / "X.CSV").read_bytes() == (tmp_path / "deep" / "x.csv").read_bytes()
    assert rows_of(tmp_path / "x.parquet").equals(table)  # an export can be read as any shard
    (tmp_path / "again").mkdir()
    (tmp_path / "x.parquet").rename(tmp_path / "again" / "x.parquet")
    assert Store(tmp_path / "again").shards.table().equals(table)


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    table = rows_of(searched(tmp_path / "run", records_of("q1")))
    for name in ("all.txt", "all"):
        with pytest.raises(InputError, match=r"expected a name that ends in \.parquet, \.csv, \.jsonl"):
            export_rows(table, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
