"""The cells of `examples/quickstart.ipynb`, in order, on the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drllm.model.packages import PACKAGED

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
MODEL = "smollm2-135m-q4"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGED[MODEL].installed is None, reason=f"needs the data package of {MODEL} (drllm models)"),
]


def test_every_cell_runs_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 5
    for number, cell in enumerate(cells):
        assert cell["outputs"] == [], "stored without outputs"
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("passes  ") == 4
    assert "winner" in printed
    assert "best" in printed
    assert (tmp_path / "runs" / "notebook" / "scan" / "scan.json").is_file()
