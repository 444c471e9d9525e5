"""Where the routes of a method differ: routes that resemble each other in one group, each with its prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drllm.errors import DrllmError
from drllm.reporting.load import Run
from drllm.reporting.parts import Prompt, RouteBrowser, RouteGroup
from drllm.routes import Route
from drllm.tasks import load_task

GROUPS = 8
PROMPTS = 40  # shown of a group, so that the page stays small; the counts are of all
BASE = "base"


@dataclass(frozen=True)
class Question:
    """The text of a prompt and of its right answer."""

    text: str
    answer: str


def read_questions(run: Run) -> tuple[dict[tuple[str, str], Question], list[str]]:
    """Texts by (task, id), from where the run's searches read them; and why those of a task are missing, one line each."""
    found: dict[tuple[str, str], Question] = {}
    missing = []
    names = {task for _, _, task in run.questions}
    for task in sorted(names):
        plan = run.plans.get(task, {})
        try:
            loaded = load_task(task, plan.get("data"))
        except DrllmError as error:
            missing.append(f"Texts of {task} are not shown, since its questions are not at hand: {error}")
            continue
        for examples in loaded.examples.values():
            for example in examples:
                answer = example.choices[example.answer] if isinstance(example.answer, int) else example.answer
                text = f"{example.context} {example.question}".strip()
                found[task, example.id] = Question(text, str(answer))
    return found, missing


def browse(run: Run, split: str, method: str, questions: Mapping[tuple[str, str], Question]) -> RouteBrowser | None:
    """The groups of one method on one split, the largest first; None where it decides no routes or only one."""
    prompts = list(_prompts(run, split, method, questions))
    counts = Counter(prompt.route for prompt in prompts)
    if len(counts) < 2:
        return None
    group_of = cluster(list(counts))
    groups = [_group([prompt for prompt in prompts if group_of[prompt.route] == group]) for group in sorted(set(group_of.values()))]
    return RouteBrowser(method, split, tuple(sorted(groups, key=lambda group: -group.n_prompts)))


def cluster(routes: Sequence[str], n_groups: int = GROUPS) -> dict[str, int]:
    """The group of each route: average linkage on the number of blocks that two routes treat differently.

    The base's route is a group of its own: that a prompt was left alone is not a shade of having been changed.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    changed = sorted(route for route in routes if not Route.parse(route).is_full)
    groups = {route: 0 for route in routes if Route.parse(route).is_full}
    if len(changed) <= n_groups:
        return groups | {route: place for place, route in enumerate(changed, 1)}
    actions = np.array([[int(action) for action in Route.parse(route)] for route in changed])
    labels = fcluster(linkage(pdist(actions, "hamming"), "average"), n_groups, "maxclust")
    return groups | {route: int(label) for route, label in zip(changed, labels, strict=True)}


def _prompts(run: Run, split: str, method: str, questions: Mapping[tuple[str, str], Question]) -> Iterable[Prompt]:
    for (where, name, task), rows in sorted(run.questions.items()):
        if (where, name) != (split, method):
            continue
        base = {row["id"]: row["correct"] for row in run.questions.get((split, BASE, task), [])}
        for row in rows:
            if row.get("route"):
                question = questions.get((task, row["id"]), Question("", ""))
                right: Any = row["correct"]
                yield Prompt(row["id"], task, question.text, question.answer, bool(base.get(row["id"], right)), bool(right), row["route"])


def _group(prompts: Sequence[Prompt]) -> RouteGroup:
    routes = Counter(prompt.route for prompt in prompts)
    by_task = Counter(prompt.task for prompt in prompts)
    changed = [prompt for prompt in prompts if prompt.right != prompt.base_right]
    # Changed verdicts first: they are what a reader looks for.
    shown = sorted(prompts, key=lambda prompt: (prompt.right == prompt.base_right, not prompt.right, prompt.task, prompt.id))[:PROMPTS]
    return RouteGroup(
        route=min(routes, key=lambda route: (-routes[route], route)),
        n_routes=len(routes),
        n_prompts=len(prompts),
        by_task=tuple(sorted(by_task.items())),
        better=sum(prompt.right for prompt in changed),
        worse=sum(not prompt.right for prompt in changed),
        prompts=tuple(shown),
    )
