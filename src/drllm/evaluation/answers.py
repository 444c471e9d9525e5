"""One method's verdicts on one task's questions: what `evaluate` compares, made here or on a cluster, and kept in a file each."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.config import EvaluateConfig, Resources, to_dict
from drllm.core.digest import digest, json_digest, number_of
from drllm.core.errors import ArtifactError, InputError
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.core.span import Span, in_place
from drllm.model.pool import Base, Work, Workplace, work_on
from drllm.model.routed import RoutedModel
from drllm.policies.given import GivenRoutes
from drllm.policies.policy import RouteSource
from drllm.policies.saved import load_policy
from drllm.policies.saved_config import policy_digest
from drllm.runs.verdicts import Verdicts, find_verdicts, write_verdicts
from drllm.scoring.route_prediction import decision_key
from drllm.scoring.scorer import Scorer, questions_digest, scorer_of
from drllm.scoring.verdict import Known, Verdict
from drllm.tasks import Example, Task

MAX_THROWS = 1000  # of a looped route's loops
CHUNK = 64  # questions between two steps of the progress bar


@dataclass(frozen=True)
class Request:
    """One method on one task, before it is answered."""

    method: str
    task: Task
    examples: list[Example]
    saved: Path | None  # the folder of the method's policy; None for the base, and for blind baselines
    routes: list[Route] | None  # of a blind baseline, one a question in the order in which they are answered
    path: Path  # the file of the verdicts
    # Kept with the verdicts: `key` names all they depend on, `comparable` what they can be compared with, `policy` whose they are.
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.method} on {self.task.name}"

    @property
    def key(self) -> str:
        """Names everything the verdicts depend on: weights, dtype, policy files, configuration, questions."""
        return self.metadata["key"]

    def done(self) -> Verdicts | None:
        """The verdicts, if they were written before."""
        return find_verdicts(self.path, self.key)

    def policy(self, routed: RoutedModel) -> RouteSource | None:
        """What answers; None is the base."""
        if self.routes is not None:
            return GivenRoutes(self.routes)
        return None if self.saved is None else load_policy(self.saved, routed.identity)

    def described(self, routed: RoutedModel, config: EvaluateConfig, questions: Sequence[Any]) -> dict[str, str]:
        """What `metadata` is for this model, these settings and questions."""
        settings = [routed.fingerprint, str(routed.model.dtype), to_dict(config), questions_digest(questions)]
        policy = {} if self.saved is None else {"policy": policy_digest(self.saved)}
        routes = "" if self.routes is None else " ".join(map(str, self.routes))
        key = digest(json.dumps([self.method, *settings]) + policy.get("policy", "") + routes)
        # Verdicts of two methods can be compared where weights, type, configuration and questions are the same.
        return {"key": key, "comparable": json_digest(settings), **policy}


def questions_of(scorer: Scorer, task: Task, examples: Sequence[Example]) -> list[Any]:
    """The questions in the order in which all methods answer them: the shortest first."""
    return sorted((scorer.question(task, example) for example in examples), key=shortest_first)


def shortest_first(question: Any) -> tuple[int, str]:
    """What questions are sorted by before they are answered."""
    return question.n_tokens, question.example.id


def baseline_routes(name: str, routes: Sequence[Route], seed: str) -> list[Route]:
    """The routes of a blind baseline: "random" has the same passes and loops at random blocks, "shuffled" routes of other prompts."""
    rng = np.random.default_rng(number_of(f"{name}:{seed}"))
    if name == "random":
        return [scattered(route, rng) for route in routes]
    # A random cyclic order deals every route to another prompt.
    order = rng.permutation(len(routes))
    dealt: list[Route] = list(routes)
    for giver, taker in zip(order, np.roll(order, 1), strict=True):
        dealt[int(taker)] = routes[int(giver)]
    return dealt


def scattered(route: Route, rng: np.random.Generator) -> Route:
    """A route with the same passes in place and loops of the same lengths and strengths, all at random blocks.

    `InputError` for a path whose loops find no other place in `MAX_THROWS` throws.
    """
    if not route.loops:
        actions = rng.permutation([int(action) for action in route.in_place_actions]).tolist()
        return Route.of_visits([in_place(block, action) for block, action in enumerate(actions)])
    for _ in range(MAX_THROWS):  # loops that fall upon one another are thrown again
        found = _thrown(route, rng)
        if found is not None and _kinds(found) == _kinds(route):
            return found
    raise InputError(f"the loops of route {route} find no random place among {len(route)} blocks: evaluate it without the random baseline")


def _kinds(route: Route) -> tuple[list[int], list[tuple[int, float]]]:
    """What a blind baseline keeps of a route: passes in place, and its loops, wherever they are."""
    return sorted(route.in_place_actions), sorted((len(span.blocks), span.strength) for _, span in route.loops)


def _thrown(route: Route, rng: np.random.Generator) -> Route | None:
    """One throw, the loops first, then passes in place, none of them a skip in a loop of blocks that run; None where that cannot be."""
    loops, running = [], set[int]()
    for at, span in route.loops:
        end = int(rng.integers(len(span.blocks) - 1, len(route) - (at - span.last)))
        loops.append((end + at - span.last, Span(end - len(span.blocks) + 1, end, span.strength)))
        if all(route.in_place_actions[block] for block in span.blocks):
            running.update(loops[-1][1].blocks)
    passes = rng.permutation([int(action) for action in route.in_place_actions if action]).tolist()
    if len(running) > len(passes):
        return None
    inside = rng.permutation(sorted(running)).tolist()
    outside = rng.permutation([block for block in range(len(route)) if block not in running]).tolist()
    actions = dict.fromkeys(range(len(route)), 0) | dict(zip([*inside, *outside], passes, strict=False))
    visits = [list(in_place(block, actions[block])) for block in range(len(route))]
    for at, span in loops:
        visits[at].append(span)
    try:
        return Route.of_visits([tuple(visit) for visit in visits])
    except InputError:  # a block too often
        return None


def answer(scorer: Scorer, questions: Sequence[Any], policy: RouteSource | None, request: Request, known: Known | None = None) -> Verdicts:
    """Verdicts of one method on one task, read back when the same evaluation has been done before.

    What is `known` is looked up, and what is answered becomes known; no seconds are stated then.
    """
    if (saved := request.done()) is not None:
        if known is not None:
            known.update(known_of(saved))
            if key := decision_key(policy):
                known.decided.update({(key, id): Route.parse(route) for id, route in zip(saved.ids, saved.routes, strict=True)})
        return saved
    verdicts, routes = [], []
    started = time.perf_counter()
    with Progress(request.label, len(questions)) as progress:
        for start in range(0, len(questions), CHUNK):
            chunk = questions[start : start + CHUNK]
            chunk_policy = None if policy is None else policy.select(range(start, start + len(chunk)))
            some_verdicts, some_routes = scorer.score_policy(chunk, chunk_policy, known)
            verdicts += some_verdicts
            routes += some_routes
            progress.advance(len(chunk))
    ids, seconds = [question.example.id for question in questions], time.perf_counter() - started if known is None else math.nan
    correct, acc, acc_norm, margins = (
        [getattr(verdict, name) for verdict in verdicts] for name in ("correct", "acc", "acc_norm", "margin")
    )
    passes = [route.n_passes for route in routes]
    f1 = [verdict.f1 for verdict in verdicts] if request.task.kind == "passage" else []
    read: dict[str, Any] = {"n_new": [verdict.n_new for verdict in verdicts]} if any(verdict.n_new for verdict in verdicts) else {}
    if all(verdict.strict is not None for verdict in verdicts):
        fields = {"strict": "strict", "lenient": "lenient", "forms": "form"}
        read |= {name: [getattr(verdict, field) for verdict in verdicts] for name, field in fields.items()}
    found = Verdicts(ids, correct, acc, acc_norm, margins, list(map(str, routes)), passes, seconds, request.metadata, f1, **read)
    write_verdicts(request.path, found)
    return found


def known_of(verdicts: Verdicts) -> dict[tuple[str, str], Verdict]:
    """Verdicts by question and route."""
    f1 = verdicts.f1 or [math.nan] * len(verdicts.ids)
    columns = zip(verdicts.correct, verdicts.margins, verdicts.acc, verdicts.acc_norm, f1, strict=True)
    found = [Verdict(correct, margin, acc, acc_norm, f1=score) for correct, margin, acc, acc_norm, score in columns]
    return dict(zip(zip(verdicts.ids, verdicts.routes, strict=True), found, strict=True))


class Answerer:
    """One worker: a model, and the scorer of the task it answered last."""

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


def answer_on_workers(
    place: Workplace, routed: RoutedModel, config: EvaluateConfig, resources: Resources, requests: Sequence[Request]
) -> None:
    """Have workers answer; all verdicts are written when this returns."""
    # Ray's actors start in another folder.
    requests = [replace(request, path=request.path.resolve(), saved=request.saved and request.saved.resolve()) for request in requests]
    arguments = (Base.of(routed, resources), config, max(1, resources.threads))
    todo = [(index, request) for index, request in enumerate(requests) if request.done() is None]
    with Progress("methods by tasks", len(requests)) as progress:
        progress.advance(len(requests) - len(todo))
        work = Work(
            lambda index: requests[index].done() is not None,
            lambda _, request: request.label,
            progress.print,
            hear=lambda _: progress.tell(""),
        )
        for _ in work_on(place, Answerer, arguments, todo, resources, work):
            progress.advance(1)
