"""How much the time that is left bears, as fast as the list was answered: tune and calibrate questions. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from drllm.core.progress import say
from drllm.retrofitting.sizes import CALIBRATE, ENDING_S, FEWEST, KNOWN, ON_CALIBRATE, SLOWER, UNKNOWN, Sizes, list_cost
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
        """Seconds of a plain forward, by what it took to answer the list."""
        n_questions = sum(len(manifest.ids) for manifest in path_manifests(self.run.root).values())
        return self.stages.took[LISTED] / (n_questions * list_cost(self.n_routes))

    @property
    def seconds(self) -> float:
        """Until all of it is spent."""
        return 60 * self.minutes - self.stages.seconds

    @property
    def before_the_promise(self) -> float:
        """Without the promise's share."""
        return self.seconds - CALIBRATE * 60 * self.minutes

    def tune_questions(self) -> int:
        """Of a task, to compare the policies on, `sizes.tuned` at least: the list has answered its own for most, others cost a forward."""
        forwards, sizes = self.before_the_promise / (self.pace * self.n_tasks), self.sizes
        more = max(0, int((forwards - KNOWN * sizes.listed) / UNKNOWN))
        return self._said(max(sizes.tuned, min(sizes.most_tuned, min(sizes.listed, int(forwards / KNOWN)) + more)), "tune")

    def calibrate_questions(self, decides: bool) -> int:
        """Of a task, to test the promise on: `sizes.calibrated` at most. Base and policy answer them; one that decides by prompt reads them
        first, and single routes fill steps worse than the list did.
        """
        fitting = (self.seconds - ENDING_S) / (self.pace * SLOWER * self.n_tasks * (ON_CALIBRATE + decides))
        return self._said(min(self.sizes.calibrated, max(FEWEST, int(fitting))), "calibrate")

    def _said(self, found: int, split: str) -> int:
        say(f"{found} {split} questions a task, {max(0, self.seconds):.0f} seconds are left")
        return found
