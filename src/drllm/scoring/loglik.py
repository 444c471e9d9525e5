"""Log-likelihood of each choice under a route: many questions a step, prefixes of the base path reused.

An edit at block i leaves the states entering blocks 0..i as the base path made them. So the states entering every block are kept
from the base pass, and a route's row enters at its first edit; rows that enter at different blocks share one step.

Shapes: B rows, T tokens, D hidden size, V vocabulary, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drllm.errors import InputError
from drllm.model.cache import RoutedCache, new_slots
from drllm.model.policy import Policy, RoutePolicy, RowRoutes
from drllm.model.prompts import check_context
from drllm.model.routed import RoutedModel
from drllm.routes import Route
from drllm.scoring.rows import Row, encode_choice, make_batch, pack_choices, separate_choices, split_steps
from drllm.scoring.verdict import Verdict, loglik_verdict
from drllm.tasks import Example, Task


@dataclass(frozen=True)
class Question:
    """One example, tokenised: a packed row, or one row a choice."""

    task: Task
    example: Example
    rows: tuple[Row, ...]
    context_ids: tuple[int, ...]
    n_chars: tuple[int, ...]  # characters of each choice text, lm-eval's acc_norm denominator

    @property
    def n_tokens(self) -> int:
        """Tokens of the question's rows together."""
        return sum(len(row) for row in self.rows)


class _Recording(RoutedCache):
    """Keeps the states entering each block."""

    def enter(self, block: int, x_BTD: Tensor) -> Tensor:
        self.states.append(x_BTD)
        return super().enter(block, x_BTD)

    states: list[Tensor]


class _Resuming(RoutedCache):
    """Rows that skip the blocks before their first edit and take up the base path's states there."""

    starts: dict[int, tuple[Tensor, Tensor]]  # block -> (rows, states entering it)

    def enter(self, block: int, x_BTD: Tensor) -> Tensor:
        if block in self.starts:
            rows, states = self.starts[block]
            x_BTD = x_BTD.index_copy(0, rows, states.to(x_BTD.device))
        return super().enter(block, x_BTD)


