"""What a short sweep over a task's questions says about edits before any one question is searched. No torch.

On SmolLM2-135M and ARC (423 questions) the margin gains of two edits add up (correlation 0.87 with the gain of both) and the
means of edits differ by several times their standard error, so a few dozen questions tell which edits to try first.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.config import SearchConfig
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import read_json
from drllm.core.route import Route
from drllm.runs.layout import PRIOR_FILE
from drllm.searching.edits import EditSpace, Evaluation

TEMPERATURE = 0.25  # of the softmax over mean gains, in multiples of the scale; about the standard error of a mean over 16 questions
UNIFORM_SHARE = 0.2  # of the weight is dealt to all live edits alike
DEAD_LOSS = 2.0  # an edit is dead when its mean loss, less one standard error, is beyond so many scales ...
DEAD_RIGHT = 0.5  # ... and at most this share of the questions the base had right survives it (guessing alone leaves 1 / choices)
MIN_RIGHT = 4  # verdicts alone: questions the base must have right before "all of them turned wrong" means anything
VERDICT_SCALE = 0.5  # verdicts alone: the spread of a fair coin


@dataclass(frozen=True)
class EditPrior:
    """How promising each edit of a space (`EditSpace`) is on a task."""

    n_layers: int
    max_skip_run: int
    weights: tuple[float, ...]  # by code, in all 1; 0: never tried, not possible or dead. All are 0 when no edit is worth trying
    scale: float  # what an edit typically changes a margin by, in the margin's unit; nan for generated rewards
    n_questions: int  # how many questions the sweep had
    max_loop_span: int = 0
    loop_strength: float = 1.0

    def __post_init__(self) -> None:
        n_codes = self.space.n_codes
        if len(self.weights) != n_codes:
            raise InputError(f"an edit prior over {self.n_layers} blocks holds {len(self.weights)} weights, expected {n_codes}")
        total = math.fsum(self.weights)
        if not all(0 <= weight <= 1 for weight in self.weights) or not (total == 0 or abs(total - 1) < 1e-6):
            raise InputError(f"the weights of an edit prior sum to {total:.6g}, expected numbers of at least 0 that sum to 1")
        if not (math.isnan(self.scale) or 0 <= self.scale < math.inf):
            raise InputError(f"the scale of an edit prior is {self.scale}, expected a number of at least 0, or nan")

    @property
    def dead(self) -> tuple[int, ...]:
        """Codes of the possible edits that are never tried."""
        return tuple(code for code in self.space.edited(Route.full(self.n_layers)) if self.weights[code] == 0)

    @property
    def space(self) -> EditSpace:
        """The edits."""
        return EditSpace(self.n_layers, self.max_skip_run, max_loop_span=self.max_loop_span, loop_strength=self.loop_strength)

    def fits(self, space: EditSpace) -> bool:
        """Whether its codes stand for the edits of this space."""
        sizes = (self.n_layers, len(self.weights), self.max_loop_span)
        return sizes == (space.n_layers, space.n_codes, space.max_loop_span) and self.loop_strength == space.loop_strength

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a scale of nan becomes None; nothing of loops where there are none."""
        values = asdict(self) | {"weights": list(self.weights), "scale": None if math.isnan(self.scale) else self.scale}
        return {name: value for name, value in values.items() if self.max_loop_span or "loop" not in name}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EditPrior:
        """The inverse of `to_json`; `InputError` on anything else."""
        try:
            scale = math.nan if values["scale"] is None else float(values["scale"])
            weights = tuple(float(weight) for weight in values["weights"])
            loops = index(values.get("max_loop_span", 0)), float(values.get("loop_strength", 1.0))
            return cls(index(values["n_layers"]), index(values["max_skip_run"]), weights, scale, index(values["n_questions"]), *loops)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"cannot read an edit prior ({type(error).__name__}: {error}): expected what `to_json` wrote") from None


def read_prior(folder: Path) -> EditPrior | None:
    """The prior of a task folder; None where none was made. `ArtifactError` when it is not readable."""
    path = folder / PRIOR_FILE
    if not path.is_file():
        return None
    again = "delete it and run the search again"
    try:
        return EditPrior.from_json(read_json(path, again))
    except InputError as error:
        raise ArtifactError(f"{path} is not readable ({error}): {again}") from None


def sweep_routes(n_layers: int, max_skip_run: int, max_loop_span: int = 0, loop_strength: float = 1.0) -> list[Route]:
    """All routes of a single edit, about (1 + max_skip_run + max_loop_span) * L; the base is not among them."""
    space = EditSpace(n_layers, max_skip_run, max_loop_span=max_loop_span, loop_strength=loop_strength)
    return list(space.edited(Route.full(n_layers)).values())


