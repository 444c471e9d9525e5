"""Which questions a scan reads: some that choose, shared evenly over the tasks, and others that choose nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from drllm.core.config import ScanConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.scoring.asking import Ask, Bench
from drllm.scoring.scorer import askable, scorer_of
from drllm.tasks import Example, LoadedTask, question_key

T = TypeVar("T")
TaskQuestions = list[tuple[str, Example]]  # (task, question), tasks in turns


def choose(routed: RoutedModel, loaded: Mapping[str, LoadedTask], config: ScanConfig) -> tuple[TaskQuestions, TaskQuestions]:
    """The questions that choose, and those that choose nothing: of each task the first of the split that the model can be asked.

    `InputError` where there are fewer than the race needs, or none is left for measuring again.
    """
    streams, raced = {name: _usable(routed, task, config.split, config) for name, task in loaded.items()}, {}
    for name, n in _shares(list(loaded), config.questions).items():
        if len(found := list(islice(streams[name], n))) < n:
            raise InputError(
                f"{name} has {len(found)} questions in split {config.split} that this model can be asked, the race needs {n} of its "
                f"{config.questions} there: lower --questions, or give more with --data"
            )
        raced[name] = found
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


def least_sure_first(tasks: Sequence[str], margins_Q: np.ndarray) -> list[int]:
    """The order in which a race asks: each task's questions by how near the base's margin is to 0, tasks in turns.

    Where the base is sure, most routes change nothing. The others decide what a span does, so few of them tell more than few of all
    (docs/decisions/2026-11-28-scan.md). A question without a margin stands where it stood among its like, behind the others.
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
class Questions:
    """Asks a scan's questions along routes."""

    bench: Bench
    loaded: Mapping[str, LoadedTask]
    config: ScanConfig

    def ask(self, routes: Sequence[Route], asked: TaskQuestions, split: str, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Verdicts and margins (Q, 1 + R) of the questions along the base's route and along these.

        A question on which the base's logits are NaN or infinite counts as wrong on every route.
        """
        wanted, asks, places = list(dict.fromkeys((Route.full(len(routes[0])), *routes))), [], []
        for name in dict.fromkeys(name for name, _ in asked):
            task = self.loaded[name].task
            scorer = scorer_of(self.bench.routed, task, self.config, self.bench.resources.cache_bytes)
            here = [(place, scorer.question(task, example)) for place, (of, example) in enumerate(asked) if of == name]
            # The longest first, as memory is needed; one of a task's kind runs in equal steps with its like.
            here.sort(key=lambda pair: (-pair[1].n_tokens, pair[1].example.id))
            questions = [question for _, question in here]
            asks.append(Ask(scorer, task, self.config, split, questions, [wanted] * len(questions)))
            places += [place for place, _ in here]
        found = [verdicts for part in self.bench.ensure(asks, label) for verdicts in part]
        shown = [Route.full(len(routes[0])), *routes]
        verdicts, margins = np.zeros((len(asked), len(shown)), dtype=bool), np.full((len(asked), len(shown)), np.nan)
        for place, one in zip(places, found, strict=True):
            if not one[shown[0]].broken:
                verdicts[place], margins[place] = [one[route].correct for route in shown], [one[route].margin for route in shown]
        return verdicts, margins
