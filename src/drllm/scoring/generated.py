"""Rewards of generated answers: the paper's letter for multiple choice, a boxed answer for mathematics; mixed routes in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drllm.errors import InputError
from drllm.model.policy import Policy, RoutePolicy, RowRoutes
from drllm.model.prompts import CHAT, RAW, check_context, encode_prompts, left_pad
from drllm.model.routed import RoutedModel
from drllm.routes import Route
from drllm.scoring.rows import split_steps
from drllm.scoring.verdict import Verdict
from drllm.tasks import Example, Task

DEFAULT_NEW_TOKENS = {"letter": 10, "boxed": 15}  # the authors' code; ample for a letter, short for a derivation


@dataclass(frozen=True)
class GeneratedQuestion:
    """One example and its prompt's token ids."""

    task: Task
    example: Example
    context_ids: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.context_ids)


class GeneratedScorer:
    """Generates each answer under its route and grades the text. The same interface as `LoglikScorer`."""

    def __init__(self, routed: RoutedModel, reward: str, max_step_tokens: int = 1024, max_new_tokens: int = 0):
        if routed.tokenizer is None:
            raise InputError("scoring questions needs a tokenizer: wrap the model with one")
        self.routed = routed
        self.reward = reward
        self.max_step_tokens = max_step_tokens
        self.max_new_tokens = max_new_tokens or DEFAULT_NEW_TOKENS[reward]
        self.prompt_format = CHAT if routed.tokenizer.chat_template else RAW
        self.packed = False
        self._questions: list[GeneratedQuestion] = []

    def question(self, task: Task, example: Example) -> GeneratedQuestion:
        """Tokenise an example's prompt: chat messages, or their text for a base model without a chat template."""
        messages = task.letter_messages(example) if self.reward == "letter" else task.math_messages(example)
        prompt = messages if self.prompt_format == CHAT else "\n\n".join(message["content"] for message in messages) + "\n\n"
        (ids,), _ = encode_prompts(self.routed.tokenizer, [prompt])
        check_context(len(ids), self.max_new_tokens, self.routed.config)
        return GeneratedQuestion(task, example, tuple(ids))

    def load(self, questions: Sequence[GeneratedQuestion]) -> None:
        """Make `questions` the group that `score` refers to."""
        self._questions = list(questions)

    def score(self, pairs: Sequence[tuple[int, Route]]) -> list[Verdict]:
        """The verdict of each (question index, route)."""
        return self._score([self._questions[index] for index, _ in pairs], RowRoutes([route for _, route in pairs]))[0]

    def score_policy(self, questions: Sequence[GeneratedQuestion], policy: Policy | None) -> tuple[list[Verdict], list[Route]]:
        """Verdicts and routes when a policy decides from each prompt; None is the base model."""
        return self._score(questions, policy or RoutePolicy(Route.full(self.routed.n_layers)))

    def _score(self, questions: Sequence[GeneratedQuestion], policy: Policy) -> tuple[list[Verdict], list[Route]]:
        verdicts, routes = [], []
        for step in split_steps([question.n_tokens + self.max_new_tokens for question in questions], self.max_step_tokens):
            ids, mask = left_pad([questions[index].context_ids for index in step], self.routed.pad_id, self.routed.device)
            rows = policy.rows(step) if isinstance(policy, RowRoutes) else policy
            outputs = self.routed.generate(
                input_ids=ids, attention_mask=mask, policy=rows, max_new_tokens=self.max_new_tokens, do_sample=False
            )
            for index, output in zip(step, outputs, strict=True):
                question = questions[index]
                correct = question.task.grade(question.example, output.text or "", self.reward)
                verdicts.append(Verdict(correct, text=output.text))
                routes.append(output.route)
        return verdicts, routes
