"""What `drllm retrofit` recommends: `recommendation.json` of a run folder. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from drllm.runs.stored import Stored
from drllm.runs.summary import SummaryRow

ROUGH = 0.05  # nats from which probabilities may differ by sqrt(ROUGH / 2) = 0.16 (Pinsker's inequality)
FEW = 8  # changed verdicts
SURE = 1.96 + 0.84  # standard errors: a 95 % interval that lies above 0 in 80 of 100 sets of questions


@dataclass(frozen=True, kw_only=True)
class Recommendation(Stored):
    """Which policy to deploy, or the base, and all that says so.

    Attributes:
        model: as it was given.
        deploy: the policy's folder in the run; empty: keep the base.
        best: the policy named on tune, before a calibrate question was read; empty: none of them was to be considered.
        objective, budget: what was asked for; 0: the objective's own budget.
        tried: policies that were compared on tune.
        routes: of those, the routes of them that are one route for every prompt.
        tuned: tune questions that they were compared on.
        missed: policies that could not be made, and why.
        out_of_time: whether one of them could not be made for want of time.
        tune: the best policy beside the base on tune.
        beyond: where none keeps to the budget, the best that does not, on tune.
        calibrate: the same on calibrate, at the operating point that kept the promise, if one did.
        available: calibrate questions that the files have, of which time may have left some unasked; 0: none was asked.
        dealt: right answers on tune where its own routes are dealt to other prompts; nan for one route for all.
        epsilon, delta: of the promise: the accuracy that may be lost (by speed, on tune too), and the chance that it fails.
        promise: the sentence of the promise; empty where none was tested.
        promised: whether it holds.
        route: of a policy that is one route for every prompt; else empty.
        is_chat: whether it was made for chat prompts.
        ratio, ratio_low, ratio_high: seconds of an answer against the base's, with its 95 % interval.
        rounding, base_rounding: how far the next token's distributions in float32 and bfloat16 lie apart, at most, under it and under the
            base; in nats.
        rough, rounded: prompts on which they lie `ROUGH` apart or more under it, of so many.
        tested_in: the float type that questions were answered in.
        asked_minutes, minutes: that trying might take, and that it took.
        constant: the share of the calibrate questions on which the commonest answer of their task is right; nan where choices differ.
    """

    OPTIONAL: ClassVar = ("tune", "beyond", "calibrate")
    ONES: ClassVar = {"tune": SummaryRow, "beyond": SummaryRow, "calibrate": SummaryRow}
    model: str
    deploy: str
    best: str
    objective: str
    budget: float = 0.0
    tried: list[str]
    routes: dict[str, str] = field(default_factory=dict)
    tuned: int = 0
    missed: dict[str, str] = field(default_factory=dict)
    out_of_time: bool = False
    tune: SummaryRow | None = None
    beyond: SummaryRow | None = None
    calibrate: SummaryRow | None = None
    available: int = 0
    dealt: float = math.nan
    epsilon: float = math.nan
    delta: float = 0.05
    promise: str = ""
    promised: bool = False
    route: str = ""
    is_chat: bool = False
    ratio: float = math.nan
    ratio_low: float = math.nan
    ratio_high: float = math.nan
    rounding: float = math.nan
    base_rounding: float = math.nan
    rough: int = 0
    rounded: int = 0
    tested_in: str = ""
    asked_minutes: float = math.nan
    minutes: float = math.nan
    constant: float = math.nan

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
