"""What a bench gives to its workers: questions to be asked along listed routes, and prompts that policies decide upon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from drllm.core.config import Resources
from drllm.policies.policy import RouteSource
from drllm.runs.store import Asked, Decided, Store
from drllm.scoring.base import Question
from drllm.scoring.inquiries import Asking, Inquiry, write_new
from drllm.scoring.replica import Job, Judged, Replica, Wanted
from drllm.scoring.route_prediction import decide_routes

IN_FLIGHT = 512  # evaluations that keep a replica's steps full


@dataclass(frozen=True)
class Listed(Asking):
    """Routes that are given."""

    names: Mapping[int, str]  # of each group's shard
    most: int  # routes of a question

    def inquire(self, replica: Replica, question: Question, wanted: Wanted) -> Inquiry:
        asked = Asked(self.task.name, wanted.split, wanted.example.id, question.digest)
        return Inquiry(question, asked, list(reversed(wanted.routes)))

    def finish(self, replica: Replica, index: int, inquiries: list[Inquiry]) -> None:
        write_new(Store(self.store), self.names[index], self.conditions, inquiries)

    def is_done(self, index: int) -> bool:
        return Store(self.store).shards.has(self.names[index])

    def at_once(self, resources: Resources) -> int:
        """Few where each has many routes: what their routes share is still there when it is needed."""
        return max(2, min(resources.pool_size, IN_FLIGHT // max(1, self.most)))

    @property
    def most_routes(self) -> int:
        return self.most


@dataclass(frozen=True)
class Deciding(Job):
    """Policies decide their routes."""

    policies: Mapping[str, RouteSource]  # by their keys
    groups: Mapping[int, Sequence[Asked]]  # by index

    def do(self, replica: Replica, groups: Iterable[tuple[int, Sequence[Wanted]]], tell: Callable[[Judged], None]) -> Iterator[int]:
        scorer, decided = replica.scorer(self), Decided(self.store)
        for index, group in groups:
            prompts = [scorer.question(self.task, wanted.example).context_ids for wanted in group]
            found = decide_routes(scorer.routed, list(self.policies.values()), prompts, scorer.max_step_tokens)
            for key, routes in zip(self.policies, found, strict=True):
                decided.write(key, self.conditions, list(zip(self.groups[index], routes, strict=True)))
            yield index

    def is_done(self, index: int) -> bool:
        decided, questions = Decided(self.store), [asked.question for asked in self.groups[index]]
        return all(decided.shards.has(decided.name(key, self.conditions, questions)) for key in self.policies)
