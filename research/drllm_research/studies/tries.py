"""What a prompt tells about its best route: every try at it, out of fold, from one dense matrix.

    python -m drllm_research.studies.tries --model qwen2.5-coder-1.5b-q4 --run runs/qwen --tasks A+B,C,... --out runs/qwen/tries.json

Questions of fit and tune in five parts, alike by task; each part is answered by what was learned from the other four. A try is a way to
read prompts and what to predict. Its price of a pass is the lowest that keeps the mean passes within a budget, which takes no verdict.
`dealt` is the same routes dealt to other prompts of their task and part, in expectation: what is left over it is what a prompt says beyond
its kind.
Here tune is learned from as well as judged by, so nothing of this is a result: it says what is worth a policy.

Shapes: N questions, R routes, the base first, F features.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from drllm import RoutedModel, show_progress
from drllm.core.files import write_json
from drllm.core.text import with_interval
from drllm.methods.codebook import CodebookConfig, OrderRoutes, choose_routes, read_features, spans_made, worth
from drllm.methods.matrix import Matrix
from drllm.methods.selector import Folds, lower_bound
from drllm.methods.training_data import TrainingData
from drllm.stats.paired import paired_bootstrap
from drllm_research.comparison.curve import of_questions

FOLDS = 5
PRICES = (0.0, *(0.02 * 1.25**step for step in range(40)))
BUDGETS = (1.2, 1.0, 0.95, 0.9, 0.85)
USUAL = CodebookConfig()


@dataclass(frozen=True)
class Learned:
    """What was learned from the known questions.

    Attributes:
        pick: (places of questions (N,), price of a pass) -> places of their routes (N,), 0 the base's.
        passes: (R,) that each route costs, what is run before it is known counted.
    """

    pick: Callable[[np.ndarray, float], np.ndarray]
    passes: np.ndarray


@dataclass(frozen=True)
class Seen:
    """Every question with what was read of its prompt.

    Attributes:
        matrix: fit and tune together.
        features: (N, F) by block.
        lens: (N,) by block: the logit of the likeliest next token less that of the second, as if the rest of the blocks were skipped.
        kind_of: the kind of each task.
    """

    matrix: Matrix
    features: dict[int, np.ndarray]
    lens: dict[int, np.ndarray]
    kind_of: dict[str, str]

    @cached_property
    def tasks(self) -> np.ndarray:
        """(N,) names."""
        return np.array(self.matrix.tasks)

    @cached_property
    def kinds(self) -> np.ndarray:
        """(N,) names: tasks that are asked alike are one kind."""
        return np.array([self.kind_of[task] for task in self.matrix.tasks])

    @cached_property
    def part(self) -> np.ndarray:
        """(N,): the part of each question, every task dealt evenly."""
        return parts(self.tasks)

    def rows(self, places: np.ndarray, of_kinds: bool = False) -> Matrix:
        """The matrix of some questions; `of_kinds`: with kinds as tasks."""
        return of_questions(replace(self.matrix, tasks=tuple(self.kinds)) if of_kinds else self.matrix, places)


@dataclass(frozen=True)
class Try:
    """A way to choose.

    Attributes:
        name: in the table.
        learn: from the places of the questions that are known, what scores the others.
    """

    name: str
    learn: Callable[[np.ndarray], Learned]


def tries(seen: Seen) -> Iterator[Try]:
    """All of them, the plain ones first."""
    yield Try("one route for all", lambda known: by_group(seen, known, np.zeros(len(seen.matrix), dtype=int)))
    yield Try("told the task", lambda known: by_group(seen, known, seen.tasks))
    yield Try("told the task, sure gains alone", lambda known: by_group(seen, known, seen.tasks, 1.0))
    yield Try("told the kind", lambda known: by_group(seen, known, seen.kinds))
    yield Try("told the kind, sure gains alone", lambda known: by_group(seen, known, seen.kinds, 1.0))
    yield Try("told the kind, gains above 1.64 standard errors", lambda known: by_group(seen, known, seen.kinds, 1.64))
    yield Try("told the task, halfway to its kind", lambda known: halfway(seen, known))
    for block in seen.features:
        yield Try(f"task predicted, read before block {block}", lambda known, b=block: by_ridge(seen, known, b, "task"))
        yield Try(f"kind predicted, read before block {block}", lambda known, b=block: by_ridge(seen, known, b, "task", of_kinds=True))
    for block in seen.features:
        yield Try(f"gain predicted, read before block {block}", lambda known, b=block: by_ridge(seen, known, b, "question"))
    for block, size in itertools.product(list(seen.features)[1:4], (2, 4, 8, 16)):
        yield Try(
            f"gain predicted before block {block}, codebook of {size}",
            lambda known, b=block, n=size: by_ridge(seen, known, b, "question", n),
        )
        yield Try(
            f"gain predicted before block {block}, codebook of {size} nested routes",
            lambda known, b=block, n=size: by_ridge(seen, known, b, "question", n, take=choose_nested),
        )
    for block in seen.lens:
        yield Try(f"early margin at block {block}, task told", lambda known, b=block: by_margin(seen, known, seen.lens[b]))
    for block in seen.features:
        yield Try(f"difficulty predicted at block {block}, task told", lambda known, b=block: by_difficulty(seen, known, b))
    last = max(seen.features)
    yield Try(f"second look: base first, gain predicted at block {last}", lambda known: by_ridge(seen, known, last, "question", again=True))
    yield from curve(seen, list(seen.features)[1:3])
    everything = np.arange(len(seen.matrix))
    yield Try("told the task, chosen by the same questions", lambda known: by_group(seen, everything, seen.tasks))  # too good to be true
    yield Try("told the kind, chosen by the same questions", lambda known: by_group(seen, everything, seen.kinds))


def curve(seen: Seen, blocks: Sequence[int]) -> Iterator[Try]:
    """Three ways again, learned from one, two and three of the four known parts: would more questions help?"""
    for share in range(1, FOLDS - 1):
        ending = f", {share} of {FOLDS - 1} known parts"
        yield Try("told the task" + ending, lambda known, s=share: by_group(seen, first_parts(seen, known, s), seen.tasks))
        yield Try("told the kind" + ending, lambda known, s=share: by_group(seen, first_parts(seen, known, s), seen.kinds))
        for block in blocks:
            yield Try(
                f"gain predicted before block {block}, codebook of 16" + ending,
                lambda known, b=block, s=share: by_ridge(seen, first_parts(seen, known, s), b, "question", 16),
            )


def first_parts(seen: Seen, known: np.ndarray, share: int) -> np.ndarray:
    """Of the known questions those in the first `share` parts after the one that is left out."""
    left_out = ({*range(FOLDS)} - {*seen.part[known].tolist()}).pop()
    return known[np.isin(seen.part[known], (left_out + 1 + np.arange(share)) % FOLDS)]


def by_scores(matrix: Matrix, score: Callable[[np.ndarray], np.ndarray]) -> Learned:
    """The route of the highest score (N, R), saved passes counted at the price."""
    saved = matrix.saved()
    return Learned(lambda places, price: (score(places) + price * saved).argmax(1), matrix.passes())


def by_group(seen: Seen, known: np.ndarray, groups: np.ndarray, errors: float = 0.0) -> Learned:
    """Each group's mean gain of each route, less so many standard errors."""
    means = group_means(seen, known, groups, errors)
    return by_scores(seen.matrix, lambda places: np.array([means[group] for group in groups[places]]))


