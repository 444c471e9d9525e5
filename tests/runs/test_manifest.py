"""Manifests: nothing made otherwise gets in among a folder's records; and dataclasses of JSON files, which are read back as written."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from drllm.core.errors import ArtifactError
from drllm.core.files import TEMPORARY_SUFFIX
from drllm.runs.manifest import Manifest, check_manifest, data_of, read_manifest
from drllm.runs.records import write_shard
from drllm.runs.summary import Summary, SummaryRow
from record_factory import PLAN, record


def test_the_same_manifest_goes_on(tmp_path):
    check_manifest(tmp_path / "new", Manifest.of(PLAN))
    before = (tmp_path / "new" / "_plan.json").read_bytes()
    check_manifest(tmp_path / "new", Manifest.of(copy.deepcopy(PLAN)))
    check_manifest(tmp_path / "new", Manifest.of({**PLAN, "ids": tuple(PLAN["ids"])}))  # what JSON cannot tell apart is the same
    assert (tmp_path / "new" / "_plan.json").read_bytes() == before
    assert read_manifest(tmp_path / "new") == Manifest.of(PLAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "beef"}, "fingerprint = 'f00d', now it is 'beef'"),
        ({"config": {"seed": 1, "n_simulations": 40}}, "config.seed = 0, now it is 1"),
        ({"config": {"seed": 0}}, "config.n_simulations = 50, now it is (not set)"),
        ({"config": {"seed": 0, "n_simulations": 50, "new": 1}}, "config.new = (not set), now it is 1"),
        ({"ids": ["q1", "q9", "q8"]}, "ids[1] = 'q2', now it is 'q9'"),
        ({"ids": ["q1"]}, "ids = a list of 3, now it is a list of 1"),
        ({"data": "a.jsonl"}, "data = None, now it is 'a.jsonl'"),
        ({"dtype": "torch.float32"}, "dtype = '', now it is 'torch.float32'"),
        ({"ids": None}, "ids = a list of 3, now it is None"),
    ],
)
def test_another_manifest_is_refused_and_names_the_first_difference(tmp_path, change, message):
    check_manifest(tmp_path, Manifest.of(PLAN))
    with pytest.raises(ArtifactError) as caught:
        check_manifest(tmp_path, Manifest.of({**PLAN, **change}))
    assert message in str(caught.value)
    assert "use another --out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_manifest(tmp_path) == Manifest.of(PLAN)


FOREIGN = {
    "cut off": "{",
    "a list": "[]",
    "no keys": "{}",
    "one key": '{"task": "arc_easy"}',
    "empty": "",
    **{f"no {key}": json.dumps({name: value for name, value in PLAN.items() if name != key}) for key in PLAN},
    "ids as text": json.dumps({**PLAN, "ids": "q1"}),
    "ids as numbers": json.dumps({**PLAN, "ids": [1]}),
    "config as list": json.dumps({**PLAN, "config": []}),
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "_plan.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"plan\.json is not") as caught:
        check_manifest(tmp_path, Manifest.of(PLAN))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "_plan.json").read_text() == text


def test_a_manifest_that_is_not_text_or_not_there_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"plan\.json is not readable JSON"):
        read_manifest(tmp_path)
    (tmp_path / "_plan.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ArtifactError, match=r"plan\.json is not readable JSON"):
        read_manifest(tmp_path)


def test_a_manifest_cleans_what_a_killed_process_left(tmp_path):
    left = tmp_path / f"shard-00001.parquet.123{TEMPORARY_SUFFIX}"
    left.write_bytes(b"half")
    check_manifest(tmp_path, Manifest.of(PLAN))
    write_shard(tmp_path, 0, [record()])
    left.write_bytes(b"half")
    check_manifest(tmp_path, Manifest.of(PLAN))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_plan.json", "shard-00000.parquet"]


def test_what_another_process_is_writing_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        theirs, dead = (tmp_path / f"shard-00001.parquet.{pid}{TEMPORARY_SUFFIX}" for pid in (other.pid, 2**22 + 1))
        for path in (theirs, dead):
            path.write_bytes(b"half")
        check_manifest(tmp_path, Manifest.of(PLAN))
        other.kill()
    assert (theirs.exists(), dead.exists()) == (True, False)


def test_listed_routes_are_added_to_those_that_stand_there(tmp_path):
    check_manifest(tmp_path, Manifest.of({**PLAN, "paths": ["1111", "0111"]}))
    found = check_manifest(tmp_path, Manifest.of({**PLAN, "paths": ["1111", "1121"]}))
    assert found.paths == read_manifest(tmp_path).paths == ["1111", "0111", "1121"]
    with pytest.raises(ArtifactError, match=r"paths = a list of 3, now it is None"):
        check_manifest(tmp_path, Manifest.of(PLAN))


def test_shards_without_a_manifest_are_adopted_by_none(tmp_path):
    write_shard(tmp_path, 0, [record()])
    with pytest.raises(ArtifactError, match=r"holds records \(shard-00000.parquet, ...\) but no _plan.json"):
        check_manifest(tmp_path, Manifest.of(PLAN))
    assert not (tmp_path / "_plan.json").exists()


def test_remembered_questions_are_found_from_another_folder(tmp_path, monkeypatch):
    run = tmp_path / "own" / "runs" / "a"
    run.mkdir(parents=True)
    (tmp_path / "own" / "q.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path / "own")
    assert data_of(run, "q.jsonl") == "q.jsonl", "as it was given, where it is there"
    monkeypatch.chdir(tmp_path)
    assert data_of(Path("own/runs/a"), "q.jsonl") == tmp_path / "own" / "q.jsonl"
    assert data_of(run, "gone.jsonl") == "gone.jsonl", "whoever reads it says what is missing"
    assert data_of(run, None) is None


ROW = {"method": "base", "task": "t", "n": 2, "accuracy": 0.5, "wilson_low": 0.1, "wilson_high": 0.9, "mean_passes": 4.0, "n_layers": 4}
SUMMARY = {"split": "tune", "reference": "base", "model": "m", "tasks": ["t"], "rows": [ROW]}

ROW_WRITTEN = {**ROW, "distinct_routes": None, "identity_share": None}


def test_what_is_written_is_what_is_read():
    summary = Summary.of(SUMMARY)
    lacking = {name: {} for name in ("dropped", "sources", "data", "texts", "policies")}
    assert summary.to_json() == {**SUMMARY, "rows": [ROW_WRITTEN], "fingerprint": ""} | lacking
    assert Summary.of(summary.to_json()) == summary


def test_a_new_object_has_what_it_was_given_in_the_order_of_the_fields():
    row = SummaryRow(**ROW, distinct_routes=1, identity_share=None)
    assert list(row.to_json()) == [*ROW, "distinct_routes", "identity_share"], "the base has no difference to itself"
    made = Manifest(task="t", ids=["q"])
    assert list(made.to_json())[-1] == "control"
    assert "kind" in Manifest(kind="math").to_json()


def test_one_row_a_method():
    rows = [SummaryRow.of({**ROW, "task": task}) for task in ("t", "u", "all")]
    assert Summary.of(SUMMARY).pooled == [SummaryRow.of(ROW)]
    assert Summary.of(SUMMARY).changed(rows=rows).pooled == rows[2:]


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        (Summary, {**SUMMARY, "rows": [{"method": 3}]}, f"SummaryRow (without {', '.join(list(ROW)[1:])})"),
        (Summary, {"rows": []}, "Summary (without split, reference, model, tasks)"),
        (Summary, {**SUMMARY, "rows": None}, "Summary (without rows)"),
        (Summary, {**SUMMARY, "rows": [3]}, "SummaryRow (3, expected names with values)"),
        (Summary, {**SUMMARY, "rows": 3}, "SummaryRow (3, expected names with values)"),
        (Summary, {**SUMMARY, "rows": ROW}, "SummaryRow ('method', expected names with values)"),
    ],
)
def test_what_is_not_the_object_is_refused_in_one_line(kind, values, found):
    with pytest.raises(ArtifactError) as caught:
        kind.of(values, "run/x.json")
    assert str(caught.value) == f"run/x.json holds a bad {found}: run that stage again"
