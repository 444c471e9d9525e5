"""A codebook that reads a prompt's text: what it reads, whom it leaves alone, and that nobody else in the batch matters."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import runs
from drllm import ArtifactError, InputError, Route, RoutedModel
from drllm.policies.codebook import LEAST_PROMPTS, MOST_GRAMS, Codebook, Point, TextSelector, common_grams, grams_in, presence, strangeness
from healed import random_adapter

L = 4
ROUTES = [Route.full(L), Route.parse("0111"), Route.parse("1121")]
GRAMS = [(7,), (8,), (7, 8)]


def by_hand(reach: float = math.inf) -> Codebook:
    """Token 7 speaks for the first route, the pair 7 8 for the second, against a bias; what is not known says nothing."""
    weight = torch.tensor([[0.4, 0.0], [0.0, 0.0], [0.0, 0.9]])
    return Codebook(ROUTES, TextSelector(GRAMS, weight, torch.tensor([-0.1, -0.1]), reach), [Point(0.5), Point(0.0)], 1)


def test_routes_by_hand():
    codebook = by_hand()
    prompts = [[7], [8], [7, 8], [8, 7], [9, 7, 9]]
    root2, root3 = math.sqrt(2), math.sqrt(3)
    wanted = [[0.3, -0.1], [-0.1, -0.1], [0.4 / root3 - 0.1, 0.9 / root3 - 0.1], [0.4 / root2 - 0.1, -0.1], [0.3, -0.1]]
    torch.testing.assert_close(codebook.selector.scores(prompts), torch.tensor(wanted))
    base, first, second = ROUTES
    assert codebook.routes_for(prompts) == [first, base, second, first, first]
    assert codebook.at_point(0).routes_for(prompts) == [base] * 5
    assert codebook.routes_for([]) == []
    assert codebook.selector.spoken([7, 8], 0) == [((7,), pytest.approx(0.4 / root3)), ((8,), 0.0), ((7, 8), 0.0)]


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=30), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_prompt_is_decided_alone(prompts: list[list[int]], random):
    generator = torch.Generator().manual_seed(1)
    grams = sorted(set().union(*map(grams_in, prompts)))[::2]
    selector = TextSelector(grams, torch.randn(len(grams), 2, generator=generator), torch.zeros(2), 0.3)
    together = selector.scores(prompts)
    order = random.sample(range(len(prompts)), len(prompts))
    assert torch.equal(selector.scores([prompts[place] for place in order]), together[order])
    assert all(torch.equal(selector.scores([ids])[0], row) for ids, row in zip(prompts, together, strict=True))


def test_what_is_read_of_the_fit_prompts():
    prompts = [[1, 2, 3]] * LEAST_PROMPTS + [[2, 9]] * (LEAST_PROMPTS - 1)
    counts = common_grams(prompts)
    assert counts == {(2,): 2 * LEAST_PROMPTS - 1, **dict.fromkeys([(1,), (1, 2), (2, 3), (3,)], LEAST_PROMPTS)}
    found = presence([[2, 3, 3], [9]], counts)
    np.testing.assert_allclose(found, [[1 / math.sqrt(3), 0, 0, 1 / math.sqrt(3), 1 / math.sqrt(3)], [0] * 5], rtol=1e-6)
    many = [list(range(2 * MOST_GRAMS))] * LEAST_PROMPTS
    assert len(common_grams(many)) == MOST_GRAMS


def test_prompts_that_have_little_in_common_with_those_learned_from_keep_the_base():
    assert strangeness(3, 3) == pytest.approx(-1 / math.sqrt(3))
    assert strangeness(3, 1) == pytest.approx(2 / 3 - 1 / math.sqrt(3))
    assert strangeness(3, 0) == math.inf
    assert strangeness(300, 100) > strangeness(3, 1), "the same share is stranger in a long prompt"
    prompts = [[7, 8], [7, 9, 10, 11, 12, 13, 14]]
    assert by_hand(0.2).routes_for(prompts) == [ROUTES[2], ROUTES[0]]
    assert by_hand().routes_for(prompts) == [ROUTES[2], ROUTES[1]]
    assert by_hand().routes_for([[99]]) == [ROUTES[0]], "of which nothing is known"


def test_saved_and_loaded(tmp_path: Path):
    by_hand(0.25).save(tmp_path)
    again = Codebook.load(tmp_path)
    prompts = [[7], [7, 8], [8, 7, 7], list(range(30))]
    assert torch.equal(again.selector.scores(prompts), by_hand(0.25).selector.scores(prompts))
    assert (again.routes, again.points, again.at, again.selector.grams) == (tuple(ROUTES), by_hand().points, 1, tuple(GRAMS))
    about = json.loads((tmp_path / "codebook.json").read_text())
    for change in ({"at": 5}, {"points": []}, {"routes": ["1111", "0111"]}, {"block": 1}, {"weights_sha256": "0"}, {"reach": "far"}):
        (tmp_path / "codebook.json").write_text(json.dumps(about | change))
        with pytest.raises(ArtifactError, match="train the codebook again"):
            Codebook.load(tmp_path)


def test_grams_that_do_not_fit_are_refused():
    for grams in (GRAMS[:2], [(7,), (8,), (7,)]):
        with pytest.raises(InputError, match="do not fit"):
            TextSelector(grams, torch.zeros(3, 2), torch.zeros(2), math.inf)
    with pytest.raises(InputError, match="a prompt without tokens"):
        by_hand().routes_for([[7], []])
    with pytest.raises(InputError, match="there is nothing to start"):
        by_hand().start(torch.ones(1, 3))


def of_healed(routed) -> Codebook:
    adapter = random_adapter(routed, Route.parse("1011"))
    selector = TextSelector([(7,), (8,)], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([-0.1, -0.1]), math.inf)
    return Codebook([Route.full(L), adapter.healed, Route.parse("0111")], selector, [Point(0.0)], 0, [adapter])


def test_routes_may_have_adapters_and_a_batch_is_mixed(tmp_path):
    routed = runs.model()
    routed.policy = codebook = of_healed(routed)
    prompts = [[7, 20, 30], [8, 20, 30], [9, 20, 30]]
    ids = torch.tensor(prompts)
    together = routed.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert [output.route for output in together] == [codebook.routes[1], codebook.routes[2], codebook.routes[0]]
    alone = [routed.generate(input_ids=ids[row : row + 1], max_new_tokens=4, do_sample=False)[0] for row in range(3)]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    assert alone[2].token_ids == runs.model().generate(input_ids=ids[2:], max_new_tokens=4, do_sample=False)[0].token_ids
    routed.save_pretrained(tmp_path)
    again = RoutedModel.from_pretrained(tmp_path, base=runs.model())
    assert [output.token_ids for output in again.generate(input_ids=ids, max_new_tokens=4, do_sample=False)] == [
        output.token_ids for output in together
    ]
    name = codebook.adapters[0].name
    (tmp_path / "adapters" / name / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="missing or not the file that was saved"):
        RoutedModel.from_pretrained(tmp_path, base=runs.model())


def test_adapters_that_no_route_names_or_a_route_lacks_are_refused():
    codebook = of_healed(runs.model())
    for routes, adapters in ((codebook.routes, ()), ([route.bare for route in codebook.routes], codebook.adapters)):
        with pytest.raises(InputError, match="give those that the routes name"):
            Codebook(routes, codebook.selector, codebook.points, 0, adapters)
