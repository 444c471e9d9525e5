"""The questions a comparison asks, and what policies decide and answer on them, from the run's store: asked once, then looked up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from drllm.retrofitting.choice import constant_accuracy

LIMIT = 800  # questions of a task in the matrix, and of a test part that is made of others
Key = tuple[str, str]  # task and id
HELD_OUT = {"boolq": 400}  # passages are long


def select(data: Any, split: str, seen: Set[str], limit: int = 0, scanned: Set[str] = frozenset()) -> list[Any]:
    """What is asked of a task.

    Tune: the questions of the matrix, else the first ones. Calibrate: all, or the first `limit`. Test: the test part, whole unless a limit
    is given; of a task that has none, the first tune questions behind those of the matrix; where there is no matrix, so that nothing was
    learned from the task, its fit and calibrate questions, without those by which a scan found the routes.
    """
    if split == "tune":
        return [example for example in data.select("tune", 0 if seen else limit or LIMIT) if not seen or example.id in seen]
    if split == "calibrate":
        return [example for example in data.select("calibrate", limit) if example.id not in seen]
    if data.examples["test"]:
        return data.select("test", limit)
    rest = data.select("tune") if seen else data.select("fit") + data.select("calibrate")
    unread = [example for example in rest if example.id not in seen | scanned]
    most = HELD_OUT.get(data.task.name, LIMIT)
    return unread[: min(limit or most, most)]


class SettingQuestions:
    """Questions of some tasks and one split, task by task, the shortest first.

    Attributes:
        tasks, ids: of every question.
        most_common: accuracy of one answer to all, of tasks in which every question has the same choices.
        without_test_part: tasks whose test questions are others.
    """

    def __init__(self, bench: Any, of: Any, split: str, data: str | None, limit: int = 0, scanned: Set[Key] = frozenset()):
        """`SystemExit` where the data lack tune questions of the matrix, or hold others under their names.

        Args:
            bench: of `drllm.scoring.asking`, on the run folder with the matrix.
            of: `asked`, the tasks; `apart`, every task that a policy may learn from, whose questions are left out of others; `reward`, how
                tasks that the matrix does not hold are judged.
            scanned: task and id of questions by which routes were found; left out of what test is made of where there is no test part.
        """
        from drllm.runs.manifest import path_manifests
        from drllm.tasks import drop_overlaps, load_task

        names = list(dict.fromkeys((*of.apart, *of.asked)))
        loaded = drop_overlaps({name: load_task(name, data) for name in names}, list(of.apart))
        manifests = {manifest.task: manifest for manifest in path_manifests(bench.run).values()}
        self.bench, self.split, self.reward = bench, split, of.reward
        self.most_common: dict[str, float] = {}
        self.without_test_part: list[str] = []
        self.asks = []
        for name in of.asked:
            left_out = {i for task, i in scanned if task == name}
            self.asks.append(self._ask(loaded[name], manifests.get(name), limit, left_out))
        self.tasks = [ask.task.name for ask in self.asks for _ in ask.questions]
        self.ids = [question.example.id for ask in self.asks for question in ask.questions]
        self.prompts = [question.context_ids for ask in self.asks for question in ask.questions]

    def _ask(self, loaded: Any, manifest: Any, limit: int, scanned: Set[str]) -> Any:
        from drllm.core.config import EvaluateConfig
        from drllm.scoring.asking import Ask
        from drllm.scoring.scorer import scorer_of

        config = EvaluateConfig(reward=self.reward) if manifest is None else manifest.search_config
        seen = {} if manifest is None else {one.id: one.question for one in manifest.questions_asked if one.split == "tune"}
        scorer = scorer_of(self.bench.routed, loaded.task, config)
        examples = select(loaded, self.split, seen.keys(), limit, scanned)
        if self.split == "tune" and len(examples) < len(seen):
            raise SystemExit(
                f"{loaded.source} lacks {len(seen) - len(examples)} tune questions of the matrix: give the data it was made of"
            )
        questions = [scorer.question(loaded.task, example) for example in examples]
        if other := [one.example.id for one in questions if seen.get(one.example.id, one.digest) != one.digest]:
            raise SystemExit(f"the matrix was made of another question {other[0]}: give the data of then, or another --run")
        if self.split == "test" and not loaded.examples["test"]:
            self.without_test_part.append(loaded.task.name)
        if not math.isnan(share := constant_accuracy({loaded.task.name: examples})):
            self.most_common[loaded.task.name] = share
        in_order = sorted(questions, key=lambda question: (question.n_tokens, question.example.id))
        return Ask(scorer, loaded.task, config, self.split, in_order, ())

    def routes(self, policies: Sequence[Any]) -> list[list[Any]]:
        """One route a question, by each policy."""
        decided = [self.bench.decide(ask, policies, f"routes on {ask.task.name}") for ask in self.asks]
        return [[route for of_task in decided for route in of_task[place]] for place in range(len(policies))]

    def answers(self, routes: Mapping[Any, Sequence[Any]]) -> dict[Any, list[bool]]:
        """Whether each question is answered rightly along its route of each of several lists."""
        asks = [replace(ask, routes=list(zip(*mine, strict=True))) for ask, mine in self._by_task(list(routes.values()))]
        found = self.bench.ensure(asks, f"{len(routes)} methods on {self.split}")
        of_question = [verdicts for of_task in found for verdicts in of_task]
        return {name: [one[route].correct for one, route in zip(of_question, mine, strict=True)] for name, mine in routes.items()}

    def _by_task(self, lists: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, list[Sequence[Any]]]]:
        start = 0
        for ask in self.asks:
            end = start + len(ask.questions)
            yield ask, [one[start:end] for one in lists]
            start = end
