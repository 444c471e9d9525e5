"""A few routes that earn their place on the fit questions, and a selector that leaves the base where it predicts gain enough.

Routes are taken one by one from a run's dense matrix (`drllm search --paths`): each time the one that adds most to what the codebook covers
and to what it is worth alone. The selector is a ridge regression from the prompt's text, or its states before an early block, to each
route's gain over the base; the threshold, one for all, is where the lower bound of the total gain is highest by out-of-fold predictions
(`selector.lower_bound`; it may be below 0). How many routes, and what is read, are chosen on tune.

Shapes: N questions, R routes of the matrix, K of the codebook, F features, S spans of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from drllm.core.errors import InputError
from drllm.core.files import write_json
from drllm.core.options import MAX_SEED, Options, option
from drllm.core.route import Route, Span
from drllm.methods.base import Method, pass_limit
from drllm.methods.prompt_reading import TEXT, Read, Readings, reach_of, read_states, read_text, reading_blocks, text_selector
from drllm.methods.selector import Folds, Ridge, lower_bound, sure_gain
from drllm.runs.layout import CANDIDATES_FILE

if TYPE_CHECKING:
    from drllm.methods.base import Policy, RoutedModel, TrainingData
    from drllm.methods.matrix import Matrix
    from drllm.policies.codebook import StateSelector, TextSelector

# (matrix, allowed routes (R,), how many, options, price of a pass) -> places of routes in the matrix, best first.
OrderRoutes: TypeAlias = "Callable[[Matrix, np.ndarray, int, Any, float], list[int]]"
SIZES = (2, 4, 8, 16, 32)
COMPONENTS = (4, 16, 0)


@dataclass(frozen=True)
class CodebookConfig(Options):
    n_routes: int = option(0, "routes besides the base; 0 tries 2, 4, 8, 16 and 32 on tune", ge=0, le=64)
    read: Literal["auto", "text", "states"] = option("auto", "of a prompt; auto: text, unless states gain more on tune for sure")
    block: int = option(0, "block before which states are read, and nothing else; 0 tries a tenth, a fifth and a third on tune", ge=0)
    components: int = option(-1, "principal components of what is read; 0: all; -1 tries 4, 16 and all on tune", ge=-1)
    targets: Literal["auto", "question", "task"] = option("auto", "whose gains are predicted; auto: a task's where text of several is read")
    margin_weight: float = option(0.5, "share of a gain that is the margin's, in standard deviations; the rest: the verdict's", ge=0, le=1)
    folds: int = option(5, "parts of the fit questions; each is predicted by a selector fitted on the others", ge=2, le=50)
    confidence: float = option(0.9, "one-sided, of the bound on the total gain; not corrected for what is chosen by it", ge=0.5, le=0.9999)
    nesting: float = option(0.1, "price of a block pass that no other route of the codebook needs, as a share of the base's passes", ge=0)
    abstain: bool = option(True, "keep the base where too little gain is predicted; else the highest score is followed, the base's being 0")
    unfamiliar: float = option(
        0.0, "share of fit prompts that count as unlike the rest; less like them: the base; 0: of text, beyond all", ge=0, le=0.5
    )
    budget: float = option(1.0, "mean passes on tune to spend at most, as a share of the base's; 1: accuracy first", ge=0.1, le=1)
    seed: int = option(0, "seed of the folds", ge=0, le=MAX_SEED)


@dataclass(frozen=True)
class Fitted:
    routes: tuple[Route, ...]
    saved: np.ndarray  # (K,): the share of the base's passes that each route but the base saves
    ridge: Ridge
    threshold: float
    price: float
    tune_gain: float = 0.0
    tune_passes: float = 0.0
    switched: float = 0.0
    block: int = 0
    n_components: int = 0
    reach: float = math.inf

    def scores(self, read: Read) -> np.ndarray:
        """(N, K) of each route but the base, whose score is 0; -inf for prompts out of reach."""
        predicted = self.ridge.predict(read.features)
        predicted[read.away > self.reach] = -np.inf
        return predicted


def fit_codebook(
    routed: RoutedModel,
    training_data: TrainingData,
    config: CodebookConfig,
    folder: Path,
    order_routes: OrderRoutes | None = None,
    shuffle: bool = False,
) -> Policy:
    """Fit every size and block, choose on tune, and keep the choice's operating points; the table goes to `folder/candidates.json`.

    Baselines: `order_routes` instead of `choose_routes`; with `shuffle` prompts are dealt to other questions' gains.
    """
    from drllm.policies.codebook import Codebook, Point

    matrix, tune = training_data.fit_and_tune()
    if config.block >= routed.n_layers:
        raise InputError(f"CodebookConfig.block is {config.block}, expected less than the model's {routed.n_layers} blocks")
    if config.block and config.read == "text":
        raise InputError(f"CodebookConfig.block is {config.block}, before which states are read, and read is text: leave one of them out")
    blocks = [config.block] if config.block else reading_blocks(routed.n_layers)
    read_by = {
        "text": lambda: read_text(matrix.prompts, tune.prompts),
        "states": lambda: read_states(routed, folder.parent, matrix, tune, blocks),
    }
    found: list[tuple[Readings, list[Fitted]]] = []
    both = config.read == "auto" and not config.block
    for name in ("text", "states") if both else ("states" if config.block else config.read,):
        readings = read_by[name]()
        if shuffle:
            order = np.random.default_rng(config.seed).permutation(len(matrix))
            readings["fit"] = {block: Read(read.features[order], read.away) for block, read in readings["fit"].items()}
        by_task = name == "text" and len(set(matrix.tasks)) > 1
        own = replace(config, targets="task" if by_task else "question") if config.targets == "auto" else config
        found.append((readings, list(fit_candidates(matrix, tune, readings, own, order_routes or choose_routes))))
    all_of_them = [candidate for _, candidates in found for candidate in candidates]
    write_json(folder / CANDIDATES_FILE, {"key": matrix.key, "candidates": [_summary(candidate) for candidate in all_of_them]})
    read, best = choose_reading(tune, found, config)
    routes, points = best.routes, [Point(threshold, best.price) for threshold in thresholds(best, read)]
    if config.abstain and best.tune_gain <= 0 and config.budget == 1:  # the base is among what tune chooses from
        routes, points = best.routes[:1], []
    policy = Codebook(routes, selector_of(best, matrix, len(routes) - 1), points, max(0, len(points) - 1))
    policy.prompt_format = matrix.prompt_format if points else None
    return policy


def choose_reading(tune: Matrix, found: Sequence[tuple[Readings, list[Fitted]]], config: CodebookConfig) -> tuple[Read, Fitted]:
    """The best candidate on tune and what it reads there; text unless the gain by states is higher for sure."""
    n_layers = len(tune.routes[0])
    chosen = [(readings, choose(candidates, n_layers, config.budget)) for readings, candidates in found]
    best = [(readings["tune"][candidate.block], candidate) for readings, candidate in chosen]
    if len(best) == 1:
        return best[0]
    gained = []
    for read, candidate in best:  # (N,) by the route that each takes for a question
        columns = [tune.routes.index(route) for route in candidate.routes]
        gained.append(tune.at(columns).gains[np.arange(len(tune)), choices(candidate, read)])
    text, states = gained
    return best[1] if sure_gain(states - text, config.confidence) else best[0]


def selector_of(candidate: Fitted, fit: Matrix, n_routes: int) -> StateSelector | TextSelector:
    """Of the first routes of a candidate but the base."""
    import torch

    from drllm.policies.codebook import StateSelector

    ridge, reach = candidate.ridge, candidate.reach if n_routes else math.inf
    arrays = (ridge.mean, ridge.scale, ridge.weight[:, :n_routes], ridge.bias[:n_routes])
    if candidate.block != TEXT:
        return StateSelector(candidate.block, *(torch.tensor(array, dtype=torch.float32) for array in arrays), reach=reach)
    return text_selector(*arrays, fit.prompts, reach)


def choose_routes(matrix: Matrix, allowed: np.ndarray, n: int, config: CodebookConfig, price: float) -> list[int]:
    """Greedy: columns of the matrix in the order taken, the base not among them.

    A route's worth is what it adds to the best of the codebook on each question, and its own mean gain: coverage alone is bought with
    noise, since any of fifty tries at four choices is often right. A pass that no route of the codebook has made yet costs a little.
    """
    gains = worth(matrix, config, price)
    # Of a task's lower bounds, coverage is no noise and counts alone.
    alone = gains.mean(0) if config.targets != "task" else 0.0
    makes, passes_S = spans_made(matrix.routes)
    best = np.zeros(len(matrix))
    chosen: list[int] = []
    while len(chosen) < n and len(chosen) < allowed.sum():
        new = (makes & ~makes[[0, *chosen]].any(0)) @ passes_S / matrix.passes()[0]
        added = np.maximum(gains, best[:, None]).mean(0) - best.mean() + alone - config.nesting * new
        added[~allowed] = -np.inf
        added[chosen] = -np.inf
        if config.targets == "task" and chosen and added.max() < 1e-9:  # but for rounding, it adds nothing
            break
        chosen.append(int(added.argmax()))
        best = np.maximum(best, gains[:, chosen[-1]])
    return chosen


def served_passes(routes: Sequence[Route]) -> int:
    """Passes of a batch that holds a sequence of every route: what visits of a block have in common at their beginning runs once."""
    return int(spans_made(routes)[1].sum())


def spans_made(routes: Sequence[Route]) -> tuple[np.ndarray, np.ndarray]:
    """Of S spans that a batch of these routes runs: (R, S), whether a route's sequence is in it, and (S,), its block passes."""
    places: dict[tuple[int, tuple[Span, ...]], int] = {}
    rows = [
        [places.setdefault((block, visit[: at + 1]), len(places)) for block, visit in enumerate(route.visits) for at in range(len(visit))]
        for route in routes
    ]
    makes = np.zeros((len(routes), len(places)), dtype=bool)
    for place, row in enumerate(rows):
        makes[place, row] = True
    return makes, np.array([len(beginning[-1].blocks) for _, beginning in places])


