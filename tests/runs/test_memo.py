"""Finished work is found again: under its key, and after a restart."""

from __future__ import annotations

import json

import pytest

from drllm.core.errors import ArtifactError
from drllm.runs.stages import Memo, read_kept


def test_work_is_found_under_its_key_alone(tmp_path):
    memo = Memo(tmp_path / "new" / "a.json")
    assert memo.find("one", "k") is None
    assert "one" not in memo
    memo.keep("one", "k", seconds=1.5, result=[1])
    memo.keep("two", "q", result=None)
    again = Memo(tmp_path / "new" / "a.json")
    assert again.find("one", "k") == {"key": "k", "seconds": 1.5, "result": [1]}
    assert again.find("one", "q") is None
    assert "one" in again
    memo.keep("one", "q", result=2)
    assert again.find("one", "k") is None
    assert json.loads(memo.path.read_text()) == {"one": {"key": "q", "result": 2}, "two": {"key": "q", "result": None}}


@pytest.mark.parametrize("content", ["{", "[]", '{"one": 1}'])
def test_a_corrupt_file_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"a\.json .*: delete it, finished work is found again"):
        Memo(tmp_path / "a.json").find("one", "k")


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
