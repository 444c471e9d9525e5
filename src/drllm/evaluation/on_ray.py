"""The comparison on a Ray cluster: actors answer one task by one method at a time and write the verdicts (`drllm.model.ray_pool`)."""

from collections.abc import Sequence
from dataclasses import replace

from drllm.core.config import EvaluateConfig, Resources
from drllm.core.errors import ArtifactError
from drllm.core.progress import Progress
from drllm.evaluation.answers import Request, answer, questions_of
from drllm.model.ray_pool import Base, Work, work_on_ray
from drllm.model.routed import RoutedModel
from drllm.scoring.scorer import Scorer, scorer_of


class Answerer:
    """One actor: a model, and the scorer of the task it answered last."""

    def __init__(self, base: Base, config: EvaluateConfig, threads: int):
        self._base, self._config, self._threads = base, config, threads
        self._routed: RoutedModel | None = None
        self._scorer: tuple[str, Scorer] | None = None

    def work(self, jobs: list[tuple[int, Request]]) -> None:
        """Answer and write the verdicts. Without jobs the model is loaded, no more."""
        if self._routed is None:
            self._routed = self._base.load(self._threads)
        for _, request in jobs:
            name = request.task.name
            if self._scorer is None or self._scorer[0] != name:
                self._scorer = (name, scorer_of(self._routed, request.task, self._config))
            scorer = self._scorer[1]
            questions = questions_of(scorer, request.task, request.examples)
            if (key := request.described(self._routed, self._config, questions)["key"]) != request.key:
                what = f"{request.label} by another key ({key[:8]}, not {request.key[:8]})"
                raise ArtifactError(f"a worker would answer {what}: give every node the same software and the same run folder")
            answer(scorer, questions, request.policy(self._routed), request)


def answer_on_ray(routed: RoutedModel, config: EvaluateConfig, resources: Resources, requests: Sequence[Request]) -> None:
    """Have the actors of the `connected` cluster answer; all verdicts are written when this returns."""
    # Actors start in another folder.
    requests = [replace(request, path=request.path.resolve(), saved=request.saved and request.saved.resolve()) for request in requests]
    arguments = (Base.of(routed, resources), config, max(1, resources.threads))
    todo = [(index, request) for index, request in enumerate(requests) if request.done() is None]
    with Progress("methods by tasks", len(requests)) as progress:
        progress.advance(len(requests) - len(todo))
        work = Work(lambda index: requests[index].done() is not None, lambda _, request: request.label, progress.print)
        for _ in work_on_ray(Answerer, arguments, todo, resources, work):
            progress.advance(1)
