"""One question answered along several policies, for a reader to see what a policy does to the text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import SearchConfig
from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.retrofitting.dry_run import loaded_tasks
from drllm.scoring.loglik import LoglikScorer
from drllm.scoring.scorer import askable, scorer_of
from drllm.tasks import Example, Task

ANSWER_TOKENS = 48


def one_answer(
    routed: RoutedModel, tasks: Sequence[str], data: str | Path | None, config: SearchConfig, split: str, policies: Mapping[str, Any]
) -> dict[str, Any]:
    """The first question of a split of the first task that the model can be asked, from the very prompt that the search showed the model.

    Returns:
        prompt, and by the names of `policies` (policies or routes): text, route, n_passes. Where choices are judged by their
        log-likelihood also `choices`, `right`, the right one, and by name the choice that is taken, as its text.
    """
    loaded = loaded_tasks(tasks, data)[tasks[0]]
    scorer = scorer_of(routed, loaded.task, config)
    question = next(found for example in loaded.select(split) for found in askable(scorer, loaded.task, [example])[0])
    example, prompt_ids = question.example, question.context_ids
    input_ids = torch.tensor([prompt_ids], dtype=torch.long, device=routed.device)
    given: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "min_new_tokens": 1, "do_sample": False}
    found: dict[str, Any] = {"prompt": routed.tokenizer.decode(prompt_ids, skip_special_tokens=True)}
    if isinstance(scorer, LoglikScorer):
        found["choices"], found["right"] = list(example.choices), example.choices[int(example.answer)]
    for name, policy in policies.items():
        [output] = routed.generate(input_ids=input_ids, policy=policy, **given)
        found[name] = {"text": output.text, "route": str(output.route), "n_passes": output.route.n_passes}
        if isinstance(scorer, LoglikScorer):
            found[name]["choice"] = _taken(scorer, loaded.task, example, output.route)
    return found


def _taken(scorer: LoglikScorer, task: Task, example: Example, route: Route) -> str:
    """The text of the choice that is taken along a route: the one that would be right if it were the answer."""
    questions = [scorer.question(task, replace(example, answer=place)) for place in range(len(example.choices))]
    verdicts = [verdict for [verdict] in scorer.score_all(questions, [route])]
    return next((text for text, verdict in zip(example.choices, verdicts, strict=True) if verdict.correct), "")
