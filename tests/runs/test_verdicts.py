"""Files of verdicts: written whole, read back as they were, also those of earlier versions."""

from __future__ import annotations

import dataclasses
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drllm.runs.verdicts import Verdicts, find_verdicts, read_verdicts, write_verdicts

from drllm.core.errors import ArtifactError

FOUND = Verdicts(
    ids=["a", "b"],
    correct=[True, False],
    acc=[True, None],
    acc_norm=[None, False],
    margins=[0.25, -1.5],
    routes=["1121", "1011"],
    passes=[5, 3],
    seconds=0.1,
    metadata={"key": "k", "comparable": "c", "policy": "p"},
)


def test_verdicts_are_read_back(tmp_path):
    path = tmp_path / "evaluate" / "a.parquet"
    write_verdicts(path, FOUND)
    assert read_verdicts(path) == find_verdicts(path, "k") == FOUND
    assert find_verdicts(path, "other") is None
    assert find_verdicts(tmp_path / "none.parquet", "k") is None
    assert FOUND.rows[1] == {"id": "b", "correct": False, "route": "1011", "n_passes": 3}
    table = pq.ParquetFile(path).read()
    assert table.column_names == ["id", "correct", "correct_acc", "correct_acc_norm", "margin", "route", "n_passes"]
    assert {k: v for k, v in table.schema.metadata.items() if k != b"ARROW:schema"} == {
        b"key": b"k",
        b"seconds": b"0.1",
        b"comparable": b"c",
        b"policy": b"p",
    }


def test_gates_have_no_route_and_some_rewards_no_margin(tmp_path):
    write_verdicts(tmp_path / "a.parquet", dataclasses.replace(FOUND, routes=["", ""], passes=[3.5, 2.25], margins=[math.nan] * 2))
    found = read_verdicts(tmp_path / "a.parquet")
    assert (found.routes, found.passes) == (["", ""], [3.5, 2.25])
    assert all(map(math.isnan, found.margins))


def test_a_file_of_an_older_version_is_read(tmp_path):
    """Without what later versions added: routes may be null, and the file says nothing of settings or policy."""
    table = pa.table({"id": ["a"], "correct": [True], "route": pa.array([None], pa.string()), "n_passes": [4]})
    pq.write_table(table.replace_schema_metadata({"key": "k", "seconds": "2.5"}), tmp_path / "a.parquet")
    found = read_verdicts(tmp_path / "a.parquet")
    assert (found.ids, found.routes, found.passes, found.seconds, found.metadata) == (["a"], [""], [4], 2.5, {"key": "k"})


@pytest.mark.parametrize("content", [b"", b"PAR1 none"])
def test_a_corrupt_file_is_refused(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.parquet is not a readable file of verdicts .*: delete it and evaluate again"):
        find_verdicts(tmp_path / "a.parquet", "k")


def test_a_foreign_table_is_refused(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=r"not a readable file of verdicts \('id'\)"):
        read_verdicts(tmp_path / "a.parquet")
