"""The numbers of `drllm records info`, worked out by hand on a handful of records."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from drllm.core.config import SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.runs.label_stats import Flips, describe, render
from drllm.runs.records import FINITE, Check, RouteRecord
from drllm.runs.store import Verdict
from drllm.searching.presets import make_tree
from drllm.searching.prior import random_routes
from record_factory import ROUTES, control, record, verdict

BASE, SKIPS_FIRST, REPEATS_THIRD, SKIPS_TWO = ROUTES  # 1111, 0111, 1121, 1001


def check(route, name: str, correct: bool) -> Check:
    return Check(route, name, correct, 0.0)


def easy() -> list[RouteRecord]:
    """Six questions: the base gets two of them right, the search three of the other four."""
    return [
        # Solved in one try, not by the baseline's one try; the label survives float32 but no other wording.
        record(
            name="a",
            others=(1.0,),
            **control(False),
            checks=(
                check(BASE, "fp32", False),
                check(BASE, "template", True),
                check(SKIPS_FIRST, "fp32", True),
                check(SKIPS_FIRST, "template", False),
            ),
        ),
        # Not solved in two tries; the control's second is right.
        record(name="b", others=(0.0, 0.0), **control(False, True), checks=(check(BASE, "fp32", False),)),
        # The base is right and is kept; float32 says otherwise.
        record(name="c", base=1.0, others=(), checks=(check(BASE, "fp32", False),)),
        # Solved in the second try, not by the baseline.
        record(name="d", others=(0.0, 1.0), **control(False, False)),
        # The base is right, the last route too.
        record(name="e", base=1.0, others=(0.0, 0.0, 1.0), **control(True, True, True)),
        # Solved, without a control.
        record(name="f", others=(1.0,)),
    ]


def test_labels_by_hand():
    (row,) = describe(easy())
    assert (row.task, row.n_layers) == ("arc_easy", 4)
    assert (row.visited, row.kept, row.improved) == (6, 5, 3)
    assert row.actions == (4, 15, 1)  # kept: 0111, 1111, 1121, 1001, 0111
    assert row.mean_passes == pytest.approx((3 + 4 + 5 + 2 + 3) / 5)


def test_kept_routes_with_loops_are_counted_and_no_pass_is_lost():
    """Of four kept routes one has a loop, one a damped loop and one three passes of a block in place; the fourth is digits."""
    full = Route.full(4)
    kept = [full.loop(1, 2), full.loop(0, 0, 0.5), Route.parse("0,0,0-3"), Route.parse("0121")]
    records = [record(name=str(n), routes=(full, route), chosen=route) for n, route in enumerate(kept)]
    (row,) = describe(records)
    assert (row.kept, row.looped) == (4, 3)
    assert row.actions == (1, 10, 5)
    assert row.mean_passes == (6 + 5 + 6 + 4) / 4
    lines = render([row]).splitlines()
    header = next(line for line in lines if "visited" in line)
    for word in ("visited", "sampled", "improved"):
        assert word in header
        assert any(f"{word}: " in line for line in lines), "what each column is stands below"
    (head,) = [line for line in lines if "mean passes" in line]
    assert head.split()[-1] == "looped"
    assert lines[lines.index(head) + 2].split()[-1] == "3"
    assert "looped" not in render(describe(easy())), "no column where there is nothing to count"


def test_forward_passes_by_hand():
    (row,) = describe(easy())
    assert row.search_routes == 2 + 3 + 1 + 3 + 4 + 2  # the base among them
    assert row.control_routes == 1 + 2 + 0 + 2 + 3 + 0
    assert row.check_routes == 4 + 1 + 1


def test_solved_by_search_and_by_the_control_by_hand():
    """The control is compared on the questions that have one: a, b and d."""
    (row,) = describe(easy())
    assert (row.search.n_right, row.search.n) == (3, 4)
    assert row.search.interval == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson
    assert row.control is not None
    assert (row.control.n_right, row.control.n) == (1, 3)
    assert row.control.interval == pytest.approx((0.0615, 0.7923), abs=1e-4)
    assert row.difference is not None
    mean, low, high = row.difference
    assert mean == pytest.approx((2 - 1) / 3)
    assert (low, high) == (-1, 1)  # of three questions, every resample is one of -1, -1/3, 1/3, 1, and each is likelier than 2.5 %


@pytest.mark.long
# The interval holds 0 with so many questions as with few; with more of them a smaller advantage would be seen.
@pytest.mark.parametrize("n_questions", [100, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("preset", "early_stop"), [("paper", True), ("paper", False), ("default", True)])
def test_a_search_no_better_than_chance_does_not_beat_the_control(preset, early_stop, n_questions):
    """Every route of a question is right with one fixed probability, so no search can do better than drawing blindly."""
    n_layers, n_tries = 12, 20
    config = SearchConfig(preset=preset, early_stop=early_stop, n_simulations=n_tries)
    found = []
    for number in range(n_questions):
        luck = random.Random(number)
        share = luck.choice([0.0, 0.02, 0.1])
        tree, told = make_tree(n_layers, config, seed=number), {}
        while (route := tree.ask()) is not None:
            told[route] = not route.is_full and luck.random() < share
            tree.tell(route, told[route], luck.gauss(0.2 if told[route] else -0.2, 0.01))
        blind = random_routes(n_layers, n_tries, config, seed=number)
        found.append(
            record(
                name=str(number),
                others=tuple(map(float, list(told.values())[1:])),
                routes=tuple(told),
                chosen=tree.chosen,
                control_routes=tuple(blind),
                # As told, or drawn with the same probability.
                verdicts={route: verdict(luck.random() < share) for route in blind if route not in told},
            )
        )
    (row,) = describe(found)
    assert row.difference is not None
    _, low, high = row.difference
    assert low <= 0 <= high
    assert row.search.n_right > 0.15 * n_questions, "luck alone solves many"


def test_two_metrics_of_a_check_are_one_forward_pass():
    names = ("fp32:acc", "fp32:acc_norm", "template:acc", "template:acc_norm")
    (row,) = describe([record(checks=tuple(check(BASE, name, True) for name in names))])
    assert row.check_routes == 2
    (row,) = describe([record(checks=tuple(check(BASE, name, True) for name in ("fp32", "rotated:1", "rotated:2")))])
    assert row.check_routes == 3


def test_questions_with_broken_logits_are_counted_apart():
    broken = [record(name=f"n{n}", checks=(check(BASE, FINITE, False),)) for n in range(3)]
    stats = describe([*easy(), *broken])
    (row,), (clean,) = stats, describe(easy())
    assert row.broken == 3
    assert replace(row, broken=0) == clean
    assert "left out of all tables: 3 questions on which the base's logits are NaN or infinite" in render(stats)
    (row,) = describe(broken)
    assert (row.visited, row.broken, row.search.n) == (0, 3, 0)
    assert "0 of 0" in render(describe(broken))


def test_flips_by_hand():
    (row,) = describe(easy())
    assert row.flips == {
        "fp32": Flips(chosen=2, chosen_wrong=1, base=3, base_changed=1),  # c is kept and base at once
        "template": Flips(chosen=1, chosen_wrong=1, base=1, base_changed=1),
    }
    assert list(row.flips) == sorted(row.flips)


def test_a_check_of_one_metric_is_compared_with_that_metric():
    """The search went by acc_norm, which had the base wrong; by acc it was right, and in float32 both are as they were."""
    verdicts = {"fp32:acc": True, "fp32:acc_norm": False, "template:acc": False}
    checks = tuple(check(BASE, name, correct) for name, correct in verdicts.items())
    told = record(base=0.0, others=(), checks=checks, verdicts={BASE: Verdict(False, acc=True, acc_norm=False)})
    (row,) = describe([told])
    assert {name: flips.base_changed for name, flips in row.flips.items()} == {"fp32:acc": 0, "fp32:acc_norm": 0, "template:acc": 1}


def test_without_a_control_or_a_kept_route_there_is_no_number():
    (row,) = describe([record(others=(0.0,))])
    assert (row.kept, row.mean_passes, row.actions) == (0, 0.0, (0, 0, 0))
    assert row.control is row.difference is None
    (row,) = describe([record(base=1.0, **control(True))])
    assert (row.search.n, row.control, row.difference) == (0, None, None)  # the base is never wrong


def test_tasks_are_pooled_question_by_question():
    """Resampled within their task: where each task's questions agree, the pooled difference is certain."""
    a = [record("b_task", f"q{n}", others=(1.0,), **control(False)) for n in range(2)]
    b = [record("a_task", f"q{n}", others=(0.0,), **control(False)) for n in range(6)]
    stats = describe([*a, *b])
    assert [row.task for row in stats] == ["a_task", "b_task", "all"]
    pooled = stats[-1]
    assert (pooled.visited, pooled.kept, pooled.improved, pooled.search_routes) == (8, 2, 2, 16)
    assert pooled.difference == pytest.approx((0.25, 0.25, 0.25))
    assert (pooled.search.n_right, pooled.search.n) == (2, 8)
    assert len(describe(b)) == 1


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
    assert "left out" not in text
    assert cells(text, "forward passes: ")["arc_easy"] == ["15", "2.5", "8", "6"]
    checks = text[text.index("checks: ") :].splitlines()
    assert [line.split() for line in checks if " template " in line] == [
        [task, "template", "1", "1", "100.0", "1", "1", "100.0"] for task in ("arc_easy", "all")
    ]
    assert all(len(line) <= 118 and line == line.rstrip() for line in text.splitlines())


def test_tables_without_checks_say_nothing_of_them():
    text = render(describe([replace(one, checks=()) for one in easy()]))
    assert "checks: " not in text
    assert "0 of 0" in render(describe([record(base=1.0)]))