class LoglikScorer:
    """Scores questions of one model; `load` a group, then `score` pairs of (question index, route).

    `packed` says whether the choices of a question share a row; it is settled once, by comparing both ways on a small example.
    """

    def __init__(self, routed: RoutedModel, max_step_tokens: int = 1024, metric: str = "acc_norm", packed: bool | None = None):
        if routed.tokenizer is None:
            raise InputError("scoring questions needs a tokenizer: wrap the model with one")
        self.routed = routed
        self.max_step_tokens = max_step_tokens
        self.metric = metric
        # As in lm-evaluation-harness: no specials, but for Gemma, which is lost without its first token.
        self.add_bos = "gemma" in routed.config.model_type
        self.packed = self._can_pack() if packed is None else packed
        self._questions: list[Question] = []
        self._states: list[Tensor] = []  # a block: (rows of the group, T, D)

    prompt_format = "raw"

    def question(self, task: Task, example: Example) -> Question:
        """Tokenise an example; `InputError` when it does not fit the context."""
        context, continuations = task.loglik_prompt(example)
        pairs = [encode_choice(self.routed.tokenizer, context, text, self.add_bos) for text in continuations]
        if any(not head or not tail for head, tail in pairs):
            raise InputError(f"question {example.id!r} of {task.name} has an empty prompt or choice: drop it from the data")
        rows = (pack_choices(pairs),) if self.packed else tuple(separate_choices(pairs))
        check_context(max(len(head) + len(tail) for head, tail in pairs), 0, self.routed.config)
        return Question(task, example, rows, tuple(pairs[0][0]), tuple(len(choice) for choice in example.choices))

    def load(self, questions: Sequence[Question]) -> None:
        """Make `questions` the group that `score` refers to, dropping the states of the last one."""
        self._questions = list(questions)
        self._states = []

    @torch.no_grad()
    def score(self, pairs: Sequence[tuple[int, Route]]) -> list[Verdict]:
        """The verdict of each (question index, route), the first call of a group being the base route of every question in order."""
        base = Route.full(self.routed.n_layers)
        if not self._states:
            if list(pairs) != [(index, base) for index in range(len(self._questions))]:
                raise InputError("the first routes scored of a group must be the base route of each question, in order")
            return self._score(pairs, record=True)
        return self._score(pairs, record=False)

    def score_policy(self, questions: Sequence[Question], policy: Policy | None) -> tuple[list[Verdict], list[Route]]:
        """Verdicts and routes when a policy decides from each question's context alone; None is the base model."""
        policy = policy or RoutePolicy(Route.full(self.routed.n_layers))
        entries = [(index, row) for index, question in enumerate(questions) for row in question.rows]
        sums = [[0.0] * len(question.n_chars) for question in questions]
        routes: list[Route | None] = [None] * len(questions)
        with torch.no_grad():
            for step in split_steps([len(row) for _, row in entries], self.max_step_tokens):
                chunk = [entries[index] for index in step]
                rows_policy = policy.rows([index for index, _ in chunk]) if isinstance(policy, RowRoutes) else policy
                cache, logprobs, batch = self._step([row for _, row in chunk], rows_policy, RoutedCache)
                add_up(sums, [index for index, _ in chunk], logprobs, batch)
                for (index, _), route in zip(chunk, cache.routes, strict=True):
                    routes[index] = route
        verdicts = [loglik_verdict(total, question, self.metric) for total, question in zip(sums, questions, strict=True)]
        return verdicts, [route for route in routes if route is not None]

    def _score(self, pairs: Sequence[tuple[int, Route]], record: bool) -> list[Verdict]:
        first_row = _offsets([len(question.rows) for question in self._questions])
        entries = [
            (pair, first_row[index] + offset, row, route)
            for pair, (index, route) in enumerate(pairs)
            for offset, row in enumerate(self._questions[index].rows)
        ]
        sums = [[0.0] * len(self._questions[index].n_chars) for index, _ in pairs]
        recorded: list[list[Tensor]] = []
        for step in split_steps([len(row) for _, _, row, _ in entries], self.max_step_tokens):
            chunk = [entries[index] for index in step]
            rows = [row for _, _, row, _ in chunk]
            if record:
                cache, logprobs, batch = self._step(rows, RoutePolicy(Route.full(self.routed.n_layers)), _Recording, states=[])
                recorded.append(cache.states)
            else:
                width = max(len(row) for row in rows)
                # The base route again enters at the last block, which it executes.
                firsts = [min(route.first_edit(), self.routed.n_layers - 1) for *_, route in chunk]
                resumed = [Route((*([0] * first), *route.actions[first:])) for first, (*_, route) in zip(firsts, chunk, strict=True)]
                starts: dict[int, tuple[Tensor, Tensor]] = {}
                for block in sorted(set(firsts)):
                    here = [at for at, first in enumerate(firsts) if first == block]
                    states = self._states[block][[chunk[at][1] for at in here], :width]
                    starts[block] = (torch.tensor(here, device=states.device), states)
                _, logprobs, batch = self._step(rows, RowRoutes(resumed), _Resuming, starts=starts)
            add_up(sums, [pair for pair, *_ in chunk], logprobs, batch)
        if record:
            self._states = [_stack_padded([states[block] for states in recorded]) for block in range(self.routed.n_layers)]
        return [loglik_verdict(total, self._questions[index], self.metric) for total, (index, _) in zip(sums, pairs, strict=True)]

    def _step(self, rows: Sequence[Row], policy: Policy, cache_class: type[Any], **state: Any) -> tuple[Any, Tensor, Any]:
        """One model step: (its cache, log-probabilities (N,) of the scored tokens, its batch)."""
        model = self.routed.model
        batch = make_batch(rows, self.packed, model.dtype, self.routed.device)
        cache = cache_class(self.routed.config, self.routed.n_layers, policy, batch.prompt_mask)
        for name, value in state.items():
            setattr(cache, name, value)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        with head_at(model, batch.scored):
            logits_NV = self.routed.forward(cache, **inputs).logits[0].float()
        targets = batch.targets.to(logits_NV.device)
        return cache, logits_NV.gather(1, targets[:, None])[:, 0] - logits_NV.logsumexp(1), batch

    def _can_pack(self) -> bool:
        """Whether this family gives packed choices the log-likelihoods that separate rows have.

        Asked of the model itself: families differ in whether they take explicit positions and a ready 4-D mask, and sliding windows
        cannot follow a tree. A wrong mask is off by whole nats, bf16 by tenths.
        """
        if not self.routed.takes_position_ids or any(slot.is_sliding for slot in new_slots(self.routed.config, self.routed.n_layers)):
            return False
        n_vocab = self.routed.model.get_input_embeddings().num_embeddings
        token = lambda seed: 3 + (seed * 7919) % (n_vocab - 3)  # noqa: E731
        pairs = [([token(i) for i in range(12)], [token(100 * choice + i) for i in range(6)]) for choice in range(1, 4)]
        totals = []
        with torch.no_grad():
            for self.packed, rows in ((True, [pack_choices(pairs)]), (False, separate_choices(pairs))):
                sums = [[0.0] * len(pairs)]
                try:
                    _, logprobs, batch = self._step(rows, RoutePolicy(Route.full(self.routed.n_layers)), RoutedCache)
                except (RuntimeError, TypeError, ValueError, IndexError):
                    if self.packed:
                        return False  # the family's forward does not take the 4-D mask
                    raise
                add_up(sums, [0] * len(rows), logprobs, batch)
                totals.append(sums[0])
        return all(abs(a - b) <= 0.3 + 0.02 * abs(b) for a, b in zip(*totals, strict=True))


@contextmanager
def head_at(model: Any, flat_indices: Tensor) -> Iterator[None]:
    """While active, the output head sees only the given tokens of the flattened batch, as one row: logits (1, N, V).

    The head is a fifth of a small model's cost, and only scored tokens need it; whatever a family does after it (caps, scales) still
    applies.
    """

    def gather(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_BTD = args[0]
        return (x_BTD.reshape(1, -1, x_BTD.shape[-1])[:, flat_indices.to(x_BTD.device)], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def add_up(sums: list[list[float]], owners: Sequence[int], logprobs_N: Tensor, batch: Any) -> None:
    """Add each scored token's log-probability to its owner's choice, in float64 and in a fixed order."""
    for value, row, choice in zip(logprobs_N.double().tolist(), batch.row_of.tolist(), batch.choice_of.tolist(), strict=True):
        sums[owners[row]][choice] += value


def _offsets(counts: Sequence[int]) -> list[int]:
    offsets = [0]
    for count in counts[:-1]:
        offsets.append(offsets[-1] + count)
    return offsets


def _stack_padded(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate (b, t, D) tensors of unequal t along the rows."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])
