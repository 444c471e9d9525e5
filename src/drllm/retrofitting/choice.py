"""Which of the policies is named on tune, and whether what calibrate says of it makes it worth deploying. No torch."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from drllm.runs.summary import SummaryRow
from drllm.tasks import Example

NAMES = ("static", "looped", "codebook", "routers", "healed")  # of the policies that a retrofit tries
SAVES = 0.05  # passes a prompt that are worth a word


def best_on_tune(rows: Sequence[SummaryRow], objective: str, limit: float, epsilon: float) -> SummaryRow | None:
    """The policy that tune names, of those that make at most `limit` passes a prompt; None where none gains or saves anything.

    For accuracy the one with the most right answers, then the fewest passes. For speed the one with the fewest passes among those that
    lose at most `epsilon` on tune, else as for accuracy.
    """
    useful = [row for row in rows if row.mean_passes <= limit and (row.difference > 0 or saves_passes(row))]
    kept = [row for row in useful if row.difference >= -epsilon]
    if objective == "speed" and kept:
        return min(kept, key=lambda row: (row.mean_passes, -row.difference))
    return max(useful, key=lambda row: (row.difference, -row.mean_passes), default=None)


def is_worth_it(row: SummaryRow, objective: str, limit: float, ratio_high: float) -> bool:
    """Whether a policy within the limit saves time for sure, or, where that is not all that is asked for, gains right answers for sure.

    `ratio_high`: the upper end of its seconds against the base's.
    """
    saves = saves_passes(row) and ratio_high < 1
    return row.mean_passes <= limit and (saves or (objective != "speed" and row.is_gain is True))


def constant_accuracy(by_task: Mapping[str, Sequence[Example]]) -> float:
    """The share of right answers if each task's commonest one were always given; nan where a task's questions have choices of their own."""
    right = 0
    for examples in by_task.values():
        if len({example.choices for example in examples}) != 1 or not examples[0].choices:
            return math.nan
        right += max(Counter(example.answer for example in examples).values())
    return right / sum(map(len, by_task.values()))


def saves_passes(row: SummaryRow) -> bool:
    """Whether it makes fewer passes than the base."""
    return row.mean_passes < row.n_layers - SAVES