def group_means(seen: Seen, known: np.ndarray, groups: np.ndarray, errors: float = 0.0) -> dict[str, np.ndarray]:
    """(R,) by group."""
    gains, found = seen.rows(known).mixed_gains(USUAL.margin_weight), {}
    for group in np.unique(groups):
        mine = gains[groups[known] == group]
        found[group] = mine.mean(0) - errors * mine.std(0, ddof=1) / np.sqrt(len(mine))
    return found


def halfway(seen: Seen, known: np.ndarray) -> Learned:
    """The mean of a task's gains and its kind's."""
    tasks, kinds = group_means(seen, known, seen.tasks), group_means(seen, known, seen.kinds)
    means = {task: (gains + kinds[seen.kind_of[task]]) / 2 for task, gains in tasks.items()}
    return by_scores(seen.matrix, lambda places: np.array([means[task] for task in seen.tasks[places]]))


def by_ridge(
    seen: Seen,
    known: np.ndarray,
    block: int,
    targets: str,
    size: int = 0,
    again: bool = False,
    of_kinds: bool = False,
    take: OrderRoutes = choose_routes,
) -> Learned:
    """A codebook's selector at `block`, with its threshold at each price: of all routes, or of the `size` that `take` finds.

    Of all routes one that edits an earlier block starts anew from there: what was run from its first edit to `block` counts twice. Where
    the whole base was run before (`again`), what is left of the base from the first edit on does.
    """
    matrix, config = seen.rows(known, of_kinds), CodebookConfig(targets=targets)  # pyright: ignore[reportArgumentType]
    full = np.array([route.is_full for route in matrix.routes])
    edits = np.array([block if route.is_full else route.first_edit() for route in matrix.routes])
    twice = np.where(full, 0, matrix.passes()[0] - edits) if again else np.maximum(block - edits, 0)
    saved = 1 - (matrix.passes() + twice) / matrix.passes()[0]
    folds = Folds(seen.features[block][known], worth(matrix, config), config.folds, config.seed, 16 if targets == "task" else 0)

    def pick(places: np.ndarray, price: float) -> np.ndarray:
        columns = np.flatnonzero(~full)
        if size:
            columns = np.array(take(matrix, ~full & (edits >= block), size, config, price), dtype=int)
            if not len(columns):  # all routes edit an earlier block
                return np.zeros(len(places), dtype=int)
        ridge, out_of_fold = folds.pick(columns.tolist())
        value = out_of_fold + price * saved[columns]
        best = value.argmax(1)[:, None]
        predicted, realized = (np.take_along_axis(v, best, 1)[:, 0] for v in (value, matrix.gains[:, columns] + price * saved[columns]))
        threshold = lower_bound(predicted, realized, config.confidence)
        value = ridge.predict(seen.features[block][places]) + price * saved[columns]
        return np.where(value.max(1) > threshold, columns[value.argmax(1)], 0)

    return Learned(pick, matrix.passes() + twice)


