"""What the scorers of all rewards share: questions are taken in, and policies asked for their routes."""

import dataclasses
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from drllm.core.digest import json_digest
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.runs.store import Verdict
from drllm.scoring.prefixes import Node, PrefixRunner, padded_width
from drllm.tasks import Example, Task


@dataclass(frozen=True)
class Question:
    """One example, tokenised: `PackedPrompt`s, one of all choices or one a choice, or the tokens of a prompt whose answer comes later."""

    task: Task
    example: Example
    sequences: tuple[Any, ...]
    context_ids: tuple[int, ...]  # what a policy may read
    n_chars: tuple[int, ...] = ()  # of what is scored, a choice's text or its letter: lm-eval's acc_norm denominator
    n_shared: int = 0  # tokens with which all prompts of the task begin

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def content(self) -> tuple[Any, ...]:
        choices = [token for sequence in self.sequences for token in getattr(sequence, "targets", ())]  # packed or not
        # Letters were once normalised by their choices' texts: verdicts of then are others.
        letters = (self.n_chars,) if self.task.lists_options and self.n_chars else ()
        example = tuple(getattr(self.example, item.name) for item in dataclasses.fields(self.example) if item.compare)
        return example, self.context_ids, choices, *letters

    @cached_property
    def digest(self) -> str:
        """16 hex digits over its content: with another text or tokenizer, the same id is another question."""
        return json_digest(self.content)


class ModelScorer(ABC):
    """Scores questions of one model under routes; what paths of a question share is kept between calls, up to `cache_bytes`.

    `load` questions, then `score` pairs of (index, route). Or, without waiting: `open`, `submit`, `collect` what is finished, `close`.
    """

    packed = False  # whether the choices of a question share a sequence
    at_once: Any  # evaluations to have submitted at most
    _filler: Any

    def __init__(self, routed: RoutedModel, max_step_tokens: int, cache_bytes: int, keep_keys_values: bool = False):
        if routed.tokenizer is None:
            raise InputError("scoring questions needs a tokenizer: wrap the model with one")
        self.routed, self.max_step_tokens = routed, max_step_tokens
        self.runner = PrefixRunner(routed, max_step_tokens, cache_bytes, keep_keys_values)
        self.opened: dict[int, tuple[Question, list[Node]]] = {}  # with the root of each of its sequences' tries
        self._n_opened = 0

    def load(self, questions: Sequence[Question]) -> None:
        """Make `questions` the group whose indices `score` takes, dropping the one before."""
        self.close(list(self.opened))
        self._n_opened = 0
        self.open(questions)

    @torch.no_grad()
    def open(self, questions: Sequence[Question]) -> list[int]:
        """Take questions in: a handle each."""
        handles = list(range(self._n_opened, self._n_opened + len(questions)))
        self._n_opened += len(questions)
        roots = iter(self._roots([(question, sequence) for question in questions for sequence in question.sequences]))
        for handle, question in zip(handles, questions, strict=True):
            self.opened[handle] = (question, [next(roots) for _ in question.sequences])
        return handles

    def _roots(self, asked: Sequence[tuple[Question, Any]]) -> list[Node]:
        return self.runner.open_all([sequence for _, sequence in asked], self._inputs, self._filler, self._width)

    def _width(self, sequence: Any) -> int:
        return padded_width(sequence)

    @abstractmethod
    def _inputs(self, sequences: list[Any], width: int) -> dict[str, Tensor]:
        """What the model's forward takes of sequences padded to one width."""

    def close(self, handles: Iterable[int]) -> None:
        """Forget questions, none of which may have an evaluation under way."""
        for handle in handles:
            self.runner.close(self.opened.pop(handle)[1])

    @abstractmethod
    def submit(self, handle: int, route: Route) -> None:
        """Ask for a verdict; `collect` brings it."""

    @abstractmethod
    def collect(self) -> list[tuple[int, Route, Verdict]]:
        """(handle, route, verdict) of what is finished, one evaluation at least; empty when nothing is under way."""

    def score(self, pairs: Sequence[tuple[int, Route]]) -> list[Verdict]:
        """The verdict of each (handle, route), in order; each distinct pair is evaluated once."""
        # Routes of one question together share the most.
        waiting = deque(sorted(dict.fromkeys(pairs), key=lambda pair: (pair[0], str(pair[1]))))
        verdicts: dict[tuple[int, Route], Verdict] = {}
        n_submitted = 0
        while len(verdicts) < n_submitted or waiting:
            while waiting and n_submitted - len(verdicts) < self.at_once:
                self.submit(*waiting.popleft())
                n_submitted += 1
            verdicts |= {(handle, route): verdict for handle, route, verdict in self.collect()}
        return [verdicts[pair] for pair in pairs]

    def score_all(self, questions: Sequence[Question], routes: Sequence[Route]) -> list[list[Verdict]]:
        """Each question's verdicts on all of the routes."""
        handles = self.open(questions)
        found = self.score([(handle, route) for handle in handles for route in routes])
        self.close(handles)
        return [found[start : start + len(routes)] for start in range(0, len(found), len(routes))]
