"""Shards and exports are plain Parquet: Arrow, pandas, DuckDB and datasets read them without drllm."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from drllm.runs.merge import export_records
from fences import fences
from record_factory import ROUTES, full_record, record, task_folder

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


def readable(tmp_path: Path) -> Path:
    """The `search` folder of two tasks as a search leaves it, manifests and prior among the shards; one without verdicts."""
    search = tmp_path / "run" / "search"
    task_folder(search / "arc_easy", [full_record(f"q{n}") for n in range(3)])
    bare = {"chosen": None, "acc": (None,), "acc_norm": (None,), "base_margin": math.nan, "margins": (math.nan,), "reward": "boxed"}
    task_folder(search / "gsm8k", [record("gsm8k", "q0", others=(), n_choices=0, **bare)], 1)
    (search / "arc_easy" / "_prior.json").write_text("{}")
    return search


def float16_file(tmp_path: Path) -> Path:
    """An export with float16 margins."""
    export_records(task_folder(tmp_path / "one", [full_record()], 1), tmp_path / "small.parquet", float16=True)
    return tmp_path / "small.parquet"


def test_shards_are_one_dataset_for_arrow(tmp_path):
    search = readable(tmp_path)
    shards = sorted(search.glob("*/shard-*.parquet"))
    assert len({pq.read_schema(path).remove_metadata() for path in shards}) == 1
    table = ds.dataset(search).to_table()
    assert sorted(zip(table["task"].to_pylist(), table["id"].to_pylist(), strict=True)) == [
        ("arc_easy", "q0"),
        ("arc_easy", "q1"),
        ("arc_easy", "q2"),
        ("gsm8k", "q0"),
    ]
    assert table["routes"].to_pylist()[0] == [str(route) for route in ROUTES[:2]]


def test_shards_are_one_table_for_pandas(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    search = readable(tmp_path)
    table = pandas.read_parquet(search)  # the manifests among the shards begin with _, which Arrow passes over
    assert sorted(table["id"]) == ["q0", "q0", "q1", "q2"]
    assert table["chosen"].isna().sum() == 1
    first = table.iloc[0]
    assert list(first["routes"]) == ["1111", "0111"]
    assert first["checks"][1]["check"] == "template:acc"
    small = float16_file(tmp_path)
    assert pandas.read_parquet(small)["base_margin"].dtype == "float16"


def test_shards_are_one_table_for_duckdb(tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    search = readable(tmp_path)
    assert duckdb.sql(f"SELECT task, count(*) FROM '{search}/*/*.parquet' GROUP BY task ORDER BY task").fetchall() == [
        ("arc_easy", 3),
        ("gsm8k", 1),
    ]
    rows = f"SELECT unnest(routes) AS route, unnest(rewards) = 1 AS correct FROM '{search}/*/*.parquet'"
    assert duckdb.sql(f"SELECT route, sum(correct) FROM ({rows}) GROUP BY route ORDER BY route").fetchall() == [("0111", 3), ("1111", 0)]
    small = float16_file(tmp_path)
    assert duckdb.sql(f"SELECT control_margins[1], checks[1].\"check\" FROM '{small}'").fetchall() == [(-2.5, "fp32:acc")]


def test_shards_are_one_dataset_for_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    search = readable(tmp_path)
    table = datasets.load_dataset("parquet", data_files=f"{search}/*/*.parquet", split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(table["id"]) == ["q0", "q0", "q1", "q2"]
    assert table[0]["routes"] == ["1111", "0111"]
    assert table[0]["checks"][0]["check"] == "fp32:acc"


@pytest.mark.parametrize("name", ["datasets", "pandas", "duckdb"])
def test_the_examples_of_the_docs_run(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip(name, reason=f"{name} is not installed")
    (code,) = [block for block in fences(FORMATS, "python") if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)]
    (tmp_path / "runs").mkdir()
    readable(tmp_path).parent.rename(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    if name == "datasets":
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    exec(code, {})
    assert "1111" in capsys.readouterr().out
