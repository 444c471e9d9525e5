"""Which blocks go: those a plain search would take, and what was measured is never measured again."""

from __future__ import annotations

import pytest

import families
import runs
from byte_tokens import byte_tokenizer
from drllm import ArtifactError, Route, RoutedModel
from drllm.core.files import read_json
from drllm.healing import choice
from drllm.healing.measuring import RouteMeter, distance
from drllm.healing.teacher import Teacher


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    return RoutedModel.wrap(families.build("llama", vocab_size=300, num_hidden_layers=12), byte_tokenizer())


@pytest.fixture(scope="module")
def texts(routed, tmp_path_factory):
    prompts = [tuple(range(3 + n, 20 + 2 * n)) for n in range(6)]
    return Teacher(routed, tmp_path_factory.mktemp("teacher"), 0, 200).texts(prompts, "teaching", "fit")


def greedy(routed, texts, n_passes: int) -> Route:
    """Every block that is left tried in plain forwards, each time."""
    route = Route.full(12)
    while route.n_passes > n_passes:
        ones = [route.edit(block, 0) for block in range(12) if route[block]]
        route = min(ones, key=lambda one: distance(routed, texts, 200, lambda **inputs: routed(**inputs, routes=one)).kl)
    return route


def test_it_drops_the_blocks_that_cost_least(routed, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "TRIED", 12)
    assert choice.choose_route(routed, texts, 8, tmp_path / "choice.json", 200) == greedy(routed, texts, 8)


def test_later_steps_try_the_cheapest_alone(routed, texts, tmp_path):
    route = choice.choose_route(routed, texts, 9, tmp_path / "choice.json", 200)
    assert route.n_passes == 9
    known = read_json(tmp_path / "choice.json", "")
    assert len(known) == 12 + 2 * choice.TRIED
    assert known[str(route)] == min(kl for text, kl in known.items() if Route.parse(text).n_passes == 9)


def test_what_was_measured_is_not_measured_again(routed, texts, tmp_path, monkeypatch):
    whole = choice.choose_route(routed, texts, 9, tmp_path / "whole.json", 200)
    measured = RouteMeter.kls
    left = 16

    def ends(self, routes):
        nonlocal left
        left -= len(routes)
        if left < 0:
            raise KeyboardInterrupt
        return measured(self, routes)

    monkeypatch.setattr(RouteMeter, "kls", ends)
    with pytest.raises(KeyboardInterrupt):
        choice.choose_route(routed, texts, 9, tmp_path / "ended.json", 200)
    assert len(read_json(tmp_path / "ended.json", "")) == 16
    left = 1000
    assert choice.choose_route(routed, texts, 9, tmp_path / "ended.json", 200) == whole
    assert left == 1000 - (12 + 2 * choice.TRIED - 16)
    assert runs.folder_bytes(tmp_path)["ended.json"] == runs.folder_bytes(tmp_path)["whole.json"]
    monkeypatch.setattr(RouteMeter, "kls", None)
    assert choice.choose_route(routed, texts, 9, tmp_path / "ended.json", 200) == whole


def test_a_broken_file_is_refused(routed, texts, tmp_path):
    (tmp_path / "choice.json").write_text("[")
    with pytest.raises(ArtifactError, match=r"is not readable JSON .*delete it"):
        choice.choose_route(routed, texts, 9, tmp_path / "choice.json", 200)
