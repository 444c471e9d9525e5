"""`drllm inspect`: what is shown is what the policy read and did; looking does not change a decision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from byte_tokens import byte_tokenizer
from codebooks import plain_selector
from drllm import InputError, Route, RoutedModel
from drllm.cli.main import main
from drllm.core.route import Action
from drllm.deploy.inspection import inspect, render
from drllm.policies.codebook import Codebook, Point
from drllm.policies.constant import RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from pooling import pool_windows

PROMPT = "why is the sky so blue?"  # 23 tokens of a byte each


@pytest.fixture
def routers(tiny: RoutedModel) -> Routers:
    policy = Routers(RouterConfig(tiny.n_layers, tiny.hidden_size, n_windows=4, width=8), seed=3)
    # So strong that blocks differ in what they do.
    policy.tensors["w2"] = policy.tensors["w2"] * 40
    return policy


def test_what_routers_read_and_decided_is_shown(tiny: RoutedModel, routers: Routers):
    """The windows' tokens in order, and at each block the probabilities that were decided by; a control shows in them."""
    plain = tiny.generate([PROMPT], policy=routers, max_new_tokens=4, do_sample=False)[0]
    found = inspect(tiny, PROMPT, routers, max_new_tokens=4)
    assert found.route == plain.route
    assert found.text == plain.text
    assert found.probabilities is not None
    assert len(found.probabilities) == tiny.n_layers
    assert [max(range(3), key=row.__getitem__) for row in found.probabilities] == [int(action) for action in found.route]
    assert [sum(row) for row in found.probabilities] == pytest.approx([1] * tiny.n_layers)
    # The first block reads the embeddings, pooled.
    ids = torch.tensor([tiny.tokenizer(PROMPT)["input_ids"]])
    pooled, valid = pool_windows(tiny.model.get_input_embeddings()(ids), torch.ones_like(ids), 4)
    assert found.probabilities[0] == pytest.approx(routers.logits(0, pooled, valid).softmax(-1)[0].tolist(), abs=1e-6)
    assert [len(window) for window in found.windows] == [ids.numel() // 4] * 4
    assert found.dropped == ids.numel() % 4
    assert PROMPT.startswith("".join(token for window in found.windows for token in window).removeprefix("<s>"))
    rows = [line.split() for line in render(found).splitlines() if line.strip()[:1].isdigit() and line.count("0.") + line.count("1.") >= 3]
    assert [row[4] for row in rows] == [Action(action).name.lower() for action in found.route]
    held = inspect(tiny, PROMPT, routers.with_control(0.5), max_new_tokens=1)
    assert held.probabilities == tuple((0.0, 1.0, 0.0) for _ in range(tiny.n_layers))
    assert held.route.is_full


def test_a_code_book_shows_what_each_route_is_worth(tiny: RoutedModel):
    size = 2 * tiny.hidden_size
    routes = [Route.full(4), Route.parse("1121"), Route.parse("1110")]
    weight = torch.randn(size, 2, generator=torch.Generator().manual_seed(0)) * 0.01
    policy = Codebook(routes, plain_selector(2, size, [0.05, 0.01], weight), [Point(0.02, 0.1)])
    found = inspect(tiny, PROMPT, policy, max_new_tokens=1)
    assert found.routes == policy.routes
    best = max(range(2), key=found.values.__getitem__)
    assert found.route == (policy.routes[best + 1] if found.values[best] > found.threshold else policy.routes[0])
    assert found.route == tiny.generate([PROMPT], policy=policy, max_new_tokens=1)[0].route
    assert found.threshold == 0.02
    text = render(found)
    assert "the route worth most is taken if that is more than +2.00 points" in text
    assert text.count("taken") == 2  # the sentence, and the one that is


def test_one_route_has_no_probabilities(tiny: RoutedModel):
    found = inspect(tiny, PROMPT, RoutePolicy(Route.parse("1021")), max_new_tokens=1)
    assert found.probabilities is None
    with pytest.raises(InputError, match="there is no policy to look into"):
        inspect(tiny, PROMPT)
    assert "route   |_#|  4 block passes, the base 4" in render(found)


@pytest.mark.parametrize(
    ("route", "strip", "words"),
    [
        ("0-2,1-3", "|[||]|  6 block passes, the base 4", ["runs 1-2 again after 2"]),
        ("0-2,(1-2)*0.5,3", "|[||]|", ["runs 1-2 again after 2 at strength 0.5"]),
        ("0,0,2-3,2,0,0", "[#]_[|]|", ["runs 2 again after 3", "runs 0 again twice after 3"]),
        ("0-3,3,3", "|||#", []),
    ],
)
def test_a_loop_stands_in_brackets_and_in_words(route, strip, words, tiny: RoutedModel):
    found = inspect(tiny, PROMPT, RoutePolicy(Route.parse(route)), max_new_tokens=1)
    lines = render(found).splitlines()
    assert any(line.startswith(f"route   {strip}") for line in lines)
    assert [line for line in lines if line.startswith("loop")] == [f"loop    [ ] {loop}" for loop in words]


def test_a_codebook_of_loops_shows_each_in_brackets(tiny: RoutedModel):
    size = 2 * tiny.hidden_size
    routes = [Route.full(4), Route.full(4).loop(1, 2), Route.full(4).loop(1, 2, 0.5).loop(3, 3, 0.5)]
    codebook = Codebook(routes, plain_selector(2, size, [0.05, 0.01]), [Point(0.02, 0.0)])
    text = render(inspect(tiny, PROMPT, codebook, max_new_tokens=1))
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("+")]
    assert rows == [["+5.00", "6", "|[||]|", "taken"], ["+1.00", "7", "|[||][|]"]]


def test_a_prompt_out_of_reach_is_named(tiny: RoutedModel):
    size = 2 * tiny.hidden_size
    near = Codebook([Route.full(4), Route.parse("1110")], plain_selector(2, size, [1.0], reach=1e-6), [Point(0.0)])
    found = inspect(tiny, PROMPT, near, max_new_tokens=1)
    assert found.route.is_full
    assert "this prompt is unlike those that the codebook learned from, so the base is kept" in render(found)


def test_the_command_shows_one_prompt(tiny: RoutedModel, routers: Routers, tmp_path: Path, capsys):
    tiny.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    routed = RoutedModel.wrap(str(tmp_path / "model"))
    routed.policy = routers
    policy = routed.save_pretrained(tmp_path / "policy")
    assert main(["inspect", PROMPT, "--policy", str(policy), "--model", str(tmp_path / "model"), "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("prompt (raw), ", "under routers", "decision", "answer"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hi"], "inspect looks into a policy: give --policy FOLDER"),
        (["hi", "there", "--policy", "x"], "got 2 prompts, expected one: quote it"),
        (["hi", "--policy", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0, expected at least 1"),
        (["hi", "--policy", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(arguments, message, capsys):
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
