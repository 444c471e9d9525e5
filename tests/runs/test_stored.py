"""Dataclasses of JSON files are written with the keys of their fields, and read back the same."""

from __future__ import annotations

import pytest

from drllm.core.errors import ArtifactError
from drllm.runs.manifest import Manifest
from drllm.runs.summary import Summary, SummaryRow

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
