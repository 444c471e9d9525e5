"""What is said of the size of a model step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from drllm import SearchConfig
from drllm.scoring.inquiries import Wanted
from drllm.tasks import load_task

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import steps


def test_a_size_is_compared_with_the_largest_group_by_group():
    """By hand: half the seconds; 3 of 4 rows are real; one of the three shared verdicts differs."""
    verdicts = {("a", "11"): 1.0, ("a", "10"): 0.0, ("b", "11"): 1.0}
    small = [steps.Searched(2.0, 30, 10, verdicts)] * 6
    large = [steps.Searched(4.0, 20, 20, verdicts | {("a", "10"): 1.0})] * 6
    said = steps.of_size(small, large, 12)
    assert said == {"seconds_a_question": 1.0, "rows_that_fill": 0.25, "ratio": [0.5, 0.5, 0.5], "same_verdicts": [12, 18]}


@pytest.mark.parametrize(("size", "fills"), [(8, False), (1024, True)])
def test_small_steps_have_no_rows_that_fill(size, fills, tiny, data: Path):
    """One sequence a step where a step is no longer than a prompt."""
    task = load_task("arc_easy", str(data))
    config = SearchConfig(n_simulations=4, verify=False, max_step_tokens=size)
    found = steps.searched(tiny, task, [Wanted("fit", one) for one in task.select("fit", 2)], config)
    assert found.applied > 0
    assert (found.padded > 0) is fills
