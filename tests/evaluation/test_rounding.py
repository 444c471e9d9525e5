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
    found = rounding(wide, Route.parse("1021"), PROMPTS)
    assert found == rounding(narrow, Route.parse("1021"), PROMPTS)
    assert found["policy"] != found["base"]
    assert narrow.model.dtype == torch.bfloat16, "the model itself is left as it is"
