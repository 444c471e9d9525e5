"""Finished records: found in run folders, merged without loss or doubling, exported to files that other tools read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.runs.manifest import read_manifest
from drllm.runs.merge import export_records, merge_records, record_groups, task_folders
from drllm.runs.records import Check, RouteRecord, read_records, read_shard, shard_indices, shard_path, write_shard
from record_factory import PLAN, full_record, record, task_folder


def records_of(*names: str, **changes) -> list:
    return [record(name=name, **changes) for name in names]


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_task_folders_of_a_run_a_part_of_it_or_one_task(tmp_path):
    run = tmp_path / "run"
    easy, piqa = task_folder(run / "search" / "arc_easy", records_of("q1", "q2")), task_folder(run / "search" / "piqa", records_of("q1"), 1)
    matrix = task_folder(run / "paths" / "piqa", records_of("q1"), 1)
    (run / "search" / "empty").mkdir()
    (run / "train" / "deep").mkdir(parents=True)
    assert task_folders(run) == [easy, piqa, matrix]
    assert task_folders(run / "search") == [easy, piqa]
    assert task_folders(matrix) == [matrix]
    groups = record_groups(run)
    assert {where: len(found) for where, found in groups.items()} == {run / "search": 3, run / "paths": 1}
    assert record_groups(easy) == {easy: records_of("q1", "q2")}
    assert record_groups(shard_path(easy, 1)) == {shard_path(easy, 1): records_of("q2")}


def test_folders_without_records_are_refused(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    write_shard(tmp_path / "empty", 0, [])
    for source, message in (
        (tmp_path / "none", "none does not exist: give a run folder"),
        (tmp_path / "run.json", r"run\.json is no shard: give a \.parquet file"),
        (tmp_path / "empty", "empty holds no search records: its shards are empty"),
        (tmp_path / "empty" / "shard-00000.parquet", "holds no search records: its shards are empty"),
        (tmp_path / "empty" / "shard-00001.parquet", "does not exist"),
    ):
        with pytest.raises(ArtifactError, match=message):
            record_groups(source)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ArtifactError, match="bare holds no search records: give a run folder"):
        merge_records([tmp_path / "bare"], tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"run\.json is no folder"):
        merge_records([tmp_path / "run.json"], tmp_path / "out")


def test_two_runs_become_one(tmp_path):
    task_folder(tmp_path / "a" / "search" / "arc_easy", records_of("q1", "q2"))
    task_folder(tmp_path / "a" / "search" / "piqa", records_of("q1", task="piqa"), 1)
    task_folder(tmp_path / "b" / "search" / "arc_easy", records_of("q4", "q3"), questions="other")
    merged = merge_records([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    easy, piqa = tmp_path / "out" / "search" / "arc_easy", tmp_path / "out" / "search" / "piqa"
    assert [(part.folder, part.n_records, part.n_sources, part.n_again) for part in merged] == [(easy, 4, 2, 0), (piqa, 1, 1, 0)]
    assert read_records(easy) == records_of("q1", "q2", "q4", "q3")
    assert read_records(piqa) == records_of("q1", task="piqa")
    assert files_below(tmp_path / "out") == [
        f"search/{task}/{name}" for task in ("arc_easy", "piqa") for name in ("_plan.json", "shard-00000.parquet")
    ]
    manifest = read_manifest(easy).to_json()
    assert manifest["ids"] == ["q1", "q2", "q4", "q3"]
    assert manifest["questions"] == hashlib.sha256(b"d1ge57other").hexdigest()[:16]
    assert manifest["merged"] == [
        {"folder": str(tmp_path / "a" / "search" / "arc_easy"), "data": None, "model": "tiny", "questions": "d1ge57", "ids": ["q1", "q2"]},
        {"folder": str(tmp_path / "b" / "search" / "arc_easy"), "data": None, "model": "tiny", "questions": "other", "ids": ["q4", "q3"]},
    ]
    assert {key: manifest[key] for key in ("task", "model", "fingerprint", "config")} == {
        key: PLAN[key] for key in ("task", "model", "fingerprint", "config")
    }


def test_the_bytes_of_a_merge_do_not_depend_on_how_its_sources_were_sharded(tmp_path):
    some = [full_record(f"q{n}") for n in range(7)]
    for name, n_shards in (("a", 1), ("b", 3)):
        task_folder(tmp_path / name / "search" / "arc_easy", some, n_shards)
        merge_records([tmp_path / name], tmp_path / f"out-{name}")
    one, other = (shard_path(tmp_path / f"out-{name}" / "search" / "arc_easy", 0).read_bytes() for name in "ab")
    assert one == other


def test_a_large_merge_is_cut_into_shards(tmp_path):
    source = task_folder(tmp_path / "a", records_of(*(f"q{n}" for n in range(1030))), 1)
    merge_records([source], tmp_path / "out")
    target = tmp_path / "out" / "search" / "arc_easy"
    assert [len(read_shard(shard_path(target, index))) for index in shard_indices(target)] == [1024, 6]
    assert read_records(target) == read_records(source)


def test_equal_records_are_kept_once_and_counted(tmp_path):
    """Also records with nan margins, which differ from themselves as numbers."""
    some = [full_record(f"q{n}") for n in (1, 2, 3)]
    a, b = task_folder(tmp_path / "a", some[:2]), task_folder(tmp_path / "b", some[1:], questions="other")
    (part,) = merge_records([a, b], tmp_path / "out")
    assert (part.n_records, part.n_sources, part.n_again) == (3, 2, 1)
    assert [one.id for one in read_records(part.folder)] == read_manifest(part.folder).ids == ["q1", "q2", "q3"]
    (part,) = merge_records([a, a], tmp_path / "twice")
    assert (part.n_records, part.n_sources, part.n_again) == (2, 2, 2)
    manifest = read_manifest(part.folder).to_json()
    assert (manifest["questions"], len(manifest["merged"])) == ("d1ge57", 1)  # one manifest given twice is one part


def test_an_unfinished_search_can_be_merged_and_shows_what_is_missing(tmp_path):
    source = task_folder(tmp_path / "a", records_of("q1", "q3"), ids=["q1", "q2", "q3"])
    (part,) = merge_records([source], tmp_path / "out")
    assert (part.n_records, read_manifest(part.folder).ids) == (2, ["q1", "q2", "q3"])


def test_questions_left_out_may_differ_and_are_kept_together(tmp_path):
    a = task_folder(tmp_path / "a", records_of("q1"), 1, skipped={"q8": "too long"})
    b = task_folder(tmp_path / "b", records_of("q2"), 1, questions="other", skipped={"q9": "one choice"})
    (part,) = merge_records([a, b], tmp_path / "out")
    assert read_manifest(part.folder).skipped == {"q8": "too long", "q9": "one choice"}


def test_merges_can_be_merged(tmp_path):
    """However they are nested, the manifest names the same parts."""
    names = ("q1", "q2", "q3")
    a, b, c = (task_folder(tmp_path / name, records_of(name), 1, questions=f"d{name}") for name in names)
    merge_records([a, b], tmp_path / "ab")
    merge_records([tmp_path / "ab", c], tmp_path / "nested")
    merge_records([a, b, c], tmp_path / "flat")
    merge_records([tmp_path / "ab", tmp_path / "nested", b], tmp_path / "again")
    flat, nested, again = (tmp_path / name / "search" / "arc_easy" for name in ("flat", "nested", "again"))
    assert read_records(flat) == read_records(nested) == read_records(again) == records_of(*names)
    assert read_manifest(nested) == read_manifest(flat) == read_manifest(again)
    assert [part.folder for part in read_manifest(flat).merged] == [str(folder) for folder in (a, b, c)]


def test_matrices_stay_apart_from_searches(tmp_path, monkeypatch):
    for name in ("a", "b"):
        task_folder(tmp_path / name / "search" / "arc_easy", records_of(f"search-{name}"), 1, questions=name)
        task_folder(tmp_path / name / "paths" / "arc_easy", records_of(f"paths-{name}"), 1, questions=name, paths=["0111"])
    merge_records([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    for kind in ("search", "paths"):
        assert [one.id for one in read_records(tmp_path / "out" / kind)] == [f"{kind}-a", f"{kind}-b"]
    # A folder knows what it is by where it lies, also when it is given as ".".
    monkeypatch.chdir(tmp_path / "a" / "paths" / "arc_easy")
    (part,) = merge_records([Path()], tmp_path / "here")
    assert part.folder == tmp_path / "here" / "paths" / "arc_easy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"seed": 1, "n_simulations": 50}}, r"/a was searched with config\.seed = 0, .*/b with 1: merge only what was searched"),
        ({"fingerprint": "beef"}, "/a was searched with fingerprint = 'f00d', .*/b with 'beef'"),
        ({"dtype": "torch.float32"}, r"with dtype = '', .*/b with 'torch.float32'"),
        ({"paths": ["0111"]}, r"with paths = None, .* with a list of 1"),
    ],
)
def test_what_was_searched_otherwise_is_not_merged(tmp_path, change, message):
    a = task_folder(tmp_path / "a", records_of("q1"), 1)
    fingerprint = change.get("fingerprint", "f00d")
    b = task_folder(tmp_path / "b", records_of("q2", fingerprint=fingerprint), 1, questions="other", **change)
    with pytest.raises(ArtifactError, match=message) as caught:
        merge_records([a, b], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_two_records_of_one_question_are_refused(tmp_path):
    one = full_record("q1")
    a = task_folder(tmp_path / "a", [one, full_record("q2")])
    for change in ({"base_margin": 0.5}, {"control_correct": (True, True)}, {"checks": ()}, {"split": "tune"}):
        b = task_folder(tmp_path / str(change), [replace(one, **change)], 1, questions="other")
        with pytest.raises(ArtifactError, match=r"question 'q1' of arc_easy has different records in .*/a and "):
            merge_records([a, b], tmp_path / "out")
    twice = task_folder(tmp_path / "twice", [one, replace(one, seed=6)])
    with pytest.raises(ArtifactError, match="question 'q1' of arc_easy has different records"):
        merge_records([twice], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_records_that_are_not_of_their_manifest_are_refused(tmp_path):
    for n, (change, message) in enumerate(
        (
            ({"ids": ["q2"]}, "holds question 'q1' of arc_easy .*which is not in its _plan.json"),
            ({"task": "piqa"}, "holds question 'q1' of arc_easy .*which is not in its _plan.json"),
            ({"fingerprint": "beef"}, r"holds question 'q1' of arc_easy \(weights f00d\), which is not in its _plan.json"),
            ({"task": "../../evil"}, r"_plan.json names the task '../../evil'"),
        )
    ):
        folder = task_folder(tmp_path / str(n), records_of("q1"), 1, **change)
        with pytest.raises(ArtifactError, match=message):
            merge_records([folder], tmp_path / "out")
    bare = tmp_path / "bare"
    write_shard(bare, 0, records_of("q1"))
    with pytest.raises(ArtifactError, match=r"bare holds records without _plan\.json"):
        merge_records([bare], tmp_path / "out")
    a = task_folder(tmp_path / "a", records_of("q1"), 1)
    b = task_folder(tmp_path / "b", records_of("q2", reward="letter"), 1, questions="other")
    with pytest.raises(ArtifactError, match=r"with reward loglik, .*/b with letter: merge one reward"):
        merge_records([a, b], tmp_path / "out")
    shard_path(a, 0).write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="not a readable shard"):
        merge_records([a], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_merged_into_records(tmp_path):
    a = task_folder(tmp_path / "a" / "search" / "arc_easy", records_of("q1"), 1)
    before = [path.read_bytes() for path in sorted(a.iterdir())]
    for source in (a, task_folder(tmp_path / "b", records_of("q2", task="piqa"), 1)):
        with pytest.raises(InputError, match="holds records already: merge into a new folder"):
            merge_records([source], tmp_path / "a")
    assert [path.read_bytes() for path in sorted(a.iterdir())] == before


def exported(tmp_path: Path, name: str, some: list, **how) -> Path:
    source = task_folder(tmp_path / "run" / "search" / "arc_easy", some)
    export_records(source.parent.parent, tmp_path / name, **how)
    return tmp_path / name


LONG = [
    {
        "task": "arc_easy",
        "id": "q1",
        "split": "tune",
        "route": "1111",
        "n_passes": 4,
        "correct": False,
        "margin": -0.3,
        "acc": False,
        "acc_norm": None,
        "source": "search",
    },
    {
        "task": "arc_easy",
        "id": "q1",
        "split": "tune",
        "route": "0111",
        "n_passes": 3,
        "correct": True,
        "margin": 0.7,
        "acc": True,
        "acc_norm": True,
        "source": "search",
    },
    {
        "task": "arc_easy",
        "id": "q1",
        "split": "tune",
        "route": "1001",
        "n_passes": 2,
        "correct": False,
        "margin": -2.5,
        "acc": None,
        "acc_norm": None,
        "source": "control",
    },
    {
        "task": "arc_easy",
        "id": "q1",
        "split": "tune",
        "route": "1121",
        "n_passes": 5,
        "correct": True,
        "margin": None,
        "acc": None,
        "acc_norm": None,
        "source": "control",
    },
]


def test_long_rows_as_json_lines_and_csv(tmp_path):
    some = [full_record("q1", split="tune", acc_norm=(None, True)), record(name='q,"2"\n', others=())]
    lines = exported(tmp_path, "all.jsonl", some).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[:4] == LONG
    assert [list(row) for row in rows] == [list(LONG[0])] * 5
    assert (rows[4]["id"], rows[4]["source"]) == ('q,"2"\n', "search")
    assert "NaN" not in "".join(lines)  # no JSON
    table = list(csv.DictReader(io.StringIO(exported(tmp_path, "all.csv", some).read_text(encoding="utf-8"))))
    assert len(table) == 5
    text = {None: "", True: "true", False: "false"}
    assert table[:4] == [
        {
            key: text.get(value, str(value)) if not isinstance(value, int) or isinstance(value, bool) else str(value)
            for key, value in row.items()
        }
        for row in LONG
    ]
    assert table[4]["id"] == 'q,"2"\n'
    assert exported(tmp_path, "ALL.CSV", some).read_bytes() == (tmp_path / "all.csv").read_bytes()


LOOPED = tuple(Route.parse(text) for text in ("1111", "0-2,1-3", "0-2,(1-2)*0.5,3", "0-1,0-1/4", "0-1,1,1,1-3"))


def looped(name: str) -> RouteRecord:
    """Loops wherever a record holds routes: a damped one, one whose last block never runs, four passes of a block."""
    n = len(LOOPED)
    values = {"rewards": (1.0,) * n, "margins": (0.5,) * n, "acc": (True,) * n, "acc_norm": (True,) * n}
    control = {"control_routes": LOOPED[1:], "control_correct": (True,) * (n - 1), "control_margins": (0.0,) * (n - 1)}
    checks = tuple(Check(route, "fp32:acc", True, 0.25) for route in LOOPED)
    return record(name=name, routes=LOOPED, chosen=LOOPED[1], checks=checks, **values, **control)


def test_loops_are_merged_and_exported_as_they_are(tmp_path):
    some = [looped("q1"), looped("q2")]
    for name, one in zip("ab", some, strict=True):
        task_folder(tmp_path / name / "search" / "arc_easy", [one], 1)
    (merged,) = merge_records([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert read_records(merged.folder) == some
    assert read_shard(exported(tmp_path, "all.parquet", some)) == some
    rows = [json.loads(line) for line in exported(tmp_path, "all.jsonl", some).read_text(encoding="utf-8").splitlines()]
    table = list(csv.DictReader(io.StringIO(exported(tmp_path, "all.csv", some).read_text(encoding="utf-8"))))
    texts = ["1111", "0-2,1-3", "0-2,(1-2)*0.5,3", "0-1,0-1/4", "0-1,1,1,1-3"]
    for found in (rows, table):
        assert [row["route"] for row in found[:9]] == [*texts, *texts[1:]]
        assert [int(row["n_passes"]) for row in found[:5]] == [4, 6, 6, 4, 7]
        assert [Route.parse(row["route"]) for row in found[:5]] == list(LOOPED)


def test_parquet_exports_are_shards_of_everything(tmp_path):
    some = [full_record(f"q{n}") for n in range(4)]
    out = exported(tmp_path, "new/all.parquet", some)
    assert repr(read_shard(out)) == repr(some)
    small = exported(tmp_path, "small.parquet", some, float16=True)
    assert pq.read_schema(small).field("margins").type.value_type == "halffloat"
    assert [one.id for one in read_shard(small)] == [one.id for one in some]
    assert repr(next(iter(record_groups(out).values()))) == repr(some)
    assert export_records(out, tmp_path / "again.parquet") == 4  # an export can be exported
    assert (tmp_path / "again.parquet").read_bytes() == out.read_bytes()


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    run = task_folder(tmp_path / "run", [record(name="q1", margins=(0.0, 1e5))], 1)
    before = files_below(tmp_path)
    for name, float16, message in (
        ("all.txt", False, r"expected a name that ends in \.parquet, \.csv, \.jsonl"),
        ("all", False, "expected a name that ends in"),
        ("shard-00001.parquet", False, "is the name of a shard"),
        ("all.csv", True, r"float16 margins are for \.parquet"),
        ("all.parquet", True, "margin of question 'q1' is 100000, float16 ends at 65504"),
    ):
        with pytest.raises(InputError, match=message):
            export_records(run, tmp_path / name, float16)
    with pytest.raises(ArtifactError, match="none does not exist"):
        export_records(tmp_path / "none", tmp_path / "all.csv")
    assert files_below(tmp_path) == before
