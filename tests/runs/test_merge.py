"""Finished runs: merged without loss or doubling, their rows shown and exported to files that other tools read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.runs.manifest import path_manifests, read_manifest
from drllm.runs.merge import export_rows, merge_runs, overview, rows_of
from drllm.runs.records import read_matrix, read_records, read_shard, shard_indices, shard_path, write_shard
from drllm.runs.store import Decided, Store
from record_factory import CONDITIONS, PLAN, ROUTES, full_record, record, task_folder, verdict, write_verdicts


def records_of(*names: str, **changes) -> list:
    return [record(name=name, **changes) for name in names]


def searched(run: Path, some: list, n_shards: int = 1, **changes) -> Path:
    task_folder(run / "search" / some[0].task, some, n_shards, **changes)
    return run


def test_two_runs_become_one(tmp_path):
    a = searched(searched(tmp_path / "a", records_of("q1", "q2"), 2), records_of("q1", task="piqa"))
    b = searched(tmp_path / "b", records_of("q4", "q3"), questions="other")
    found = merge_runs([a, b], tmp_path / "out")
    easy, piqa = tmp_path / "out" / "search" / "arc_easy", tmp_path / "out" / "search" / "piqa"
    assert [(part.folder, part.n, part.n_sources, part.n_again) for part in found] == [
        (tmp_path / "out" / "verdicts", 10, 2, 0),
        (easy, 4, 2, 0),
        (piqa, 1, 1, 0),
    ]
    assert read_records(easy) == records_of("q1", "q2", "q4", "q3")
    assert read_records(piqa) == records_of("q1", task="piqa")
    manifest = read_manifest(easy).to_json()
    assert manifest["ids"] == ["q1", "q2", "q4", "q3"]
    assert manifest["questions"] == hashlib.sha256(b"d1ge57other").hexdigest()[:16]
    assert [(part["folder"], part["questions"], part["ids"]) for part in manifest["merged"]] == [
        (str(a / "search" / "arc_easy"), "d1ge57", ["q1", "q2"]),
        (str(b / "search" / "arc_easy"), "other", ["q4", "q3"]),
    ]
    assert {key: manifest[key] for key in ("task", "model", "fingerprint", "config")} == {
        key: PLAN[key] for key in ("task", "model", "fingerprint", "config")
    }


def test_the_bytes_of_a_merge_do_not_depend_on_how_its_sources_were_sharded_or_ordered(tmp_path):
    some = [full_record(f"q{n}") for n in range(7)]
    for name, n_shards in (("a", 1), ("b", 3)):
        searched(tmp_path / name, some, n_shards)
    write_verdicts(tmp_path / "c", some[:3], "some")
    merge_runs([tmp_path / "a", tmp_path / "c"], tmp_path / "one")
    merge_runs([tmp_path / "c", tmp_path / "b"], tmp_path / "other")
    for part in ("verdicts", "search"):
        files = [sorted((tmp_path / name / part).rglob("*.parquet")) for name in ("one", "other")]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
        assert len(files[0]) == 1


def test_a_large_merge_is_cut_into_shards(tmp_path):
    searched(tmp_path / "a", records_of(*(f"q{n}" for n in range(1030))))
    merge_runs([tmp_path / "a"], tmp_path / "out")
    target = tmp_path / "out" / "search" / "arc_easy"
    assert [len(read_shard(shard_path(target, index))) for index in shard_indices(target)] == [1024, 6]
    assert read_records(target) == read_records(tmp_path / "a" / "search")


def test_equal_rows_are_kept_once_and_counted(tmp_path):
    """Also those with nan margins, which differ from themselves as numbers."""
    some = [full_record(f"q{n}") for n in (1, 2, 3)]
    a, b = searched(tmp_path / "a", some[:2]), searched(tmp_path / "b", some[1:], questions="other")
    verdicts, records = merge_runs([a, b], tmp_path / "out")
    assert (verdicts.n, verdicts.n_again, records.n, records.n_again) == (12, 4, 3, 1)
    assert [one.id for one in read_records(records.folder)] == read_manifest(records.folder).ids == ["q1", "q2", "q3"]
    verdicts, records = merge_runs([a, a], tmp_path / "twice")
    assert (verdicts.n, verdicts.n_again, records.n, records.n_again) == (8, 8, 2, 2)
    assert len(read_manifest(records.folder).merged) == 1, "one manifest given twice is one part"


def test_an_unfinished_search_can_be_merged_and_shows_what_is_missing(tmp_path):
    about = {"ids": ["q1", "q2", "q3"], "asked": [f"arc_easy:q{n}" for n in (1, 2, 3)], "splits": ["fit"] * 3}
    searched(tmp_path / "a", records_of("q1", "q3"), **about)
    _, part = merge_runs([tmp_path / "a"], tmp_path / "out")
    assert (part.n, read_manifest(part.folder).ids) == (2, ["q1", "q2", "q3"])


def test_merges_can_be_merged(tmp_path):
    """However they are nested, the manifest names the same parts."""
    names = ("q1", "q2", "q3")
    a, b, c = (searched(tmp_path / name, records_of(name), questions=f"d{name}") for name in names)
    merge_runs([a, b], tmp_path / "ab")
    merge_runs([tmp_path / "ab", c], tmp_path / "nested")
    merge_runs([a, b, c], tmp_path / "flat")
    flat, nested = (tmp_path / name / "search" / "arc_easy" for name in ("flat", "nested"))
    assert read_records(flat) == read_records(nested) == records_of(*names)
    assert read_manifest(nested) == read_manifest(flat)


def test_matrices_are_merged_over_questions_and_over_routes(tmp_path):
    some = records_of("q1", "q2", others=(1.0, 0.0, 1.0))

    def matrix(run: Path, some: list, routes: tuple[Route, ...]) -> Path:
        folder = task_folder(run / "paths" / "arc_easy", some, 1, paths=list(map(str, routes)))
        for path in folder.glob("shard-*"):
            path.unlink()  # of a matrix there is the manifest alone
        return run

    one, two = matrix(tmp_path / "a", some, ROUTES[:2]), matrix(tmp_path / "b", some, (ROUTES[0], ROUTES[3]))
    other = matrix(tmp_path / "c", records_of("q3", others=(1.0, 0.0, 1.0)), ROUTES[:2])
    for sources, ids, routes in (
        ([one, two], ["q1", "q2"], (*ROUTES[:2], ROUTES[3])),
        ([one, other], ["q1", "q2", "q3"], ROUTES[:2]),
        ([two, other], ["q1", "q2", "q3"], ROUTES[:1]),
    ):
        out = tmp_path / "-".join(source.name for source in sources)
        merge_runs(sources, out)
        [(folder, manifest)] = path_manifests(out).items()
        found = read_matrix(folder, manifest)
        assert [record.id for record in found] == ids
        assert {record.routes for record in found} == {routes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"seed": 1, "n_simulations": 50}}, r"was searched with config\.seed = 0, .*arc_easy with 1: merge only what was"),
        ({"fingerprint": "beef"}, "was searched with fingerprint = 'f00d', .* with 'beef'"),
        ({"dtype": "torch.float32"}, r"with dtype = '', .* with 'torch.float32'"),
    ],
)
def test_what_was_searched_otherwise_is_not_merged(tmp_path, change, message):
    a = searched(tmp_path / "a", records_of("q1"))
    b = searched(tmp_path / "b", records_of("q2"), questions="other", **change)
    with pytest.raises(ArtifactError, match=message) as caught:
        merge_runs([a, b], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_runs_that_say_otherwise_are_not_merged(tmp_path):
    a = searched(tmp_path / "a", [full_record("q1"), full_record("q2")])
    b = searched(tmp_path / "b", [full_record("q1", verdicts={ROUTES[1]: verdict(False, 0.7)})], questions="other")
    with pytest.raises(ArtifactError, match="two runs say otherwise of task arc_easy, question arc_easy:q1, route 0111"):
        merge_runs([a, b], tmp_path / "out")
    for change in ({"checks": ()}, {"seed": 6}, {"control_routes": (ROUTES[2],)}):
        b = searched(tmp_path / str(change), [replace(full_record("q1"), **change)], questions="other")
        with pytest.raises(ArtifactError, match=r"question 'q1' has different records in .*/a/search/arc_easy and "):
            merge_runs([a, b], tmp_path / "out")
    for name, route in (("d", ROUTES[0]), ("e", ROUTES[1])):
        run = searched(tmp_path / name, records_of("q1"))
        Decided(run / "decided").write("policy", CONDITIONS, [(record().asked, route)])
    with pytest.raises(ArtifactError, match="two runs say otherwise of task arc_easy, question arc_easy:q1:"):
        merge_runs([tmp_path / "d", tmp_path / "e"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_records_that_are_not_of_their_manifest_are_refused(tmp_path):
    for n, change in enumerate(({"ids": ["q2"]}, {"task": "piqa"}, {"conditions": {"weights": "b", "dtype": "t", "reward": "letter"}})):
        run = searched(tmp_path / str(n), records_of("q1"), **change)
        with pytest.raises(ArtifactError, match="holds question 'q1', which is not in its manifest"):
            merge_runs([run], tmp_path / "out")
    run = searched(tmp_path / "evil", records_of("q1"), task="../../evil")
    with pytest.raises(ArtifactError, match=r"names the task '../../evil'"):
        merge_runs([run], tmp_path / "out")
    run = searched(tmp_path / "a", records_of("q1"))
    shard_path(run / "search" / "arc_easy", 0).write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="not a readable shard"):
        merge_runs([run], tmp_path / "out")
    shard_path(run / "search" / "arc_easy", 0).unlink()
    with pytest.raises(ArtifactError, match="holds no records: run its search, or leave it out"):
        merge_runs([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_merged_into_verdicts(tmp_path):
    a, b = searched(tmp_path / "a", records_of("q1")), searched(tmp_path / "b", records_of("q2"))
    with pytest.raises(InputError, match="holds verdicts already: merge into a new folder"):
        merge_runs([a, b], a)


def test_runs_without_verdicts_are_refused(tmp_path):
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


def test_records_written_by_hand_need_their_verdicts(tmp_path):
    write_shard(tmp_path / "run" / "search" / "arc_easy", 0, records_of("q1"))
    with pytest.raises(ArtifactError, match="holds no verdicts"):
        merge_runs([tmp_path / "run"], tmp_path / "out")
