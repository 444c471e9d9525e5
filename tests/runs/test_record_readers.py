"""The store is plain Parquet: pandas, DuckDB and datasets read it without drllm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fences import fences
from record_factory import full_record, record, task_folder

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


def readable(tmp_path: Path) -> Path:
    """The store of a run with two tasks."""
    task_folder(tmp_path / "run" / "search" / "arc_easy", [full_record(f"q{n}") for n in range(3)])
    task_folder(tmp_path / "run" / "search" / "piqa", [record("piqa", "q0", others=())], 1)
    return tmp_path / "run" / "verdicts"


def test_shards_are_one_dataset_for_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    files = f"{readable(tmp_path)}/*.parquet"
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 13
    assert {row["strict"] for row in table} == {None}


@pytest.mark.parametrize("name", ["pandas", "duckdb"])
def test_the_examples_of_the_docs_run(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip(name, reason=f"{name} is not installed")
    (code,) = [block for block in fences(FORMATS, "python") if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)]
    (tmp_path / "runs").mkdir()
    readable(tmp_path).parent.rename(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "1111" in capsys.readouterr().out