def worth(matrix: Matrix, config: CodebookConfig, price: float = 0.0) -> np.ndarray:
    """(N, R): each route's gain over the base, margin and verdict mixed, plus what its saved passes are worth.

    With `targets` task, a task's mean less its standard error: what routes gain on single questions is nearly all noise.
    """
    gains = matrix.mixed_gains(config.margin_weight)
    if config.targets == "task":
        tasks = np.array(matrix.tasks)
        for name in np.unique(tasks):
            mine = gains[tasks == name]
            gains[tasks == name] = mine.mean(0) - mine.std(0, ddof=min(1, len(mine) - 1)) / np.sqrt(len(mine))
    return gains + price * matrix.saved()


def choose(candidates: Sequence[Fitted], n_layers: int, budget: float) -> Fitted:
    """The best on tune among those within the budget; equal ones: the fewest routes, then the earliest block."""
    if not candidates:
        raise InputError("every route of the matrix edits a block before the one where the prompt would be read: add later edits")
    within = [candidate for candidate in candidates if candidate.tune_passes <= pass_limit(budget, n_layers)]
    if not within:
        least = min(candidate.tune_passes for candidate in candidates) / n_layers
        raise InputError(f"no codebook spends {budget:.2f} of the base's passes on tune (the least is {least:.2f}): add shorter routes")
    return min(within, key=lambda candidate: (-round(candidate.tune_gain, 6), len(candidate.routes), candidate.block))


