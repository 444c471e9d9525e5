"""A codebook: what it reads of a prompt's text or states, whom it leaves alone, and that nobody else in the batch matters."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import runs
from codebooks import plain_selector
from drllm import ArtifactError, InputError, Route, RoutedModel
from drllm.policies import codebook as module
from drllm.policies.codebook import Codebook, Point, StateSelector, TextSelector
from drllm.policies.routers import RouterConfig, Routers
from drllm.scoring.route_prediction import decide_routes, read_prompts
from healed import random_adapter
from runs import L

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
    grams = sorted(set().union(*map(module.grams_in, prompts)))[::2]
    selector = TextSelector(grams, torch.randn(len(grams), 2, generator=generator), torch.zeros(2), 0.3)
    together = selector.scores(prompts)
    order = random.sample(range(len(prompts)), len(prompts))
    assert torch.equal(selector.scores([prompts[place] for place in order]), together[order])
    assert all(torch.equal(selector.scores([ids])[0], row) for ids, row in zip(prompts, together, strict=True))


def test_what_is_read_of_the_fit_prompts():
    prompts = [[1, 2, 3]] * module.LEAST_PROMPTS + [[2, 9]] * (module.LEAST_PROMPTS - 1)
    counts = module.common_grams(prompts)
    assert counts == {(2,): 2 * module.LEAST_PROMPTS - 1, **dict.fromkeys([(1,), (1, 2), (2, 3), (3,)], module.LEAST_PROMPTS)}
    found = module.presence([[2, 3, 3], [9]], counts)
    np.testing.assert_allclose(found, [[1 / math.sqrt(3), 0, 0, 1 / math.sqrt(3), 1 / math.sqrt(3)], [0] * 5], rtol=1e-6)
    many = [list(range(2 * module.MOST_GRAMS))] * module.LEAST_PROMPTS
    assert len(module.common_grams(many)) == module.MOST_GRAMS


def test_prompts_that_have_little_in_common_with_those_learned_from_keep_the_base():
    assert module.strangeness(3, 3) == pytest.approx(-1 / math.sqrt(3))
    assert module.strangeness(3, 1) == pytest.approx(2 / 3 - 1 / math.sqrt(3))
    assert module.strangeness(3, 0) == math.inf
    assert module.strangeness(300, 100) > module.strangeness(3, 1), "the same share is stranger in a long prompt"
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
    (tmp_path / "codebook.json").write_text(json.dumps(about))
    (tmp_path / "selector.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError):
        Codebook.load(tmp_path)


def test_prompts_longer_than_any_learned_from_keep_the_base_and_token_0_is_one(tmp_path: Path):
    selector = TextSelector([(0,), (7, 0)], torch.ones(2, 1), torch.zeros(1), math.inf, longest=3)
    codebook = Codebook(ROUTES[:2], selector, [Point(0.0, 0.25)])
    written = codebook.save(tmp_path)
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    again = Codebook.load(tmp_path)
    assert (again.selector.grams, again.selector.longest, again.points) == (((0,), (7, 0)), 3, (Point(0.0, 0.25),))
    assert again.routes_for([[0, 7, 0], [0, 7, 0, 7]]) == [ROUTES[1], ROUTES[0]]
    assert {"longest", "reach"} & json.loads((tmp_path / "codebook.json").read_text()).keys() == {"longest"}
    assert selector.spoken([9], 0) == []
    assert selector.tensors()["grams"].tolist() == [[0, -1], [7, 0]]
    found = module.presence([[7], [9]], {(7,): 3})
    assert (found.dtype, found.tolist()) == (np.float32, [[1.0], [0.0]])


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


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return runs.model()


def test_a_book_decides_as_it_was_fitted(tiny):
    texts = ["what is 5 and 6?", "x", "a much longer prompt than the others, is it not?"]
    prompts = [tiny.tokenizer(text)["input_ids"] for text in texts]
    read = read_prompts(tiny, prompts, [1, 2], 600)
    codebooks = []
    for block in (1, 2):
        routes = [Route.full(L), Route.full(L).edit(2, 0), Route.full(L).edit(3, 2)]
        mean, scale = read[block].mean(0), read[block].std(0) + 0.1
        weight = torch.randn(len(mean), 2, generator=torch.Generator().manual_seed(3))
        codebook = Codebook(routes, StateSelector(block, mean, scale, weight, torch.zeros(2)), [Point(0.0)])
        wanted = codebook.chosen(read[block])
        assert len(set(wanted)) > 1
        assert [output.route for output in tiny.generate(texts, policy=codebook, max_new_tokens=2)] == wanted
        codebooks.append((codebook, wanted))
    # All at once, among policies that read other states: as each by itself.
    routers = Routers(RouterConfig(L, tiny.hidden_size, n_windows=4, width=16), seed=2)
    policies = [None, *(codebook for codebook, _ in codebooks), routers]
    together = decide_routes(tiny, policies, prompts, 600)
    assert together[1:3] == [wanted for _, wanted in codebooks]
    assert together == [decide_routes(tiny, [policy], prompts, 600)[0] for policy in policies]


def test_pooling_reads_the_prompt_alone():
    x = torch.randn(2, 5, 3)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
    pooled = module.pool_prompt(x, mask)
    torch.testing.assert_close(pooled[0], torch.cat([x[0, 2:].mean(0), x[0, 4]]))
    torch.testing.assert_close(pooled[1], torch.cat([x[1, :2].mean(0), x[1, 1]]))


def test_picking_by_hand():
    scores, saved = torch.tensor([[0.2, 0.1], [-0.1, -0.2], [0.05, 0.04]]), torch.tensor([0.0, 0.5])
    assert module.pick(scores, saved, Point(0.0)).tolist() == [1, 0, 1]
    assert module.pick(scores, saved, Point(0.1)).tolist() == [1, 0, 0]
    assert module.pick(scores, saved, Point(0.0, price=1.0)).tolist() == [2, 2, 2]
    assert module.pick(torch.zeros(3, 0), torch.zeros(0), Point(0.0)).tolist() == [0, 0, 0]


def test_prompts_out_of_reach_keep_the_base(tmp_path):
    """By hand: four features of mean 1 and scale 2. The second prompt lies 3 standard deviations off in each, the first 1."""
    selector = StateSelector(1, torch.ones(4), torch.full((4,), 2.0), torch.zeros(4, 1), torch.ones(1), reach=2.0)
    far = Codebook([Route.full(L), Route.full(L).edit(2, 0)], selector, [Point(0.0, 0.5)])
    features = torch.tensor([[3.0, -1, 3, -1], [7, -5, 7, -5]])
    base, other = far.routes
    assert far.chosen(features) == [other, base]
    assert far.selector.scores(features).tolist() == [[1.0], [-math.inf]]
    far.save(tmp_path)
    assert Codebook.load(tmp_path).chosen(features) == [other, base]
    assert far.at_point(0).chosen(features) == [other, base]
    far.selector.reach = math.inf
    everywhere = Codebook(far.routes, far.selector, [Point(0.0)])
    assert everywhere.chosen(features) == [other, other]
    everywhere.save(tmp_path)
    assert "reach" not in json.loads((tmp_path / "codebook.json").read_text()), "files of policies without it are as they were"
    for reach, said in ((0, "the reach is 0.0"), (-1, "the reach is -1.0"), ("nan", "an operating point or the reach is NaN")):
        about = json.loads((tmp_path / "codebook.json").read_text()) | {"reach": reach}
        (tmp_path / "codebook.json").write_text(json.dumps(about))
        with pytest.raises(ArtifactError, match=rf"{said}.*train the codebook again"):
            Codebook.load(tmp_path)


@pytest.mark.parametrize("triple", [False, True])
def test_three_passes_in_place_are_no_action_of_a_codebook(triple, tiny):
    routes = [Route.full(L), Route.parse("0-3,3,3") if triple else Route.parse("1112")]
    size = 2 * tiny.hidden_size
    codebook = Codebook(routes, plain_selector(2, size, [1.0]), [Point(0.0)])
    output = tiny.generate("what?", policy=codebook, max_new_tokens=3, do_sample=False)[0]
    assert (output.route, output.route.n_passes) == (routes[1], L + 1 + triple)


def test_views_at_another_point_promise_nothing():
    codebook = Codebook([Route.full(L), Route.full(L).edit(2, 0)], plain_selector(1, 4, [0.0]), [Point(0.1), Point(0.0)])
    routers = Routers(RouterConfig(L, 8, 2, 4))
    for policy in (codebook, routers):
        policy.promise = {"epsilon": 0.01, "point": 0}
    assert codebook.at_point(1).promise is None
    assert routers.with_control(0.9).promise is None


def test_states_are_standardised_and_weighed_in_float32_whoever_asks():
    mean, scale, weight = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 4.0]), torch.tensor([[1.0, 0.5], [0.25, -1.0]])
    selector = StateSelector(1, mean, scale, weight, torch.tensor([0.1, 0.2]), reach=2.0)
    features = torch.tensor([[2.001, 0.003], [5.0, 6.0], [5.0, 6.1]])
    first, edge, far = ((features - mean) / scale) @ weight + torch.tensor([0.1, 0.2])
    with torch.autocast("cpu", torch.bfloat16):
        found = selector.scores(features)
    assert torch.equal(found, torch.stack([first, edge, torch.full_like(far, -math.inf)])), "a prompt at the reach may leave the base"
    codebook = Codebook([Route.full(L), Route.full(L).edit(2, 0), Route.full(L).edit(3, 2)], selector, [Point(0.0), Point(-1.0, price=2.0)])
    assert (codebook.hidden_size, codebook.has_digits, codebook.route) == (1, True, None)
    torch.testing.assert_close(codebook.at_point(1).values(features[:1]), found[:1] + 2 * torch.tensor([[0.25, -0.25]]))
    assert [point.at for point in codebook.operating_points()] == [0, 1]
    alone = Codebook([Route.full(L)], plain_selector(1, 2, []), [])
    assert (alone.route, alone.operating_points(), alone.threshold) == (Route.full(L), [alone], 0.0)
    assert module.pick(torch.tensor([[0.5]]), torch.zeros(1), Point(0.5)).tolist() == [0], "above the threshold, not at it"


def test_states_that_do_not_fit_are_refused():
    for features, weight in ((4, torch.zeros(4, 2)), (3, torch.zeros(3, 1)), (4, torch.zeros(3, 1))):
        said = rf"weights of shape \({weight.shape[0]}, {weight.shape[1]}\) do not fit {features} features and 1 routes"
        with pytest.raises(InputError, match=said):
            StateSelector(1, torch.zeros(features), torch.ones(features), weight, torch.zeros(1))
    codebook = Codebook(ROUTES[:2], plain_selector(0, 4, [0.5]), [Point(0.0)])
    for at in (-1, 1):
        with pytest.raises(InputError, match=f"operating point {at} does not exist: this codebook has 1, counted from 0"):
            codebook.at_point(at)
    with pytest.raises(InputError, match="the states entering block 0 are not finite on a prompt: load the base in bfloat16 or float32"):
        codebook.chosen(torch.tensor([[math.nan, 0, 0, 0]]))


def test_a_codebook_of_states_is_saved_and_loaded(tmp_path):
    codebook = Codebook([Route.full(L), Route.parse("0-3,2-3")], plain_selector(2, 4, [0.5], reach=0.5), [Point(0.1, 0.2), Point(0.0)], 1)
    assert sorted(codebook.save(tmp_path)) == sorted(path.name for path in tmp_path.iterdir())
    again = Codebook.load(tmp_path)
    assert (again.routes, again.points, again.at, again.has_digits) == (codebook.routes, codebook.points, 1, False)
    assert (again.selector.block, again.selector.reach) == (2, 0.5)
    assert all(torch.equal(getattr(again.selector, name), getattr(codebook.selector, name)) for name in ("mean", "scale", "weight", "bias"))
    (tmp_path / "codebook.json").write_text(json.dumps(json.loads((tmp_path / "codebook.json").read_text()) | {"block": 4}))
    with pytest.raises(ArtifactError, match="train the codebook again"):
        Codebook.load(tmp_path)
