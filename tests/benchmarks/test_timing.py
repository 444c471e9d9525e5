"""What benchmarks of speed compare, and what they say of it: routes, prompts, sizes of steps, and intervals of runs, by hand."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import families
import generate
import timed_prompts
import timed_routes
import timing
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.tasks import load_task

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("text", ["0-3,2-5", "110211", "0-4,1-4,5"])
def test_an_exported_route_has_the_base_s_own_weights_and_says_the_same(tmp_path, text: str):
    families.build("llama", num_hidden_layers=6, vocab_size=300).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    routed = RoutedModel.wrap(str(tmp_path / "base"), dtype="float32")
    route = Route.parse(text, 6)
    exported = generate.exported_of(routed, route)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.allclose(exported(ids).logits, routed(ids, routes=route).logits, atol=1e-5)
    theirs, ours = exported.get_decoder().layers, routed.model.get_decoder().layers
    assert len(theirs) == route.n_passes
    for place, block in enumerate(route.path):
        assert theirs[place].mlp.up_proj.weight.data_ptr() == ours[block].mlp.up_proj.weight.data_ptr()


@pytest.mark.parametrize("n_layers", [28, 30])
def test_the_timed_routes_of_a_model(n_layers: int):
    looped = Route.parse(timed_routes.looped(n_layers), n_layers)
    assert looped.n_passes == n_layers + 4
    assert Route.parse(timed_routes.in_place(n_layers)).actions == looped.actions
    assert Route.parse(timed_routes.common(n_layers)).n_passes == 24
    nested = [Route.parse(text) for text in timed_routes.nested(n_layers) + timed_routes.deeper(n_layers)]
    assert [n_layers - route.n_passes for route in nested] == [0, 3, 6, 9, 6, 9, 12, 15]
    assert all(len(route) == n_layers for route in nested)
    assert set(generate.EXPORTED) < set(generate.ARMS)


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


def test_an_interval_by_order_statistics():
    """Of six values their range, 1 - 2 / 64 sure; of twenty the sixth and the fifteenth; of fewer there is none."""
    for values in ([], [1.0], [1.0] * 5):
        with pytest.raises(ValueError, match=f"{len(values)} values have no 95 % interval"):
            timing.median_interval(values)
    assert timing.median_interval([3, 1, 2, 6, 5, 4]) == [3.5, 1, 6]
    assert timing.median_interval(list(range(1, 21))) == [10.5, 6, 15]


@pytest.mark.slow
def test_servers_of_the_http_benchmark_start_as_users_start_them():
    """Importing it sets no variable: each would reach the servers, as one thread for an engine that users give all cores."""
    code = "import os; before = dict(os.environ); import serve_http; assert dict(os.environ) == before, set(os.environ) ^ set(before)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=BENCHMARKS)