def fit_candidates(matrix: Matrix, tune: Matrix, readings: Readings, config: CodebookConfig, order: OrderRoutes) -> Iterator[Fitted]:
    """Every size and block that was read, at each price of a pass that the budget may call for."""
    sizes = (config.n_routes,) if config.n_routes else SIZES
    prices = (0.0,) if config.budget == 1 else tuple(0.05 * 2**step for step in range(8))
    for block, read in readings["fit"].items():
        allowed = np.array([not route.is_full and route.first_edit() >= block for route in matrix.routes])
        taken = [(price, order(matrix, allowed, max(sizes), config, price)) for price in prices]
        reach = reach_of(read, block, config.unfamiliar)
        for n_components in COMPONENTS if config.components < 0 else (config.components,):
            folds = Folds(read.features, worth(matrix, config), config.folds, config.seed, n_components, one_scale=block == TEXT)
            for price, places in taken:
                for size in sorted({min(size, len(places)) for size in sizes} - {0}):
                    found = fit_one(matrix, tune, places[:size], folds, readings["tune"][block], price, reach, config)
                    yield replace(found, block=block, n_components=n_components)


def fit_one(
    matrix: Matrix, tune: Matrix, places: Sequence[int], folds: Folds, tune_read: Read, price: float, reach: float, config: CodebookConfig
) -> Fitted:
    """The selector of the base and the routes at `places`, its threshold from out-of-fold predictions, and how it does on tune."""
    fit, tune = matrix.at([0, *places]), tune.at([0, *places])
    ridge, predicted = folds.pick(places)
    saved = fit.saved()[1:]
    value = predicted + price * saved
    best = value.argmax(1)
    each = np.arange(len(fit))
    realized = fit.gains[each, best + 1] + price * saved[best]
    threshold = lower_bound(value[each, best], realized, config.confidence) if config.abstain else 0.0
    found = Fitted(fit.routes, saved, ridge, threshold, price, reach=reach)
    picked = choices(found, tune_read)
    gain = float(tune.gains[np.arange(len(tune)), picked].mean())
    return replace(found, tune_gain=gain, tune_passes=float(tune.passes()[picked].mean()), switched=float((picked > 0).mean()))


