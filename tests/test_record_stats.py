"""The numbers of `drllm records info`, worked out by hand on a handful of records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drllm.errors import InputError
from drllm.record_stats import Flips, describe, render
from drllm.records import Check, RouteRecord
from record_factory import ROUTES, control, record

BASE, SKIPS_FIRST, REPEATS_THIRD, SKIPS_TWO = ROUTES  # 1111, 0111, 1121, 1001


def check(route, name: str, correct: bool) -> Check:
    return Check(route, name, correct, 0.0)


def easy() -> list[RouteRecord]:
    """Six questions: the base gets two of them right, the search three of the other four."""
    return [
        # Solved in one try, not by the control's one try; the label survives float32 but no other wording.
        record(name="a", others=(1.0,), **control(False), checks=(
            check(BASE, "fp32", False), check(BASE, "template", True),
            check(SKIPS_FIRST, "fp32", True), check(SKIPS_FIRST, "template", False),
        )),
        # Not solved in two tries; the control's second is right.
        record(name="b", others=(0.0, 0.0), **control(False, True), checks=(check(BASE, "fp32", False),)),
        # The base is right and is kept; float32 says otherwise.
        record(name="c", base=1.0, others=(), checks=(check(BASE, "fp32", False),)),
        # Solved in the second try; the control had only one.
        record(name="d", others=(0.0, 1.0), **control(False)),
        # The base is right, the last route too.
        record(name="e", base=1.0, others=(0.0, 0.0, 1.0), **control(True, True, True)),
        # Solved, without a control.
        record(name="f", others=(1.0,)),
    ]  # fmt: skip


def test_labels_by_hand():
    (row,) = describe(easy()).rows
    assert (row.task, row.n_layers) == ("arc_easy", 4)
    assert (row.visited, row.kept, row.improved) == (6, 5, 3)
    assert row.actions == (4, 15, 1)  # kept: 0111, 1111, 1121, 1001, 0111
    assert row.mean_passes == pytest.approx((3 + 4 + 5 + 2 + 3) / 5)


def test_forward_passes_by_hand():
    (row,) = describe(easy()).rows
    assert row.search_routes == 2 + 3 + 1 + 3 + 4 + 2  # the base among them
    assert row.control_routes == 1 + 2 + 0 + 1 + 3 + 0
    assert row.check_routes == 4 + 1 + 1


def test_solved_by_search_and_by_the_control_by_hand():
    """The control is compared on the questions that have one: a, b and d."""
    (row,) = describe(easy()).rows
    assert (row.search.n_right, row.search.n) == (3, 4)
    assert (row.search.low, row.search.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson
    assert row.control is not None
    assert (row.control.n_right, row.control.n) == (1, 3)
    assert (row.control.low, row.control.high) == pytest.approx((0.0615, 0.7923), abs=1e-4)
    assert row.difference is not None
    mean, low, high = row.difference
    assert mean == pytest.approx((2 - 1) / 3)
    assert (low, high) == (-1, 1)  # of three questions, every resample is one of -1, -1/3, 1/3, 1, and each is likelier than 2.5 %
    assert row.n_short == 1  # d


def test_a_control_longer_than_the_search_counts_only_its_first_tries():
    (row,) = describe([record(others=(0.0,), **control(False, True))]).rows
    assert row.control is not None
    assert (row.control.n_right, row.n_short) == (0, 0)


def test_a_control_that_is_right_in_fewer_tries_is_not_short():
    (row,) = describe([record(others=(0.0, 0.0), **control(True))]).rows
    assert row.control is not None
    assert (row.control.n_right, row.n_short) == (1, 0)


def test_flips_by_hand():
    (row,) = describe(easy()).rows
    assert row.flips == {
        "fp32": Flips(chosen=2, chosen_wrong=1, base=3, base_changed=1),  # c is kept and base at once
        "template": Flips(chosen=1, chosen_wrong=1, base=1, base_changed=1),
    }
    assert list(row.flips) == sorted(row.flips)


def test_without_a_control_or_a_kept_route_there_is_no_number():
    (row,) = describe([record(others=(0.0,))]).rows
    assert (row.kept, row.mean_passes, row.actions) == (0, 0.0, (0, 0, 0))
    assert row.control is row.difference is None
    (row,) = describe([record(base=1.0, **control(True))]).rows
    assert (row.search.n, row.control, row.difference) == (0, None, None)  # the base is never wrong


def test_tasks_are_pooled_question_by_question():
    """Resampled within their task: where each task's questions agree, the pooled difference is certain."""
    a = [record("b_task", f"q{n}", others=(1.0,), **control(False)) for n in range(2)]
    b = [record("a_task", f"q{n}", others=(0.0,), **control(False)) for n in range(6)]
    stats = describe([*a, *b])
    assert [row.task for row in stats.rows] == ["a_task", "b_task", "all"]
    pooled = stats.rows[-1]
    assert (pooled.visited, pooled.kept, pooled.improved, pooled.search_routes) == (8, 2, 2, 16)
    assert pooled.difference == pytest.approx((0.25, 0.25, 0.25))
    assert (pooled.search.n_right, pooled.search.n) == (2, 8)
    assert len(describe(b).rows) == 1


def test_records_of_several_models_or_of_none_are_refused():
    with pytest.raises(InputError, match=r"2 models \(beef, f00d\), expected one"):
        describe([record(), record(fingerprint="beef")])
    with pytest.raises(InputError, match="0 models"):
        describe([])


def cells(text: str, title: str) -> dict[str, list[str]]:
    """The rows of one printed table by their first cell."""
    table = text[text.index(title) :].split("\n\n")[0:2]
    lines = [line.split("  ") for line in table[1].splitlines()[2:]]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_the_tables_say_what_was_counted():
    text = render(describe([*easy(), record("[b]piqa", "x", others=(0.0,))]))
    assert cells(text, "labels: ")["arc_easy"] == ["6", "5", "3", "50.0", "60.0", "4", "15", "1", "3.40 of 4"]
    assert cells(text, "labels: ")["[b]piqa"] == ["1", "0", "0", "0.0", "0", "0", "0"]  # a name is no markup; nothing kept, no share of it
    assert cells(text, "labels: ")["all"] == ["7", "5", "3", "42.9", "60.0", "4", "15", "1", "3.40 of 4"]
    solved = cells(text, "solved, ")
    assert solved["arc_easy"] == ["75.0 (30.1 to 95.4), 3 of 4", "33.3 (6.1 to 79.2), 1 of 3", "+33.3 (-100.0 to +100.0)"]
    assert solved["[b]piqa"][1] == "none drawn"
    assert "not the same tries: 1 controls" in text
    assert cells(text, "forward passes: ")["arc_easy"] == ["15", "2.5", "7", "6"]
    checks = text[text.index("checks: ") :].splitlines()
    assert [line.split() for line in checks if " template " in line] == [
        [task, "template", "1", "1", "100.0", "1", "1", "100.0"] for task in ("arc_easy", "all")
    ]
    assert all(len(line) <= 118 and line == line.rstrip() for line in text.splitlines())


def test_tables_without_checks_or_short_controls_say_nothing_of_them():
    text = render(describe([replace(one, checks=()) for one in easy() if one.id != "d"]))
    assert "checks: " not in text
    assert "not the same tries" not in text
    assert "0 of 0" in render(describe([record(base=1.0)]))
