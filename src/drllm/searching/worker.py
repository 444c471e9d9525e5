"""The tree search of groups of questions, as a worker does it: trees through one scorer, then the blind baseline, then the checks."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import SearchConfig
from drllm.core.digest import json_digest, number_of
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.model.copies import twin_in
from drllm.model.routed import RoutedModel
from drllm.runs.records import FINITE, Check, RouteRecord, shard_path, write_shard
from drllm.runs.store import Asked, Store
from drllm.scoring.base import Question
from drllm.scoring.inquiries import Inquiry, Job, Replica, Wanted, write_new
from drllm.scoring.loglik import LoglikScorer
from drllm.scoring.scorer import Scorer, scorer_of
from drllm.searching.tree import RouteTree
from drllm.tasks import Example, Task


def question_seed(seed: int, task: str, example_id: str) -> int:
    """A tree's seed depends on its question alone, not on the group it falls in."""
    return number_of(f"{seed}:{task}:{example_id}")


ALONE = 1  # tokens of a step: fewer than any question has, so each step holds one sequence


class Verifier:
    """Checks kept routes again, alone, in float32, and under another wording, since a label that flips teaches nothing.

    | reward | checks |
    |---|---|
    | loglik | `fp32:acc`, `fp32:acc_norm`: the same question; `template:acc`, `template:acc_norm`: a second prompt template |
    | letter | `fp32`; `rotated:k`: the options rotated by k, for every k |
    | boxed, number, exact | `fp32` |

    A float32 twin of the model answers, made when there is something to check: memory for one block, the embedding and the head is needed.
    """

    def __init__(self, routed: RoutedModel, task: Task, config: SearchConfig):
        self.task, self.config = task, config
        twin = routed if routed.model.dtype == torch.float32 else twin_in(routed, torch.float32)
        self.scorer: Scorer = scorer_of(twin, task, replace(config, max_step_tokens=ALONE))

    def checks(self, example: Example, routes: Iterable[Route | None]) -> tuple[Check, ...]:
        """Every check of each distinct route, None left out; none in a wording that does not fit the context."""
        wanted = list(dict.fromkeys(route for route in routes if route is not None))
        versions = [("fp32", self.task, example)]
        if isinstance(self.scorer, LoglikScorer):
            versions.append(("template", self.task.reworded(), example))
        elif self.scorer.reward == "letter":
            versions += [(f"rotated:{by}", self.task, rotated(example, by)) for by in range(1, len(example.choices))]
        scorer: Any = self.scorer
        found: list[Check] = []
        for name, task, version in versions:
            try:
                question = scorer.question(task, version)
            except InputError:
                continue
            scorer.load([question])
            for route in wanted:
                [verdict] = scorer.score([(0, route)])
                if isinstance(scorer, LoglikScorer):
                    found.append(Check(route, f"{name}:acc", bool(verdict.acc), verdict.margin_acc))
                    found.append(Check(route, f"{name}:acc_norm", bool(verdict.acc_norm), verdict.margin_acc_norm))
                else:
                    found.append(Check(route, name, verdict.correct, verdict.margin))
        return tuple(sorted(found, key=lambda check: wanted.index(check.route)))


def rotated(example: Example, by: int) -> Example:
    """The same question with its options moved `by` places up, around the end."""
    assert isinstance(example.answer, int)
    n = len(example.choices)
    return replace(example, choices=example.choices[by:] + example.choices[:by], answer=(example.answer - by) % n)


@dataclass(frozen=True)
class Searching(Job):
    """What to do with every question of one task; a record depends on the question, the model and the configuration alone."""

    folder: Path  # of the task's records
    counts: str  # which verdict of a row is the reward
    digests: tuple[str, ...]  # of the questions that are left; what the store knows of them is not asked again
    control: tuple[Route, ...] = ()  # of the blind baseline

    @property
    def in_order(self) -> bool:
        """Where a number of questions is kept, the order in which they are visited counts."""
        return bool(self.config.keep)

    @property
    def most_routes(self) -> int:
        """The base, and those of the simulations and of the blind baseline."""
        return 1 + self.config.n_simulations + len(self.control)

    def is_done(self, index: int) -> bool:
        """Records are written last."""
        return shard_path(self.folder, index).is_file()

    def inquire(self, replica: Replica, question: Question, wanted: Wanted) -> Inquiry:
        """The question with its tree; the tree's base comes first."""
        name = self.task.name
        tree = RouteTree(replica.routed.n_layers, self.config, question_seed(self.config.seed, name, wanted.example.id))
        if ("known", self.folder) not in replica.kept:
            replica.kept["known", self.folder] = Store(self.store).find(self.conditions, self.digests, self.counts)
        known = replica.kept["known", self.folder].get(question.digest, {})
        asked = Asked(name, wanted.split, wanted.example.id, question.digest)
        return Inquiry(question, asked, list(reversed(self.control)), tree, tree.ask(), dict(known))

    def finish(self, replica: Replica, index: int, inquiries: list[Inquiry]) -> None:
        """Verdicts first: records whose verdicts are not there would be broken."""
        about = [vars(self.conditions), repr(self.config), [one.asked.question for one in inquiries]]
        write_new(Store(self.store), f"search-{json_digest(about)}", self.conditions, inquiries)
        write_shard(self.folder, index, [self._record(replica, inquiry) for inquiry in inquiries])

    def _record(self, replica: Replica, inquiry: Inquiry) -> RouteRecord:
        tree, checks = inquiry.strategy, tuple[Check, ...]()
        assert isinstance(tree, RouteTree)
        routes = tuple(evaluation.route for evaluation in tree.evaluated)
        if inquiry.broken:
            checks = (Check(routes[0], FINITE, False, inquiry.verdicts[routes[0]].margin),)
        elif self.config.verify:
            if ("verifier", self.folder) not in replica.kept:
                replica.kept["verifier", self.folder] = Verifier(replica.routed, self.task, self.config)
            checks = replica.kept["verifier", self.folder].checks(inquiry.question.example, [routes[0], tree.chosen])
        control = () if inquiry.broken else self.control
        about = (inquiry.asked, self.conditions, self.counts, self.config.seed)
        return RouteRecord(*about, tree.chosen, routes, inquiry.verdicts, control, checks)
