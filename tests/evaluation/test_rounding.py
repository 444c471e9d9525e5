"""How far a policy's next tokens in float32 and bfloat16 lie apart."""

import copy

import numpy as np
import pytest
import torch

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.evaluation.rounding import rounding

PROMPTS = [list(range(5, 30)), list(range(40, 47)), [9] * 12]


@pytest.fixture(scope="module")
def exact() -> torch.nn.Module:
    """A model whose weights both types hold exactly, so that arithmetic alone differs."""
    return families.build("llama", vocab_size=300).bfloat16().float()


def by_hand(model: torch.nn.Module) -> list[float]:
    """Of the base, by transformers alone."""
    rough, found = copy.deepcopy(model).bfloat16(), []
    for prompt in PROMPTS:
        with torch.no_grad():
            p, q = (one(torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy() for one in (model, rough))
        found.append(float(np.sum(p * np.log(p / q))))
    return found


def test_the_divergence_is_that_of_both_types(exact):
    found = rounding(RoutedModel.wrap(copy.deepcopy(exact), byte_tokenizer()), Route.full(4), PROMPTS)
    assert found["base"] == found["policy"]
    assert found["base"] == pytest.approx(by_hand(exact), rel=0.05)


def test_either_type_may_be_the_models_own(exact):
    wide = RoutedModel.wrap(copy.deepcopy(exact), byte_tokenizer())
    narrow = RoutedModel.wrap(copy.deepcopy(exact).bfloat16(), byte_tokenizer())
    assert rounding(wide, Route.parse("1021"), PROMPTS) == rounding(narrow, Route.parse("1021"), PROMPTS)
    assert narrow.model.dtype == torch.bfloat16, "the model itself is left as it is"


def test_a_route_that_lets_small_differences_grow_is_seen(exact):
    """Block 2 with far larger weights: run twice it saturates, and what is rounded before it decides."""
    model = copy.deepcopy(exact)
    with torch.no_grad():
        for weight in model.model.layers[2].parameters():
            weight *= 8
    routed = RoutedModel.wrap(model, byte_tokenizer())
    found = {text: np.mean(rounding(routed, Route.parse(text), PROMPTS)["policy"]) for text in ("1101", "1111", "1121")}
    assert found["1101"] < found["1111"] < found["1121"]
