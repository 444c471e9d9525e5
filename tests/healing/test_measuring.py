"""Which blocks go, and KL and answers prompt by prompt: those of plain forwards and of `generate`; what is in the folder is read."""

from __future__ import annotations

import json

import pytest
import torch

import families
import runs
from byte_tokens import byte_tokenizer
from drllm import ArtifactError, Route, RoutedModel
from drllm.core.files import read_json
from drllm.core.progress import Reporter, reporting_to
from drllm.healing.measuring import TRIED, answer_kls, choose_route, distance, greedy_answers
from drllm.healing.teacher import CHUNK, Teacher, divergence
from healed import random_adapter

NEW = 4


def deep(n_layers: int) -> RoutedModel:
    return RoutedModel.wrap(families.build("llama", vocab_size=300, num_hidden_layers=n_layers), byte_tokenizer())


@pytest.fixture(scope="module")
def twelve() -> RoutedModel:
    return deep(12)


def texts_of(routed, folder):
    return Teacher(routed, folder, 0, 200).texts([tuple(range(3 + n, 20 + 2 * n)) for n in range(6)], "teaching", "fit")


@pytest.fixture(scope="module")
def texts(twelve, tmp_path_factory):
    return texts_of(twelve, tmp_path_factory.mktemp("teacher"))


def test_it_drops_the_blocks_that_cost_least(tmp_path):
    """As few as are tried at each step: those that plain forwards of every block that is left would drop, each time."""
    routed = deep(TRIED)
    texts, route = texts_of(routed, tmp_path), Route.full(TRIED)
    while route.n_passes > 5:
        ones = [route.edit(block, 0) for block in range(TRIED) if route[block]]
        route = min(ones, key=lambda one: distance(routed, texts, 200, lambda **inputs: routed(**inputs, routes=one)).kl)
    assert choose_route(routed, texts, 5, tmp_path / "choice.json", 200) == route


def test_later_steps_try_the_cheapest_alone(twelve, texts, tmp_path):
    route = choose_route(twelve, texts, 9, tmp_path / "choice.json", 200)
    assert route.n_passes == 9
    known = read_json(tmp_path / "choice.json", "")
    assert len(known) == 12 + 2 * TRIED
    assert known[str(route)] == min(kl for text, kl in known.items() if Route.parse(text).n_passes == 9)


class Interrupted(Reporter):
    """At the first chance after so many units."""

    def __init__(self, after: int):
        self.after = after

    def advance(self, job) -> None:
        if job.done >= self.after:
            raise KeyboardInterrupt


def test_what_was_measured_is_not_measured_again(twelve, texts, tmp_path):
    whole = choose_route(twelve, texts, 9, tmp_path / "whole.json", 200)
    with reporting_to(Interrupted(16)), pytest.raises(KeyboardInterrupt):
        choose_route(twelve, texts, 9, tmp_path / "ended.json", 200)
    assert len(read_json(tmp_path / "ended.json", "")) == 16
    assert choose_route(twelve, texts, 9, tmp_path / "ended.json", 200) == whole
    assert runs.folder_bytes(tmp_path)["ended.json"] == runs.folder_bytes(tmp_path)["whole.json"]
    known = read_json(tmp_path / "ended.json", "")
    other = next(route for text in known if (route := Route.parse(text)).n_passes == 9 and route != whole)
    (tmp_path / "ended.json").write_text(json.dumps(known | {str(other): -1.0}))
    assert choose_route(twelve, texts, 9, tmp_path / "ended.json", 200) == other, "what stands there is believed"
    (tmp_path / "ended.json").write_text("[")
    with pytest.raises(ArtifactError, match=r"is not readable JSON .*delete it"):
        choose_route(twelve, texts, 9, tmp_path / "ended.json", 200)


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    return runs.model()


PROMPTS = [tuple(range(3 + n % 7, 12 + 2 * (n % 7))) for n in range(CHUNK + 3)]


@pytest.fixture(scope="module")
def routes(routed) -> list[Route]:
    adapters = [random_adapter(routed, Route.parse(text), seed=seed) for seed, text in enumerate(("1101", "1001"))]
    for adapter in adapters:
        routed.adopt(adapter)
    return [Route.parse("1101"), *(adapter.healed for adapter in adapters)]


def test_kl_is_the_mean_over_the_answer_of_a_plain_forward(routed, routes, tmp_path):
    """What was computed is read; other routes are not those of the files."""
    texts = Teacher(routed, tmp_path / "teacher", NEW, 200).texts(PROMPTS, "teaching", "base")
    found = answer_kls(routed, texts, PROMPTS, routes, tmp_path, 200)
    for row, prompt, text in list(zip(found, PROMPTS, texts, strict=True))[:7]:
        assert len(text.ids) == len(prompt) + NEW - 1
        for kl, route in zip(row, routes, strict=True):
            logits = routed(torch.tensor([text.ids]), routes=route).logits[0, len(prompt) - 1 :].detach()
            kept = (part[len(prompt) - 1 :] for part in (text.top, text.logs, text.rest))
            assert kl == pytest.approx(float(divergence(logits.float(), *kept).mean()), abs=1e-5)
    first, second = sorted(tmp_path.glob("kl-*.json"))
    first.write_text(json.dumps(kept := json.loads(first.read_text()) | {"kl": [[9.0] * 3] * CHUNK}))
    second.unlink()
    again = answer_kls(routed, texts, PROMPTS, routes, tmp_path, 200)
    assert (again[:CHUNK] == kept["kl"]).all()
    assert (again[CHUNK:] == found[CHUNK:]).all()
    assert answer_kls(routed, texts, PROMPTS, routes[:1], tmp_path, 200).shape == (len(PROMPTS), 1)


def test_answers_are_those_of_generate(routed, routes, tmp_path):
    """What was computed is read."""
    wanted = [routes[:1], *[[*routes, Route.full(4)]] * (len(PROMPTS) - 1)]
    found = greedy_answers(routed, PROMPTS, wanted, NEW, tmp_path)
    assert [set(of) for of in found] == [set(of) for of in wanted]
    for prompt, of in list(zip(PROMPTS, found, strict=True))[:7]:
        for route, ids in of.items():
            [alone] = routed.generate(input_ids=torch.tensor([prompt]), policy=route, max_new_tokens=NEW, do_sample=False)
            assert list(ids) == alone.token_ids
    assert any(of[Route.full(4)] != of[routes[-1]] for of in found[1:])
    first, second = sorted(tmp_path.glob("answers-*.json"))
    kept = json.loads(first.read_text())
    kept["answers"][0][str(routes[0])] = [7]
    first.write_text(json.dumps(kept))
    second.unlink()
    assert greedy_answers(routed, PROMPTS, wanted, NEW, tmp_path) == [{routes[0]: (7,)}, *found[1:]]
