"""The README is short, and its figures are those of `results/`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import write_readme as tool
from drllm_research.comparison.stored import Results

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8")) <= 6000


def test_its_table_is_generated():
    text = README.read_text(encoding="utf-8")
    assert text == tool.written(text, (ROOT / "docs" / "results.md").read_text(encoding="utf-8")), "run python tools/write_readme.py"
    lines = text.partition("<!-- results -->")[2].partition("\n\n")[0].splitlines()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:]]
    assert len(shown) == 4
    gains = [float(row[2].partition(" ")[0]) for row in shown]
    assert max(gains) > 0 > min(gains), "a win and a loss"
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", row[4]) for row in shown), "seconds in every row"
    assert all(re.fullmatch(r"[\d,]+", row[5]) for row in shown), "size in every row"


def test_its_commands_can_be_pasted_as_they_stand():
    code = " ".join(re.findall(r"```.*?```|`[^`]+`", README.read_text(encoding="utf-8"), re.S))
    assert not re.search(r"\b(RUN|OUT|DATA|ROWS|ID)\b", code)


def test_a_changed_table_of_results_is_noticed():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    changed = page.replace("-4.7 (-7.0 to -2.4) | -4.7", "-3.7 (-6.0 to -1.4) | -4.7")
    assert changed != page
    assert "-3.7 (-6.0 to -1.4)" in tool.table(changed)
    with pytest.raises(SystemExit, match="no row 'nothing'"):
        tool.row_of(page, tool.IN_DOMAIN, "nothing")
    with pytest.raises(SystemExit, match="lacks accuracy or seconds"):
        tool.table(page.replace("| 0.88 (0.86 to 0.98) |", "| |"))


def test_where_a_gain_is_comes_from_the_stored_verdicts(tmp_path):
    tasks = ["piqa"] * 3 + ["boolq"] * 3 + ["openbookqa"] * 2
    asked = {"task": tasks, "id": list("abcdefgh"), "route": ["1111"] * 8, "n_passes": [4.0] * 8}
    right = {("base", 0): "00000010", ("one", 0): "01101100", ("one", 1): "11101001"}
    results = Results(tmp_path)
    answered = {named: asked | {"correct": [one == "1" for one in given]} for named, given in right.items()}
    results.add("mixed", "test", answered, dict.fromkeys(right, ""))
    assert tool.where_the_gain_is(Results(tmp_path), "mixed", "one") == "PIQA and BoolQ"  # +5, +3 and -1, of +7
