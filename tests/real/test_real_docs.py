"""The Python of README, docs and notebook, run as it is printed, on the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drllm import Route
from drllm.cli.main import main as drllm
from drllm.model.packages import PACKAGED
from fences import fences

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-q4"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGED[MODEL].installed is None, reason=f"needs the data package of {MODEL} (drllm models)"),
]


def run(code: str, names: dict) -> dict:
    """One block, with the names of those before it."""
    exec(compile(code, "a page", "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the code of README and of the page it names has run."""
    folder = tmp_path_factory.mktemp("readme")
    (code,), (_, whole) = fences(ROOT / "README.md", "python"), fences(ROOT / "docs/commands.md", "python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(code, {})["out"].route.n_passes == 33
        run(whole, {})
    return folder


def test_that_code_searches_trains_evaluates_and_reports(folder):
    run_folder = folder / "runs" / "a"
    assert (run_folder / "static" / "drllm_config.json").is_file()
    summary = json.loads((run_folder / "evaluate/tune/summary.json").read_text(encoding="utf-8"))
    assert {"base", "static"} <= {row["method"] for row in summary["rows"]}
    page = (run_folder / "report/report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page
    assert len(page) > 50_000


def test_its_records_open_in_datasets_pandas_and_duckdb(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    of_pandas, of_duckdb, of_datasets = fences(ROOT / "docs/formats.md", "python")
    pytest.importorskip("datasets")
    run(of_datasets, {})
    assert len(Route.parse(capsys.readouterr().out.splitlines()[-1])) == 30
    run(of_pandas, {})
    assert "acc_norm" in capsys.readouterr().out
    run(of_duckdb, {})
    assert "accuracy" in capsys.readouterr().out


def test_exports_open_as_the_page_says(folder, monkeypatch):
    monkeypatch.chdir(folder)
    stock, of_peft, _ = fences(ROOT / "docs/export.md", "python")  # the third needs the Hub
    assert drllm(["export", "--model", MODEL, "--dtype", "float32", "--route", "1" * 13 + "0" + "1" * 16, "--out", "skip13"]) == 0
    assert len(run(stock, {})["model"].model.layers) == 29
    assert drllm(["export", "--model", "skip13", "--route", "0-14,12-28", "--format", "peft", "--out", "looped"]) == 0
    assert len(run(of_peft, {})["model"].base_model.model.model.layers) == 32


def test_every_cell_of_the_notebook_runs_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    notebook = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 5
    for number, cell in enumerate(cells):
        assert cell["outputs"] == [], "stored without outputs"
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("passes  ") == 4
    assert "winner" in printed
    assert "best" in printed
    assert (tmp_path / "runs" / "notebook" / "scan" / "scan.json").is_file()
