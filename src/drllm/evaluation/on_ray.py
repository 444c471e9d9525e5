"""The comparison on a Ray cluster: actors answer one task by one method at a time and write the verdicts (`drllm.model.ray_pool`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from drllm.core.config import EvaluateConfig, Resources
from drllm.core.errors import ArtifactError
from drllm.core.progress import Progress
from drllm.evaluation.answers import Asked, answer, questions_of, read_answers, scorer_of
from drllm.model.ray_pool import Base, work_on_ray
from drllm.model.routed import RoutedModel
from drllm.scoring.scorer import Scorer


class Answerer:
    """One actor: a model, and the scorer of the task it was asked last."""

    def __init__(self, base: Base, config: EvaluateConfig, threads: int):
        self._base, self._config, self._threads = base, config, threads
        self._routed: RoutedModel | None = None
        self._scorer: tuple[str, Scorer] | None = None

    def work(self, jobs: list[tuple[int, Asked]]) -> None:
        """Answer and write the verdicts. Without jobs the model is loaded, no more."""
        if self._routed is None:
            self._routed = self._base.load(self._threads)
        for _, asked in jobs:
            name = asked.task.name
            if self._scorer is None or self._scorer[0] != name:
                self._scorer = (name, scorer_of(self._routed, asked.task, self._config))
            scorer = self._scorer[1]
            questions = questions_of(scorer, asked.task, asked.examples)
            if (key := asked.key_with(self._routed, self._config, questions)) != asked.key:
                raise ArtifactError(f"a worker would answer {asked.label} by another key ({key[:8]}, not {asked.key[:8]}): give every node "
                                    "the same software and the same run folder")  # fmt: skip
            answer(scorer, questions, asked.policy(self._routed), asked)


def answer_on_ray(routed: RoutedModel, config: EvaluateConfig, resources: Resources, asked: Sequence[Asked]) -> None:
    """Have the actors of the `connected` cluster answer; all verdicts are written when this returns."""
    asked = [replace(one, path=one.path.resolve(), saved=one.saved and one.saved.resolve()) for one in asked]  # actors start elsewhere

    def is_done(index: int) -> bool:
        return read_answers(asked[index].path, asked[index].key) is not None

    arguments = (Base.of(routed, resources), config, max(1, resources.threads))
    todo = [(index, one) for index, one in enumerate(asked) if not is_done(index)]
    with Progress("methods by tasks", len(asked)) as progress:
        progress.advance(len(asked) - len(todo))
        for _ in work_on_ray(Answerer, arguments, todo, resources, 1, is_done, lambda _, one: one.label, progress.print):
            progress.advance(1)
