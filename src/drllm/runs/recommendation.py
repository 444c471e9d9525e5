"""What a retrofit came to: `recommendation.json` of a run folder, or `agreement.json` where prompts had no answer key. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from drllm.runs.stored import Stored
from drllm.runs.summary import SummaryRow

FEW = 8  # changed verdicts
SURE = 1.96 + 0.84  # standard errors: a 95 % interval that lies above 0 in 80 of 100 sets of questions
TOLERATED = 0.05  # of answers that may differ in a policy that is recommended, where no share was asked for


@dataclass(frozen=True, kw_only=True)
class Recommendation(Stored):
    """Which policy to deploy, or the base, and all that says so."""

    OPTIONAL: ClassVar = ("tune", "beyond", "calibrate")
    ONES: ClassVar = {"tune": SummaryRow, "beyond": SummaryRow, "calibrate": SummaryRow}
    model: str  # as it was given
    deploy: str  # the policy's folder in the run; empty: keep the base
    best: str  # the policy named on tune, before a calibrate question was read; empty: none of them was to be considered
    objective: str
    budget: float = 0.0  # as it was asked for; 0: the objective's own
    tried: list[str]  # policies that were compared on tune
    routes: dict[str, str] = field(default_factory=dict)  # of those that are one route for every prompt
    tuned: int = 0  # tune questions that they were compared on
    missed: dict[str, str] = field(default_factory=dict)  # policies that could not be made, and why
    out_of_time: bool = False  # whether one of them could not be made for want of time
    tune: SummaryRow | None = None  # the best policy beside the base on tune
    beyond: SummaryRow | None = None  # where none keeps to the budget, the best that does not, on tune
    calibrate: SummaryRow | None = None  # as `tune`, on calibrate, at the operating point that kept the promise, if one did
    available: int = 0  # calibrate questions that the files have, of which time may have left some unasked; 0: none was asked
    dealt: float = math.nan  # right answers on tune where its own routes are dealt to other prompts; nan for one route for all
    epsilon: float = math.nan  # of the promise: the accuracy that may be lost (by speed, on tune too)
    delta: float = 0.05  # the chance that the promise fails
    promise: str = ""  # its sentence; empty where none was tested
    promised: bool = False  # whether it holds
    route: str = ""  # of a policy that is one route for every prompt
    is_chat: bool = False  # whether it was made for chat prompts
    ratio: float = math.nan  # seconds of an answer against the base's, with its 95 % interval
    ratio_low: float = math.nan
    ratio_high: float = math.nan
    tested_in: str = ""  # the float type that questions were answered in
    asked_minutes: float = math.nan
    minutes: float = math.nan  # that trying took
    constant: float = math.nan  # share of calibrate on which their task's commonest answer is right; nan where choices differ

    @property
    def needed(self) -> int:
        """Questions on which a gain like the last one seen would be sure (`SURE` standard errors).

        0: none was seen, or it is sure, or fewer than `FEW` verdicts changed, which say nothing of how large it is.
        """
        row = self.calibrate or self.tune
        if row is None or not row.difference > 0 or row.better + row.worse < FEW:
            return 0
        spread = (row.better + row.worse) / row.n - row.difference**2
        found = math.ceil(SURE**2 * spread / row.difference**2)
        return found if found > row.n else 0


@dataclass(frozen=True, kw_only=True)
class NestRow(Stored):
    """One route of the nest; KL and the share of the same next token are `drllm.healing.heal.Healed`'s, on prompts held out of it."""

    policy: str
    route: str
    passes: int
    kl_before: float
    kl_after: float
    same_before: float
    same_after: float
    steps: int
    kl: float  # mean over the select prompts of the KL along the base's answer


@dataclass(frozen=True, kw_only=True)
class PointRow(Stored):
    """One operating point, on the select prompts, each predicted without itself: KL in nats a token, at equal mean passes."""

    passes: float
    one: float  # of one route for all prompts, or the mix of two that makes as many passes
    told: float = math.nan  # of a route, or a mix, for each kind of prompt; nan where the file names no kinds
    dealt: float  # of the selector's own routes, dealt to other prompts
    kl: float  # of the selector
    own: float  # of what a perfect selector would take, which knows each prompt's own KL
    left: float  # the share of prompts that leave the base

    @property
    def closed(self) -> float:
        """How much of the way from one route to each prompt's own KL it goes."""
        return (self.one - self.kl) / (self.one - self.own) if self.one > self.own else math.nan


@dataclass(frozen=True, kw_only=True)
class Agreed(Stored):
    """A policy made from prompts alone, and how often it says what the base says."""

    PARTS: ClassVar = {"nest": NestRow, "points": PointRow}
    model: str  # as it was given
    deploy: str  # the policy's folder in the run; empty: keep the base
    n_layers: int
    prompts: dict[str, int]  # of each part: heal, select, calibrate
    nest: list[NestRow]  # its routes, the longest first
    points: list[PointRow]  # of the selector, those that save least first
    point: int = -1  # the promised one, a place in `points`; -1: none
    passes: float = math.nan  # of the promised point, in the mean over the calibrate prompts
    promise: str  # its sentence
    differ: float  # the share of prompts on which answers may differ
    asked_differ: float  # the share that was asked for; 0: none
    ratio: float = math.nan  # seconds of an answer against the base's, with its 95 % interval
    ratio_low: float = math.nan
    ratio_high: float = math.nan
    example: dict[str, str] = field(default_factory=dict)  # a calibrate prompt with both answers, the first on which they differ
    asked_minutes: float
    minutes: float  # that it took
