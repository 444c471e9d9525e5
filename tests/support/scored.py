"""What a policy decides and answers, without a run folder: for tests of scorers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drllm.core.route import Route
from drllm.runs.store import Verdict
from drllm.scoring.route_prediction import decide_routes


def score_policy(scorer: Any, questions: Sequence[Any], policy: Any) -> tuple[list[Verdict], list[Route]]:
    """Verdicts and routes when a policy decides from each question's context alone; None is the base model."""
    prompts = [question.context_ids for question in questions]
    [routes] = decide_routes(scorer.routed, [policy], prompts, scorer.max_step_tokens)
    scorer.load(questions)
    return scorer.score(list(enumerate(routes))), routes
