"""The scorer of a task's reward."""

import re
from collections import Counter
from collections.abc import Iterable

from drllm.core.config import EvaluateConfig, ScanConfig, SearchConfig
from drllm.core.digest import json_digest
from drllm.core.errors import InputError
from drllm.model.routed import RoutedModel
from drllm.scoring.base import Question
from drllm.scoring.generated import GeneratedScorer
from drllm.scoring.loglik import LoglikScorer
from drllm.tasks import Example, Task

Scorer = LoglikScorer | GeneratedScorer


def scorer_of(routed: RoutedModel, task: Task, config: EvaluateConfig | SearchConfig | ScanConfig, cache_bytes: int = 2**30) -> Scorer:
    """The scorer of a task's reward, `auto` that of its kind; it keeps up to `cache_bytes` of states for paths to come."""
    name = task.reward_named(config.reward)
    if not task.is_judged_by(name):
        raise InputError(f"task {task.name!r} is a {task.kind} task, which reward {name!r} cannot judge: use --reward auto")
    if name == "loglik":
        return LoglikScorer(routed, config.max_step_tokens, config.metric, cache_bytes=cache_bytes)
    asked = config.asked, config.reader, isinstance(config, EvaluateConfig)  # a comparison counts the layers of whole answers
    return GeneratedScorer(routed, name, config.max_step_tokens, config.max_new_tokens, cache_bytes, *asked)


def asked_how(scorer: Scorer) -> tuple[str, str]:
    """Wording and reader of letters and boxed answers, by name; both empty for other rewards."""
    if isinstance(scorer, LoglikScorer) or scorer.wording is None:
        return "", ""
    return scorer.wording.name, scorer.reader


def askable(scorer: Scorer, task: Task, examples: Iterable[Example]) -> tuple[list[Question], dict[str, str]]:
    """The examples that can be asked, tokenised, in their order; and id -> why not of others, such as one beyond the model's context."""
    questions, reasons = [], {}
    for example in examples:
        try:
            questions.append(scorer.question(task, example))
        except InputError as error:
            reasons[example.id] = _without_names(str(error), example.id)
    return questions, reasons


def said_left_out(name: str, reasons: Iterable[str]) -> list[str]:
    """A line a reason why questions of a task are not asked."""
    return [f"{name}: {n} question{'' if n == 1 else 's'} left out: {reason}" for reason, n in sorted(Counter(reasons).items())]


def _without_names(message: str, example_id: str) -> str:
    """A refusal without the question's own name and length, so that equal reasons count together."""
    message = message.replace(repr(example_id), "").replace(f"question {example_id}", "a question").replace("  ", " ").split(":", 1)[0]
    return re.sub(r"a prompt of \d+ tokens plus \d+ new ones exceeds", "a prompt that, with its answer, exceeds", message)


def questions_digest(questions: Iterable[Question]) -> str:
    """16 hex digits over the questions' content and tokens: with another text or tokenizer the same ids are other questions."""
    return json_digest([question.content for question in questions])
