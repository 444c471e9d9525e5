"""Two single routes dealt at random: between whole numbers of passes that is what a policy a prompt has to be above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Verdicts = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Mixture:
    """Two rows of single routes, and the share of prompts that takes the first, the longer one."""

    longer: str
    shorter: str
    share: float

    def __str__(self) -> str:
        return f"{self.longer} dealt to {self.share:.0%} of the prompts, else {self.shorter}"

    def verdicts(self, found: Mapping[str, Verdicts]) -> dict[str, np.ndarray]:
        """Of each question the chance that it is answered rightly."""
        longer, shorter = found[self.longer], found[self.shorter]
        return {**longer, "correct": self.share * longer["correct"] + (1 - self.share) * shorter["correct"]}


def best_mixture(tuned: Mapping[str, Verdicts], passes: float) -> Mixture | None:
    """The two single routes, or one of them with the base, that together spend `passes` block passes a prompt and answer most of tune.

    Args:
        tuned: verdicts on tune by row; `base` and the rows of `static_tuned` are looked at.
        passes: mean block passes to spend.

    Returns:
        None where no row spends more, or none less.
    """
    spent = {name: float(one["passes"].mean()) for name, one in tuned.items() if name.partition("@")[0] in ("base", "static_tuned")}
    pairs = [(longer, shorter) for longer in spent for shorter in spent if spent[shorter] < passes <= spent[longer]]
    if not pairs:
        return None
    mixed = [Mixture(*pair, (passes - spent[pair[1]]) / (spent[pair[0]] - spent[pair[1]])) for pair in pairs]
    return max(mixed, key=lambda mixture: mixture.verdicts(tuned)["correct"].mean())