def fit_prior(
    n_layers: int, max_skip_run: int, questions: Sequence[Sequence[Evaluation]], max_loop_span: int = 0, loop_strength: float = 1.0
) -> EditPrior:
    """Weigh each edit by its mean gain over the sweep's questions.

    The gain is that of the margin over the base's; where margins are nan (generated rewards), of the verdict. Weights are a softmax of mean
    gains, a fifth of it uniform. Edits that ruin the model are dead (weight 0): with margins, a mean loss far beyond the scale while most
    questions the base had right turn wrong; with verdicts, every question the base had right turns wrong and no wrong one is
    fixed. A skip run that contains a dead one is dead. A question whose base alone has no margin
    (broken logits) shows no gains.

    Args:
        questions: the evaluations of each: the base and every route of `sweep_routes`, in any order.

    Raises:
        InputError: no questions, or one without the base or a route of the sweep.
    """
    space = EditSpace(n_layers, max_skip_run, max_loop_span=max_loop_span, loop_strength=loop_strength)
    routes = space.edited(Route.full(n_layers))
    tables = [_in_order([Route.full(n_layers), *routes.values()], question) for question in questions]
    if not tables:
        raise InputError("a sweep of no questions: expected at least 1")
    if not routes:
        return EditPrior(n_layers, max_skip_run, (0.0,) * space.n_codes, math.nan, len(tables), max_loop_span, loop_strength)
    base_right = np.array([question[0].correct for question in tables], dtype=bool)
    right_QE = np.array([[found.correct for found in question[1:]] for question in tables], dtype=bool)
    margins = np.array([[found.margin for found in question] for question in tables], dtype=float)
    kept_E, n_right = right_QE[base_right].sum(0), int(base_right.sum())
    compared = np.isfinite(margins[:, 0])
    if not compared.any():
        scale, mean_E = math.nan, right_QE.mean(0) - base_right.mean()
        temperature = TEMPERATURE * VERDICT_SCALE
        dead_E = (n_right >= MIN_RIGHT) & (right_QE.sum(0) == 0)
    else:
        # A margin that is NaN or infinite is the worst there is, unless it is the base's: then there is nothing to compare with.
        gains_QE = margins[compared, 1:] - margins[compared, :1]
        finite = np.isfinite(gains_QE)
        gains_QE = np.where(finite, gains_QE, gains_QE[finite].min() if finite.any() else 0.0)
        mean_E = gains_QE.mean(0)
        scale = float(np.median(np.sqrt((gains_QE**2).mean(0))))
        temperature = TEMPERATURE * scale
        error_E = gains_QE.std(0, ddof=1) / math.sqrt(len(gains_QE)) if len(gains_QE) > 1 else np.full(len(routes), np.inf)
        dead_E = (-mean_E - error_E > DEAD_LOSS * scale) & (kept_E <= DEAD_RIGHT * n_right)
    codes = list(routes)
    dead = [code for code, is_dead in zip(codes, dead_E, strict=True) if is_dead]
    live_E = np.array([not any(space.contains(routes[code], worse) for worse in dead) for code in codes])
    weights = np.zeros(space.n_codes)
    if live_E.any():
        logits_E = mean_E / temperature if temperature > 0 else np.zeros(len(codes))
        soft_E = np.exp(np.where(live_E, logits_E - logits_E[live_E].max(), -np.inf))
        weights[codes] = (1 - UNIFORM_SHARE) * soft_E / soft_E.sum() + UNIFORM_SHARE * live_E / live_E.sum()
    return EditPrior(n_layers, max_skip_run, tuple(weights.tolist()), scale, len(tables), max_loop_span, loop_strength)


def _in_order(routes: Sequence[Route], question: Sequence[Evaluation]) -> list[Evaluation]:
    """One question's evaluations in the order of these routes, the base first."""
    found = {evaluation.route: evaluation for evaluation in question}
    if (missing := next((route for route in routes if route not in found), None)) is not None:
        raise InputError(f"a sweep question lacks route {missing}: expected the base and all {len(routes) - 1} single edits")
    return [found[route] for route in routes]


def random_routes(n_layers: int, n: int, config: SearchConfig, seed: int) -> list[Route]:
    """The blind baseline: `n` distinct routes of 1, 2 or 3 uniformly drawn legal edits (about as often as 1 : 2 : 1.5).

    No question is looked at, and the base is not among them. `InputError` where there are fewer than `n` such routes.
    """
    space = EditSpace.of(n_layers, config)
    full, generator = Route.full(n_layers), random.Random(seed)
    found: dict[Route, None] = {}
    misses = 0
    while len(found) < n:
        route = full
        for _ in range(generator.choices((1, 2, 3), (1.0, 2.0, 1.5))[0]):
            edited = list(space.edited(route).values())
            route = generator.choice(edited) if edited else route
        misses = misses + 1 if route in found or route.is_full else 0
        if misses > 1000 + 100 * n:
            raise InputError(f"asked for {n} random routes over {n_layers} blocks, found {len(found)}: expected a smaller number")
        if not route.is_full:
            found[route] = None
    return list(found)