def choose_nested(matrix: Matrix, allowed: np.ndarray, n: int, config: CodebookConfig, price: float) -> list[int]:
    """`choose_routes` with the rule that of any two routes one makes all passes of the other, so that a batch costs its longest."""
    makes, passes_S = spans_made(matrix.routes)
    shared, whole = (makes * passes_S) @ makes.T, makes @ passes_S
    nested = shared == np.minimum.outer(whole, whole)
    gains, best, left = worth(matrix, config, price), np.zeros(len(matrix)), allowed.copy()
    chosen: list[int] = []
    while len(chosen) < n and left.any():
        added = np.where(left, np.maximum(gains, best[:, None]).mean(0) - best.mean() + gains.mean(0), -np.inf)
        chosen.append(int(added.argmax()))
        best = np.maximum(best, gains[:, chosen[-1]])
        left &= nested[chosen[-1]]
        left[chosen[-1]] = False
    return chosen


def by_margin(seen: Seen, known: np.ndarray, values: np.ndarray) -> Learned:
    """Thirds of each task by one value of the prompt, each with its mean gains, halfway to the task's."""
    gains, tasks = seen.rows(known).mixed_gains(USUAL.margin_weight), seen.tasks
    cuts = {task: np.quantile(values[known][tasks[known] == task], [1 / 3, 2 / 3]) for task in np.unique(tasks)}
    third = np.array([np.searchsorted(cuts[task], value) for task, value in zip(tasks, values, strict=True)])

    def mean(task: str, part: int) -> np.ndarray:
        mine = tasks[known] == task
        like = mine & (third[known] == part)
        return (gains[mine].mean(0) + gains[like if like.any() else mine].mean(0)) / 2  # of tied values a third may be empty

    means = {(task, part): mean(task, part) for task in np.unique(tasks).tolist() for part in range(3)}
    return by_scores(seen.matrix, lambda places: np.array([means[str(tasks[p]), int(third[p])] for p in places]))


