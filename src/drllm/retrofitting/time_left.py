"""How much the time that is left bears, as fast as the list was answered: tune and calibrate questions. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from drllm.core.progress import say
from drllm.retrofitting.sizes import CALIBRATE, Sizes, calibrated_of, list_cost, tuned_of
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import path_manifests
from drllm.runs.stages import Stages

LISTED = "the best routes on every question"  # the name of a stage


@dataclass
class TimeLeft:
    """Of the minutes that a user gave, behind the list.

    Attributes:
        stages: those that are done, with what they took.
        run: with the list, of so many routes beside the base.
    """

    stages: Stages
    minutes: float
    sizes: Sizes
    run: RunFolder
    n_routes: int
    n_tasks: int

    @cached_property
    def pace(self) -> float:
        """Seconds of a plain forward."""
        return forward_seconds(self.run, self.stages.took[LISTED], self.n_routes)

    @property
    def seconds(self) -> float:
        """Until all of it is spent."""
        return 60 * self.minutes - self.stages.seconds

    @property
    def before_the_promise(self) -> float:
        """Without the promise's share."""
        return self.seconds - CALIBRATE * 60 * self.minutes

    def tune_questions(self) -> int:
        """Of a task, at most, to compare the policies on."""
        return self._said(tuned_of(self.sizes, self.before_the_promise, self.pace, self.n_tasks), "tune")

    def calibrate_questions(self, decides: bool) -> int:
        """Of a task, at most, to test the promise of a policy on that decides by prompt, or does not."""
        return self._said(calibrated_of(self.sizes, self.seconds, self.pace, self.n_tasks, decides), "calibrate")

    def _said(self, found: int, split: str) -> int:
        say(f"{found} {split} questions a task, {max(0, self.seconds):.0f} seconds are left")
        return found


def forward_seconds(run: RunFolder, seconds: float, n_routes: int) -> float:
    """Seconds of a plain forward, by what it took to answer the list: so many routes beside the base, every question of it."""
    return seconds / (sum(len(manifest.ids) for manifest in path_manifests(run.root).values()) * list_cost(n_routes))
