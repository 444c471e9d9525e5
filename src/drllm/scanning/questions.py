"""Which questions a scan reads: some that choose, shared evenly over the tasks, and others that choose nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from drllm.core.config import Resources, ScanConfig, SearchConfig
from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import path_manifests
from drllm.runs.records import RouteRecord, iterate_records
from drllm.scoring.scorer import askable, scorer_of
from drllm.searching.runner import search
from drllm.tasks import SPLITS, Example, LoadedTask, question_key

T = TypeVar("T")
Asked = list[tuple[str, Example]]  # (task, question), tasks in turns
FEW_ROUTES, IN_MEMORY = 64, 512  # routes of a question that run together; evaluations to keep a replica busy
SHARD = 8  # questions a shard, where each has few routes


def choose(routed: RoutedModel, loaded: Mapping[str, LoadedTask], config: ScanConfig) -> tuple[Asked, Asked]:
    """The questions that choose, and those that choose nothing: of each task the first of the split that the model can be asked.

    Raises:
        InputError: fewer questions than the race needs, or none left for measuring again.
    """
    streams = {name: _usable(routed, task, config.split, config) for name, task in loaded.items()}
    raced = {name: list(islice(streams[name], n)) for name, n in _shares(list(loaded), config.questions).items()}
    for name, n in _shares(list(loaded), config.questions).items():
        if len(raced[name]) < n:
            raise InputError(
                f"{name} has {len(raced[name])} questions in split {config.split} that this model can be asked, the race needs {n} of its "
                f"{config.questions} there: lower --questions, or give more with --data"
            )
    if not config.fresh:
        return _in_turns(raced), []
    if config.fresh_split != config.split:
        streams = {name: _usable(routed, task, config.fresh_split, config) for name, task in loaded.items()}
    seen = {question_key(example.question) for examples in raced.values() for example in examples}
    wanted = _shares(list(loaded), config.fresh)
    new = {name: (example for example in streams[name] if question_key(example.question) not in seen) for name in loaded}
    fresh = _in_turns({name: list(islice(new[name], wanted[name])) for name in loaded})
    if not fresh:
        raise InputError(
            f"no question of split {config.fresh_split} is left to measure the winners again: lower --questions, name another "
            "--fresh-split, or leave the second measurement out with --fresh 0"
        )
    return _in_turns(raced), fresh


def as_begun(resources: Resources, base: Path) -> Resources:
    """The resources, with the threads of a scan that is under way where none are asked for: 16-bit products round by them.

    Args:
        base: the folder in which that scan asked the base.
    """
    if resources.executor != "auto" or resources.threads:
        return resources
    threads = max((manifest.threads or 0 for manifest in path_manifests(base).values()), default=0)
    return replace(resources, executor="local", threads=threads) if threads > 1 else resources


def least_sure_first(tasks: Sequence[str], margins_Q: np.ndarray) -> list[int]:
    """The order in which a race asks: each task's questions by how near the base's margin is to 0, tasks in turns.

    Where the base is sure, most routes change nothing. The others decide what a span does, so few of them tell more than few of all
    (docs/decisions/2026-11-28-scan.md). A question without a margin stands where it stood among its like, behind the others.

    Args:
        tasks: of each question.
    """
    distance = np.where(np.isfinite(margins_Q), np.abs(margins_Q), np.inf)
    ranked = sorted(range(len(tasks)), key=lambda place: distance[place])
    by_task = {name: [place for place in ranked if tasks[place] == name] for name in dict.fromkeys(tasks)}
    return [place for _, place in _in_turns(by_task)]


def _shares(tasks: Sequence[str], n: int) -> dict[str, int]:
    """How many of `n` questions each task gives."""
    return {name: n // len(tasks) + (place < n % len(tasks)) for place, name in enumerate(tasks)}


def _in_turns(by_task: Mapping[str, Sequence[T]]) -> list[tuple[str, T]]:
    """One question of each task after the other, so that the first few are shared evenly, too."""
    longest = max(map(len, by_task.values()), default=0)
    return [(name, examples[turn]) for turn in range(longest) for name, examples in by_task.items() if turn < len(examples)]


def _usable(routed: RoutedModel, task: LoadedTask, split: str, config: ScanConfig) -> Iterator[Example]:
    """Questions of a split, in its order, that have a choice to make and fit the model's context."""
    scorer = scorer_of(routed, task.task, config)
    for example in task.select(split):
        lone = task.task.kind == "choice" and len(example.choices) == 1
        if not lone and askable(scorer, task.task, [example])[0]:
            yield example


@dataclass(frozen=True)
class Bench:
    """Asks questions along routes, each set of them in a run folder of its own that the same call resumes."""

    routed: RoutedModel
    loaded: Mapping[str, LoadedTask]
    config: ScanConfig
    resources: Resources
    data: str | Path | None

    def ask(self, routes: Sequence[Route], asked: Asked, split: str, out: Path) -> tuple[np.ndarray, np.ndarray]:
        """Verdicts and margins (Q, 1 + R) of the questions along the base's route and along these, as `drllm.searching` finds them.

        A question on which the base's logits are NaN or infinite counts as wrong on every route.
        """
        by_task = {name: [example for task, example in asked if task == name] for name in self.loaded}
        tasks = [_restricted(self.loaded[name], split, examples) for name, examples in by_task.items() if examples]
        config = self.config
        settings = SearchConfig(
            reward=config.reward,
            metric=config.metric,
            max_new_tokens=config.max_new_tokens,
            max_step_tokens=config.max_step_tokens,
            splits=(split,),
            verify=False,
            control=False,
            sweep_questions=0,
            group_size=1 if len(routes) >= FEW_ROUTES else SHARD,
        )
        # Few questions at once where each has many routes: a crash then loses little, and what their routes share stays in memory.
        at_once = max(2, -(-IN_MEMORY // len(routes)))
        resources = replace(self.resources, pool_size=min(self.resources.pool_size, 4 * at_once))
        search(self.routed, tasks, settings, out, self.data, routes=routes, resources=resources)
        return matrices(iterate_records(RunFolder(out).matrices), routes, asked)


def _restricted(task: LoadedTask, split: str, examples: list[Example]) -> LoadedTask:
    """The task with these questions alone."""
    return replace(task, examples={name: examples if name == split else [] for name in SPLITS}, dropped={})


def matrices(records: Iterable[RouteRecord], routes: Sequence[Route], asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts and margins (Q, 1 + R) of dense records, questions and routes in these orders, the base first."""
    found = {(record.task, record.id): record for record in records}
    wanted = (Route.full(len(routes[0])), *routes)
    verdicts, margins = np.zeros((len(asked), len(wanted)), dtype=bool), np.full((len(asked), len(wanted)), np.nan)
    for row, (task, example) in enumerate(asked):
        record = found.get((task, example.id))
        if record is None:
            raise ArtifactError(f"the records hold no question {example.id!r} of {task}: remove that folder, and it is made again")
        if not record.broken:
            place = {route: at for at, route in enumerate(record.routes)}
            order = [place[route] for route in wanted]
            verdicts[row], margins[row] = np.array(record.rewards)[order] > 0, np.array(record.margins)[order]
    return verdicts, margins