def by_difficulty(seen: Seen, known: np.ndarray, block: int) -> Learned:
    """`by_margin` with the predicted verdict of the base: out of fold on the known questions, which set the thirds."""
    right = seen.matrix.correct[:, :1].astype(float)
    ridge, out_of_fold = Folds(seen.features[block][known], right[known], USUAL.folds, USUAL.seed).pick([0])
    values = ridge.predict(seen.features[block])[:, 0]
    values[known] = out_of_fold[:, 0]
    return by_margin(seen, known, values)


def answered(seen: Seen, one: Try) -> list[tuple[np.ndarray, Learned]]:
    """Of each part its questions' places, and what was learned without them."""
    held = [np.flatnonzero(seen.part == fold) for fold in range(FOLDS)]
    return [(places, one.learn(np.flatnonzero(seen.part != fold))) for fold, places in enumerate(held)]


def parts(tasks: np.ndarray) -> np.ndarray:
    """(N,): the part of each question, every task dealt evenly."""
    rng, part = np.random.default_rng(0), np.zeros(len(tasks), dtype=int)
    for task in np.unique(tasks):
        places = np.flatnonzero(tasks == task)
        part[places] = rng.permutation(len(places)) % FOLDS
    return part


@dataclass(frozen=True)
class Kept:
    """What a try gains within a budget: mean passes, share of prompts that leave the base, and differences with their intervals."""

    passes: float
    switched: float
    gain: tuple[float, float, float]
    over_dealt: tuple[float, float, float]


def within(seen: Seen, answers: Sequence[tuple[np.ndarray, Learned]], budgets: Sequence[float]) -> dict[float, Kept]:
    """What a try gains within each budget that some price keeps, and over its own routes dealt within tasks."""
    found: dict[float, Kept] = {}
    for price in PRICES:
        picked, passes = np.zeros(len(seen.matrix), dtype=int), np.zeros(len(seen.matrix))
        for places, learned in answers:
            picked[places] = learned.pick(places, price)
            passes[places] = learned.passes[picked[places]]
        kept = [one for one in budgets if one not in found and passes.mean() <= one * seen.matrix.passes()[0] + 1e-9]
        found |= dict.fromkeys(kept, judged(seen, picked, float(passes.mean()))) if kept else {}
        if len(found) == len(budgets):
            break
    return found


def judged(seen: Seen, picked: np.ndarray, passes: float) -> Kept:
    """Routes (N,) against the base's and against themselves, dealt."""
    right = seen.matrix.correct.astype(float)
    ours = right[np.arange(len(picked)), picked]
    gain = paired_bootstrap(ours, right[:, 0], strata=seen.tasks)
    dealt = paired_bootstrap(ours, expected_dealt(right, picked, seen.tasks, seen.part), strata=seen.tasks)
    return Kept(passes, float((picked > 0).mean()), gain, dealt)