def choices(candidate: Fitted, read: Read) -> np.ndarray:
    """(N,): the place in its routes that a fitted codebook takes for each prompt, 0 the base."""
    import torch

    from drllm.policies.codebook import Point, pick

    scores, saved = (torch.from_numpy(values) for values in (candidate.scores(read), candidate.saved))
    return pick(scores, saved, Point(candidate.threshold, candidate.price)).numpy()


def thresholds(best: Fitted, read: Read) -> list[float]:
    """Operating points, most conservative first: a quarter, a half, three quarters and all of the tune prompts that leave the base."""
    values = (best.scores(read) + best.price * best.saved).max(1)
    leaving = np.sort(values[values > best.threshold])[::-1]
    counts = sorted({round(share * len(leaving)) for share in (0.25, 0.5, 0.75)} - {0, len(leaving)})
    return [*(float(leaving[count]) for count in counts), best.threshold]


def _summary(candidate: Fitted) -> dict[str, Any]:
    found = {"n_routes": len(candidate.routes) - 1, "read": "text" if candidate.block == TEXT else "states", "block": candidate.block}
    found |= {"price": candidate.price, "threshold": candidate.threshold}
    found |= {"ridge": candidate.ridge.penalty, "components": candidate.n_components}
    found |= {"reach": candidate.reach} if candidate.reach < math.inf else {}
    found |= {"tune_gain": candidate.tune_gain, "tune_passes": candidate.tune_passes, "tune_switched": candidate.switched}
    return found | {"served_passes": served_passes(candidate.routes), "routes": [str(route) for route in candidate.routes]}


ABOUT = "a few routes and a selector that leaves the base where it predicts gain enough"
METHOD = Method("codebook", ABOUT, "after PuDDing, arXiv 2502.04348", CodebookConfig, fit_codebook)
