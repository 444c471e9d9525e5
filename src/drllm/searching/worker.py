"""Search groups of questions with one model replica: many trees at once through one scorer, then the control, then the checks.

A question's record depends on the question, the model and the configuration alone: with `loglik` no verdict depends on the other
questions (`scoring/prefixes.py`), and generated answers are searched one group at a time. So one process, many workers, an interrupted
search and a resumed one all write the same records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from drllm.config import Resources, SearchConfig
from drllm.model.routed import RoutedModel
from drllm.records import RouteRecord
from drllm.routes import Route
from drllm.scoring import Scorer, Verdict, make_scorer
from drllm.searching.prior import EditPrior, fit_prior, sweep_routes
from drllm.searching.tree import FixedRoutes, RouteTree
from drllm.searching.verify import Verifier
from drllm.tasks import Example, Task

CONTROLS_AT_ONCE = 8  # of one question: each one under way holds states


@dataclass(frozen=True)
class Job:
    """What to do with every question of one task.

    Attributes:
        prior: of the edits, or None.
        routes: evaluate these instead of searching (`drllm search --paths`), or None.
        control: the input-blind control's routes; empty for none.
    """

    task: Task
    config: SearchConfig
    prior: EditPrior | None = None
    routes: tuple[Route, ...] | None = None
    control: tuple[Route, ...] = ()


@dataclass
class _Search:
    """One question under way."""

    question: Any
    split: str
    asks: RouteTree | FixedRoutes
    verdicts: dict[Route, Verdict] = field(default_factory=dict)
    controls: list[Route] = field(default_factory=list)  # still to be submitted
    n_running: int = 0
    searched: bool = False

    @property
    def done(self) -> bool:
        return self.searched and not self.controls and not self.n_running


def question_seed(seed: int, task: str, example_id: str) -> int:
    """A tree's seed depends on its question alone, not on the group it falls in."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task}:{example_id}".encode()).digest()[:8], "big")


class Worker:
    """One model replica that searches groups of examples of one task."""

    def __init__(self, routed: RoutedModel, job: Job, resources: Resources):
        self.routed, self.job, self.resources = routed, job, resources
        config = job.config
        self.scorer: Scorer = make_scorer(
            routed, job.task, config.reward, config.max_step_tokens, config.metric, config.max_new_tokens, resources.cache_bytes
        )
        self.fingerprint = routed.fingerprint
        self._verifier: Verifier | None = None

    def search(self, groups: Iterable[tuple[int, Sequence[tuple[str, Example]]]]) -> Iterator[tuple[int, list[RouteRecord]]]:
        """Search groups of (split, example), several at once: each group's index with its records, when it is done."""
        waiting = iter(groups)
        running: dict[int, _Search] = {}
        members: dict[int, list[int]] = {}  # group -> handles
        at_once = self.resources.pool_size if self.scorer.shares_across_groups else 1
        exhausted = False
        while running or not exhausted:
            while not exhausted and sum(not search.done for search in running.values()) < at_once:
                group = next(waiting, None)
                if group is None:
                    exhausted = True
                else:
                    members[group[0]] = self._open(group[1], running)
            for handle, route, verdict in self.scorer.collect():
                self._take(handle, running[handle], route, verdict)
            for index in [index for index, handles in members.items() if all(running[handle].done for handle in handles)]:
                handles = members.pop(index)
                searches = [running.pop(handle) for handle in handles]
                self.scorer.close(handles)
                yield index, [self._record(search) for search in searches]

    def sweep(self, examples: Sequence[Example]) -> EditPrior:
        """A prior over edits from every single edit on a few questions of the task."""
        config = self.job.config
        routes = sweep_routes(self.routed.n_layers, config.max_skip_run)
        rows = []
        for start in range(0, len(examples), 8):
            questions: list[Any] = [self.scorer.question(self.job.task, example) for example in examples[start : start + 8]]
            asks = [FixedRoutes(routes) for _ in questions]
            handles = self.scorer.open(questions)
            pairs = [(handle, route) for handle in handles for route in [Route.full(self.routed.n_layers), *routes]]
            verdicts = dict(zip(pairs, self.scorer.score(pairs), strict=True))
            self.scorer.close(handles)
            for handle, fixed in zip(handles, asks, strict=True):
                while (route := fixed.ask()) is not None:
                    fixed.tell(route, verdicts[handle, route].correct, verdicts[handle, route].margin)
                rows.append(fixed.evaluated)
        return fit_prior(self.routed.n_layers, config.max_skip_run, rows)

    def _open(self, group: Sequence[tuple[str, Example]], running: dict[int, _Search]) -> list[int]:
        job = self.job
        questions: list[Any] = [self.scorer.question(job.task, example) for _, example in group]
        handles = self.scorer.open(questions)
        for handle, question, (split, example) in zip(handles, questions, group, strict=True):
            seed = question_seed(job.config.seed, job.task.name, example.id)
            asks = RouteTree(self.routed.n_layers, job.config, seed, job.prior) if job.routes is None else FixedRoutes(job.routes)
            search = running[handle] = _Search(question, split, asks, controls=list(reversed(job.control)))
            self._ask(handle, search)
        return handles

    def _ask(self, handle: int, search: _Search) -> None:
        """Submit what the question needs next: its tree's route, then the control's."""
        if not search.searched:
            base = search.asks.evaluated[0] if search.asks.evaluated else None
            broken = base is not None and search.verdicts[base.route].broken
            route = None if broken else search.asks.ask()
            if route is not None:
                self._submit(handle, search, route)
                return
            search.searched = True
            if broken:
                search.controls = []
        while search.controls and search.n_running < CONTROLS_AT_ONCE:
            route = search.controls.pop()
            if route not in search.verdicts:
                self._submit(handle, search, route)

    def _submit(self, handle: int, search: _Search, route: Route) -> None:
        search.n_running += 1
        self.scorer.submit(handle, route)

    def _take(self, handle: int, search: _Search, route: Route, verdict: Verdict) -> None:
        search.n_running -= 1
        search.verdicts[route] = verdict
        if not search.searched:
            search.asks.tell(route, verdict.correct, verdict.margin)
        self._ask(handle, search)

    def _record(self, search: _Search) -> RouteRecord:
        job, question, asks = self.job, search.question, search.asks
        told = [search.verdicts[evaluation.route] for evaluation in asks.evaluated]
        control = job.control if all(route in search.verdicts for route in job.control) else ()
        checks = ()
        if job.config.verify and job.routes is None and not told[0].broken:
            if self._verifier is None:
                self._verifier = Verifier(self.routed, job.task, job.config)
            checks = self._verifier.checks(question.example, [Route.full(self.routed.n_layers), asks.chosen])
        return RouteRecord(
            task=job.task.name,
            id=question.example.id,
            n_choices=len(question.example.choices),
            base_correct=told[0].correct,
            base_margin=told[0].margin,
            chosen=asks.chosen,
            routes=tuple(evaluation.route for evaluation in asks.evaluated),
            rewards=tuple(float(verdict.correct) for verdict in told),
            margins=tuple(verdict.margin for verdict in told),
            acc=tuple(verdict.acc for verdict in told),
            acc_norm=tuple(verdict.acc_norm for verdict in told),
            seed=job.config.seed,
            fingerprint=self.fingerprint,
            reward=job.config.reward if job.config.reward != "auto" else job.task.default_reward,
            split=search.split,
            control_routes=control,
            control_correct=tuple(search.verdicts[route].correct for route in control),
            control_margins=tuple(search.verdicts[route].margin for route in control),
            checks=checks,
        )
