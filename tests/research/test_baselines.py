"""Every method of the research package, from records to a policy that is saved, loaded, evaluated and generates."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from drllm import Route, RoutedModel, evaluate, search, train
from drllm.evaluation.fit import fit_policy
from drllm.methods.base import get_method
from drllm.searching.edits import EditSpace
from drllm_research.rivals.shortgpt import block_influence
from runs import EVALUATE, SEARCH, TASK, L, folder_bytes

pytestmark = pytest.mark.long

ROUTES = [*(route for route in EditSpace(L, 1).edited(Route.full(L)) if route[0] == 1), Route.full(L).loop(1, 2)]
# MindSkip and FlexiDepth are no policies: test_rivals.py.
ROUTED = ("polar", "tale", "shortgpt", "early_exit", "random_skip", "random_codebook", "input_blind")


@pytest.fixture(scope="module")
def run(tiny, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    search(tiny, [TASK], dataclasses.replace(SEARCH, splits=("fit", "tune")), out, data, routes=ROUTES)
    return out


@pytest.mark.parametrize("name", ROUTED)
def test_every_method_trains_saves_loads_evaluates_and_generates(name, tiny, run, data):
    policy = RoutedModel.from_pretrained(fit_policy(tiny, run, name), base=tiny).policy
    assert policy is not None
    rows = evaluate(tiny, [name, f"shuffled-{name}"], [TASK], run, EVALUATE, data).rows
    assert [row.method for row in rows] == ["base", name, f"shuffled-{name}"]
    outputs = tiny.generate(["what is 1 and 2?", "so?"], policy=policy, max_new_tokens=2, check_prompt_format=False)
    assert all(len(output.route) == L for output in outputs)


@pytest.mark.parametrize(("name", "budget"), [("shortgpt", 0.75), ("early_exit", 0.5), ("random_skip", 0.5), ("tale", 0.5)])
def test_budgets_are_kept(name, budget, tiny, run):
    policy = train(tiny, run, get_method(name).config(budget=budget))
    assert policy.route is not None
    assert policy.route.n_passes == budget * L


def test_tale_goes_on_from_the_steps_of_another_budget(tiny, run):
    half = train(tiny, run, get_method("tale").config(budget=0.5))
    steps = run / "train" / "tale" / "steps.json"
    before = json.loads(steps.read_text())["steps"]
    asked = folder_bytes(run / "verdicts")
    shorter = train(tiny, run, get_method("tale").config(budget=0.75))
    again = json.loads(steps.read_text())["steps"]
    assert folder_bytes(run / "verdicts") == asked, "nothing is asked again"
    assert half.route is not None
    assert shorter.route is not None
    assert (half.route.n_passes, shorter.route.n_passes) == (L // 2, L - 1)
    assert all(a <= b for a, b in zip(half.route, shorter.route, strict=True))
    assert again == before[:2]
    assert len(before) == 1 + L // 2


def test_influence_against_the_models_own_states(tiny):
    prompts = [tiny.tokenizer(text)["input_ids"] for text in ("what is 5 and 6?", "x y z")]
    wanted = np.zeros(L - 1)
    n = 0
    for prompt in prompts:
        with torch.no_grad():
            states = tiny.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for block in range(L - 1):
            wanted[block] += float(torch.nn.functional.cosine_similarity(states[block][0], states[block + 1][0], dim=-1).sum())
        n += len(prompt)
    assert block_influence(tiny, prompts) == pytest.approx((1 - wanted / n).tolist(), abs=1e-5)
