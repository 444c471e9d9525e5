"""The prompts of the benchmarks of speed: plain text, or as a policy learned them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from drllm.tasks import load_task

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import timed_prompts


def asked(routed: Any, data: Path, *options: str) -> list[str]:
    parser = argparse.ArgumentParser()
    timed_prompts.add_options(parser)
    given = parser.parse_args(["--data", str(data), *options])
    return [routed.tokenizer.decode(ids) for ids in timed_prompts.timed_prompts(routed, given)]


def test_plain_text_is_the_question_alone(tiny, data: Path):
    questions = [example.question for example in load_task("arc_easy", str(data)).select("fit")]
    assert asked(tiny, data) == [f"{question}\nAnswer:" for question in questions]


def test_a_reward_s_prompts_are_those_that_a_policy_learns(tiny, data: Path):
    letters = asked(tiny, data, "--reward", "generated")
    assert len(letters) == len(asked(tiny, data))
    assert all("A. " in text and "B. " in text for text in letters)


def test_each_task_may_have_its_own_reward(tiny, data: Path):
    tasks = "arc_easy,arc_challenge"
    mixed = asked(tiny, data, "--tasks", tasks, "--reward", "letter,loglik")
    assert mixed[::2] == asked(tiny, data, "--reward", "letter")
    assert mixed[1::2] == asked(tiny, data, "--tasks", "arc_challenge", "--reward", "loglik")
    with pytest.raises(SystemExit, match="--reward has 3 rewards for 2 tasks, expected one, or one for each task"):
        asked(tiny, data, "--tasks", tasks, "--reward", "letter,loglik,letter")
    with pytest.raises(SystemExit, match="--reward 'letters' is no reward: choose from auto, generated, loglik, letter"):
        asked(tiny, data, "--reward", "letters")


def test_tasks_take_turns(tiny, data: Path):
    easy, hard = asked(tiny, data), asked(tiny, data, "--tasks", "arc_challenge")
    both = asked(tiny, data, "--tasks", "arc_easy,arc_challenge")
    assert both[:4] == [easy[0], hard[0], easy[1], hard[1]]
    assert sorted(both) == sorted(easy + hard)


def test_prompts_may_begin_alike(tiny, data: Path):
    """As with a long instruction: what servers keep of one prompt serves the others."""
    plain, shared = asked(tiny, data), asked(tiny, data, "--shared", "40")
    begins = {text[: len(text) - len(before)] for text, before in zip(shared, plain, strict=True)}
    assert len(begins) == 1
    assert begins.pop() == tiny.tokenizer.decode([i for text in reversed(plain) for i in tiny.tokenizer(text)["input_ids"]][:40])
    with pytest.raises(SystemExit, match=r"--shared is 1000000, but the questions have \d+ tokens together"):
        asked(tiny, data, "--shared", "1000000")
    with pytest.raises(SystemExit, match="--shared is -1, expected 0 or more"):
        asked(tiny, data, "--shared", "-1")