def expected_dealt(right: np.ndarray, picked: np.ndarray, tasks: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(N,): the mean verdict of a question over the routes that its task's questions of the same part took.

    Not of other parts: what was learned there has seen this question.
    """
    found = np.zeros(len(picked))
    for task, fold in {*zip(tasks, part, strict=True)}:
        mine = (tasks == task) & (part == fold)
        found[mine] = right[mine][:, picked[mine]].mean(1)
    return found


def read(routed: RoutedModel, run: Path, kinds: Sequence[Sequence[str]], blocks: Sequence[int]) -> Seen:
    """The matrix and the prompts' states, kept in the run."""
    kind_of = {task: kind[0] for kind in kinds for task in kind}
    data = TrainingData(routed, run, list(kind_of))
    both = [data.matrix(split) for split in ("fit", "tune")]
    found = [read_features(routed, run / "train", matrix, blocks, split) for split, matrix in zip(("fit", "tune"), both, strict=True)]
    features = {block: np.concatenate([one[block] for one in found]) for block in blocks}
    fit, tune = both
    correct, margins = np.concatenate([fit.correct, tune.correct]), np.concatenate([fit.margins, tune.margins])
    joined = fit.tasks + tune.tasks, fit.ids + tune.ids, fit.prompts + tune.prompts
    matrix = Matrix(fit.routes, *joined, correct, margins, fit.prompt_format, fit.key)
    return Seen(matrix, features, {block: lens(routed, values) for block, values in features.items()}, kind_of)


@torch.no_grad()
def lens(routed: RoutedModel, features: np.ndarray) -> np.ndarray:
    """(N,): the first logit less the second, of the last token's state put through the final norm and the head."""
    states = torch.from_numpy(features[:, features.shape[1] // 2 :]).to(routed.model.dtype)
    top = routed.model.get_output_embeddings()(routed.model.get_decoder().norm(states)).float().topk(2).values
    return (top[:, 0] - top[:, 1]).numpy()


def area(values: np.ndarray, right: np.ndarray) -> float:
    """Of the curve of true against false positives: 0.5 says nothing."""
    return float(stats.mannwhitneyu(values[right], values[~right]).statistic / (right.sum() * (~right).sum()))


def main() -> None:
    """Print and store the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--run", type=Path, required=True, help="run folder with a dense matrix")
    parser.add_argument("--tasks", required=True, help="A+B,C: tasks with + between are asked alike, and one kind")
    parser.add_argument("--blocks", default="3,6,9,14,20,27", help="blocks before which prompts are read")
    parser.add_argument("--only", default="", help="tries whose names begin so; what --out holds of the others stays")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    show_progress()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    routed = RoutedModel.wrap(arguments.model)
    blocks = [int(block) for block in arguments.blocks.split(",")]
    if beyond := [block for block in blocks if not 0 < block < routed.n_layers]:
        parser.error(f"--blocks holds {beyond[0]}, expected blocks from 1 to {routed.n_layers - 1}")
    seen = read(routed, arguments.run, [kind.split("+") for kind in arguments.tasks.split(",")], blocks)
    found = about(seen)
    print(json.dumps(found, indent=1))
    print("\n| try | budget | passes | points against the base | over its routes dealt within tasks |\n|---|---|---|---|---|")
    kept = kept_before(arguments.out, found) if arguments.only and arguments.out.is_file() else {}
    for one in tries(seen):
        if not one.name.startswith(arguments.only):
            continue
        found_of = within(seen, answered(seen, one), BUDGETS)
        kept[one.name] = {str(budget): asdict(value) for budget, value in found_of.items()}
        for budget, value in found_of.items():
            cells = (one.name, budget, f"{value.passes:.2f}", with_interval(*value.gain), with_interval(*value.over_dealt))
            print("|", " | ".join(map(str, cells)), "|", flush=True)
        write_json(arguments.out, found | {"tries": kept})  # after each: they take minutes


def kept_before(path: Path, found: dict[str, object]) -> dict[str, dict[str, dict[str, object]]]:
    """The tries in a file of the same questions and routes."""
    before = json.loads(path.read_text())
    kept = before.pop("tries")
    if before != found:
        raise SystemExit(f"{path} holds tries of other questions, routes or blocks: leave out --only, or give another --out")
    return kept


def about(seen: Seen) -> dict[str, object]:
    """Of the questions; how well the early margin tells the base's verdict within a task, as the mean area over tasks."""
    right, tasks = seen.matrix.correct, np.unique(seen.tasks)
    areas = {str(b): [area(values[seen.tasks == task], right[seen.tasks == task, 0]) for task in tasks] for b, values in seen.lens.items()}
    tells = {block: round(float(np.mean(values)), 3) for block, values in areas.items()}
    counts = {"questions": len(right), "routes": right.shape[1]}
    return counts | {"base": float(right[:, 0].mean()), "oracle": float(right.any(1).mean()), "early_margin_area": tells}


if __name__ == "__main__":
    main()
