"""KL and answers prompt by prompt: those of plain forwards and of `generate`, and what is in the folder is not computed again."""

from __future__ import annotations

import pytest
import torch

import runs
from drllm import Route, RoutedModel
from drllm.healing import apart
from drllm.healing.apart import answer_kls, greedy_answers
from drllm.healing.teacher import Teacher, divergence
from healed import random_adapter

NEW = 4


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    return runs.model()


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    return [tuple(range(3 + n, 12 + 2 * n)) for n in range(7)]


@pytest.fixture(scope="module")
def routes(routed) -> list[Route]:
    adapters = [random_adapter(routed, Route.parse(text), seed=seed) for seed, text in enumerate(("1101", "1001"))]
    for adapter in adapters:
        routed.adopt(adapter)
    return [Route.parse("1101"), *(adapter.healed for adapter in adapters)]


def test_kl_is_the_mean_over_the_answer_of_a_plain_forward(routed, prompts, routes, tmp_path):
    texts = Teacher(routed, tmp_path / "teacher", NEW, 200).texts(prompts, "teaching", "base")
    found = answer_kls(routed, texts, prompts, routes, tmp_path / "kl", 200)
    assert found.shape == (7, 3)
    for row, prompt, text in zip(found, prompts, texts, strict=True):
        assert len(text.ids) == len(prompt) + NEW - 1
        for kl, route in zip(row, routes, strict=True):
            logits = routed(torch.tensor([text.ids]), routes=route).logits[0, len(prompt) - 1 :].detach()
            kept = (part[len(prompt) - 1 :] for part in (text.top, text.logs, text.rest))
            assert kl == pytest.approx(float(divergence(logits.float(), *kept).mean()), abs=1e-5)


def test_answers_are_those_of_generate(routed, prompts, routes, tmp_path):
    wanted = [routes[:1], *[[*routes, Route.full(4)]] * 6]
    found = greedy_answers(routed, prompts, wanted, NEW, tmp_path)
    assert [set(of) for of in found] == [set(of) for of in wanted]
    for prompt, of in zip(prompts, found, strict=True):
        for route, ids in of.items():
            [alone] = routed.generate(input_ids=torch.tensor([prompt]), policy=route, max_new_tokens=NEW, do_sample=False)
            assert list(ids) == alone.token_ids
    assert len({of[Route.full(4)] != of[routes[-1]] for of in found[1:]}) >= 1


def test_what_was_computed_is_read(routed, prompts, routes, tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "CHUNK", 3)
    texts = Teacher(routed, tmp_path / "teacher", NEW, 200).texts(prompts, "teaching", "base")
    first = answer_kls(routed, texts, prompts, routes, tmp_path, 200)
    answers = greedy_answers(routed, prompts, [routes] * 7, NEW, tmp_path)
    assert len(list(tmp_path.glob("kl-*.json"))) == len(list(tmp_path.glob("answers-*.json"))) == 3
    (tmp_path / "kl-00001.json").unlink()
    (tmp_path / "answers-00002.json").unlink()
    asked: list[int] = []
    meter, answered = apart.RouteMeter, apart._answered
    monkeypatch.setattr(apart, "RouteMeter", lambda routed, of, step: (asked.append(len(of)), meter(routed, of, step))[1])
    monkeypatch.setattr(apart, "_answered", lambda routed, chunk, *rest: (asked.append(len(chunk)), answered(routed, chunk, *rest))[1])
    assert (answer_kls(routed, texts, prompts, routes, tmp_path, 200) == first).all()
    assert greedy_answers(routed, prompts, [routes] * 7, NEW, tmp_path) == answers
    assert asked == [3, 1]
    assert answer_kls(routed, texts, prompts, routes[:1], tmp_path, 200).shape == (7, 1), "other routes are not those of the files"
