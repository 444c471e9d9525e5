"""Finished work is found again: under its key, after a restart, and in files that earlier versions wrote."""

from __future__ import annotations

import hashlib
import json

import pytest

from drllm.core.errors import ArtifactError
from drllm.retrofitting.stages import Stages
from drllm.runs.layout import RunFolder
from drllm.runs.memo import Memo, key_of, read_kept


def old_digest(value):
    """As every version before computed it, for stages and for the reproduction's ledger."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def test_work_is_found_under_its_key_alone(tmp_path):
    memo = Memo(tmp_path / "new" / "a.json", "stages")
    assert memo.find("one", "k") is None
    assert "one" not in memo
    memo.keep("one", "k", seconds=1.5, result=[1])
    memo.keep("two", "q", result=None)
    again = Memo(tmp_path / "new" / "a.json", "stages")
    assert again.find("one", "k") == {"key": "k", "seconds": 1.5, "result": [1]}
    assert again.find("one", "q") is None
    assert "one" in again
    memo.keep("one", "q", result=2)
    assert again.find("one", "k") is None
    assert json.loads(memo.path.read_text()) == {"stages": {"one": {"key": "q", "result": 2}, "two": {"key": "q", "result": None}}}


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": []}', '{"stages": {"one": 1}}', "{}"])
def test_a_corrupt_file_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"a\.json .*: delete it, finished work is found again"):
        Memo(tmp_path / "a.json", "stages").find("one", "k")


def test_stages_of_an_earlier_version_are_done_already(tmp_path, capfd):
    """`pipeline.json` as it was written before there was a memo: same keys, same digests of files."""
    (tmp_path / "search" / "t").mkdir(parents=True)
    (tmp_path / "search" / "t" / "shard-00000.parquet").write_bytes(b"records")
    files = {"search/t/shard-00000.parquet": hashlib.sha256(b"records").hexdigest()[:16]}
    start = ["f00d", "torch.float32", ["t"], None]
    first = old_digest([old_digest(start), "search", {"b": 1, "a": [2]}])
    second = old_digest([first, "generate", {"tokens": 48}])
    (tmp_path / "pipeline.json").write_text(
        json.dumps(
            {
                "stages": {
                    "search": {"key": first, "seconds": 2.0, "files": files, "result": "there"},
                    "generate": {"key": second, "seconds": 0.1, "files": {}, "result": {"text": "x"}},
                }
            }
        )
    )
    before = (tmp_path / "pipeline.json").read_bytes()

    def fail():
        raise AssertionError("it is done")

    stages = Stages(RunFolder(tmp_path), start)
    assert stages.run("search", {"a": [2], "b": 1}, [tmp_path / "search"], fail) == "there"
    assert stages.run("generate", {"tokens": 48}, [], fail) == {"text": "x"}
    assert stages.skipped == ["search", "generate"]
    assert (tmp_path / "pipeline.json").read_bytes() == before
    (tmp_path / "search" / "t" / "shard-00000.parquet").write_bytes(b"others")
    again = Stages(RunFolder(tmp_path), start)
    assert again.run("search", {"a": [2], "b": 1}, [tmp_path / "search"], lambda: "anew") == "anew"
    assert again.skipped == []


def test_the_ledger_of_an_earlier_reproduction_is_found(tmp_path):
    key = ["f00d", "torch.float32", "routers", {"epochs": 3}, ("a", "b"), "k"]
    run = RunFolder(tmp_path)
    run.reproduction.mkdir()
    run.reproduced.write_text(json.dumps({"train routers": {"key": old_digest(key), "result": {"digest": "d1"}}}))
    assert Memo(run.reproduced).find("train routers", key_of(key)) == {"key": old_digest(key), "result": {"digest": "d1"}}


def test_a_file_of_one_piece_of_work(tmp_path):
    path = tmp_path / "results.json"
    assert read_kept(path, "k", "again") is None
    path.write_text('{"drllm_key": "k", "x": 1}')
    assert read_kept(path, "k", "again", "drllm_key") == {"drllm_key": "k", "x": 1}
    assert read_kept(path, "q", "again", "drllm_key") is None
    assert read_kept(path, "k", "again") is None
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"results\.json is not readable JSON .*: again"):
        read_kept(path, "k", "again")
