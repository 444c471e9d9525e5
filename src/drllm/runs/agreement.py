"""What `drllm retrofit --prompts` came to: `agreement.json` of a run folder. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from drllm.runs.stored import Stored

TOLERATED = 0.05  # of answers that may differ in a policy that is recommended, where no share was asked for


@dataclass(frozen=True, kw_only=True)
class NestRow(Stored):
    """One route of the nest; KL and the share of the same next token are `drllm.healing.heal.Healed`'s, on prompts held out of it.

    Attributes:
        kl: mean over the select prompts of the KL along the base's answer.
    """

    policy: str
    route: str
    passes: int
    kl_before: float
    kl_after: float
    same_before: float
    same_after: float
    steps: int
    kl: float


@dataclass(frozen=True, kw_only=True)
class PointRow(Stored):
    """One operating point, on the select prompts, each predicted without itself: KL in nats a token, at equal passes.

    Attributes:
        passes: in the mean.
        one: of one route for all prompts, or the mix of two that makes as many passes.
        told: of a route, or a mix, for each kind of prompt; nan where the file names no kinds.
        dealt: of the selector's own routes, dealt to other prompts.
        kl: of the selector.
        own: of what a perfect selector would take, which knows each prompt's own KL.
        left: the share of prompts that leave the base.
    """

    passes: float
    one: float
    told: float = math.nan
    dealt: float
    kl: float
    own: float
    left: float

    @property
    def closed(self) -> float:
        """How much of the way from one route to each prompt's own KL it goes."""
        return (self.one - self.kl) / (self.one - self.own) if self.one > self.own else math.nan


@dataclass(frozen=True, kw_only=True)
class Agreed(Stored):
    """A policy made from prompts alone, and how often it says what the base says.

    Attributes:
        model: as it was given.
        deploy: the policy's folder in the run; empty: keep the base.
        n_layers: the base's block passes.
        prompts: how many each part has: heal, select, calibrate.
        nest: its routes, the longest first.
        points: of the selector, those that save least first.
        point: the promised one, a place in `points`; -1: none.
        passes: of the promised point, in the mean over the calibrate prompts.
        promise, differ: the sentence, and the share of prompts on which answers may differ.
        asked_differ: the share that was asked for; 0: none.
        ratio, ratio_low, ratio_high: seconds of an answer against the base's, with its 95 % interval.
        example: a calibrate prompt, the base's answer and the policy's, the first on which they differ if there is one.
        asked_minutes, minutes: that it might take, and that it took.
    """

    PARTS: ClassVar = {"nest": NestRow, "points": PointRow}
    model: str
    deploy: str
    n_layers: int
    prompts: dict[str, int]
    nest: list[NestRow]
    points: list[PointRow]
    point: int = -1
    passes: float = math.nan
    promise: str
    differ: float
    asked_differ: float
    ratio: float = math.nan
    ratio_low: float = math.nan
    ratio_high: float = math.nan
    example: dict[str, str] = field(default_factory=dict)
    asked_minutes: float
    minutes: float
