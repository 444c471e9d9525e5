"""What `drllm retrofit` recommends: `recommendation.json` of a run folder. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from drllm.core.files import read_json, write_json
from drllm.runs.stored import Stored
from drllm.runs.summary import SummaryRow


@dataclass(frozen=True, kw_only=True)
class Recommendation(Stored):
    """Which policy to deploy, or the base, and all that says so.

    Attributes:
        model: as it was given.
        deploy: the policy's folder in the run; empty: keep the base.
        best: the policy named on tune, before a calibrate question was read; empty: none of them was to be considered.
        objective, kept: what was asked for, and the share of the base's passes that a policy may spend.
        tried: policies that were compared on tune.
        missed: policies that could not be made, and why.
        tune, calibrate: the best policy beside the base on either split.
        promise: the sentence of the guarantee; empty where none was tested.
        promised: whether it holds.
        is_static: whether it is one route for every prompt, which can be exported.
        ratio, ratio_low, ratio_high: seconds of an answer against the base's, with its 95 % interval.
        minutes: that trying took.
        sizes: questions of each stage (`drllm.retrofitting.sizes.Sizes`).
    """

    OPTIONAL: ClassVar = ("tune", "calibrate")
    ONES: ClassVar = {"tune": SummaryRow, "calibrate": SummaryRow}
    model: str
    deploy: str
    best: str
    objective: str
    kept: float
    tried: list[str]
    missed: dict[str, str] = field(default_factory=dict)
    tune: SummaryRow | None = None
    calibrate: SummaryRow | None = None
    promise: str = ""
    promised: bool = False
    is_static: bool = False
    ratio: float = math.nan
    ratio_low: float = math.nan
    ratio_high: float = math.nan
    minutes: float = math.nan
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Calibrate questions on which a gain as large as the one seen on tune would be sure (1.96 standard errors); 0: it was none."""
        row = self.tune
        if row is None or not row.difference > 0:
            return 0
        spread = (row.better + row.worse) / row.n - row.difference**2
        return math.ceil(1.96**2 * spread / row.difference**2)


def write_recommendation(path: Path, found: Recommendation) -> None:
    """Write it atomically."""
    write_json(path, found.to_json())


def read_recommendation(path: Path) -> Recommendation | None:
    """What a run recommends; None where it was not asked to, `ArtifactError` for a corrupt file."""
    if not path.is_file():
        return None
    return Recommendation.of(read_json(path, "run the retrofit again", dict), path)
