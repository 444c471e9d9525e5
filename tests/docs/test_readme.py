"""The README is short, and its figures are those of `results/`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import write_readme as tool
from drllm_research.comparison.stored import Results

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8")) <= 6000


def test_its_table_is_generated():
    text = README.read_text(encoding="utf-8")
    assert text == tool.written(text, (ROOT / "docs" / "results.md").read_text(encoding="utf-8")), "run python tools/write_readme.py"
    rows = [line for line in tool.table((ROOT / "docs" / "results.md").read_text(encoding="utf-8")).splitlines() if line.startswith("| ")]
    figures = [float(re.search(r"\| ([-+\d.]+) \(", row)[1]) for row in rows[1:]]  # type: ignore[index]
    assert len(figures) == 5
    assert max(figures) > 0 > min(figures), "a win and a loss"


def test_a_changed_table_of_results_is_noticed():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    changed = page.replace("-2.9 (-3.7 to -2.1); -2.0", "-1.9 (-2.7 to -1.1); -1.0")
    assert changed != page
    assert "-1.9 (-2.7 to -1.1)" in tool.table(changed)
    with pytest.raises(SystemExit, match="no difference"):
        tool.first_interval("nothing")


def test_its_picture_is_drawn_from_the_stored_scan(tmp_path):
    from matplotlib.image import imread

    tool.draw(tmp_path / "map.png")
    drawn, shown = (imread(place / "map.png")[..., :3] for place in (tmp_path, ROOT / "docs"))
    assert drawn.shape == shown.shape, "run python tools/write_readme.py"
    assert abs(drawn - shown).mean() < 0.01, "run python tools/write_readme.py"


def test_where_a_gain_is_comes_from_the_stored_verdicts(tmp_path):
    tasks = ["piqa"] * 3 + ["boolq"] * 3 + ["openbookqa"] * 2
    asked = {"task": tasks, "id": list("abcdefgh"), "route": ["1111"] * 8, "n_passes": [4.0] * 8}
    right = {("base", 0): "00000010", ("one", 0): "01101100", ("one", 1): "11101001"}
    results = Results(tmp_path)
    answered = {named: asked | {"correct": [one == "1" for one in given]} for named, given in right.items()}
    results.add("mixed", "test", answered, dict.fromkeys(right, ""))
    assert tool.where_the_gain_is(Results(tmp_path), "mixed", "one") == "PIQA and BoolQ"  # +5, +3 and -1, of +7
