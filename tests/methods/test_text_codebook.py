"""Codebooks that read text, by verdicts and by KL, from what they learn to a policy that decides before anything runs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drllm import InputError, Route, RoutedModel, search, train
from drllm.core.config import PromiseConfig
from drllm.deploy.inspection import inspect, render
from drllm.evaluation.calibrate import calibrate
from drllm.methods.codebook import CodebookConfig, choices, choose_reading, choose_routes, fit_candidates, selector_of
from drllm.methods.matrix import Matrix
from drllm.methods.nearest import SAVED, fit_nearest
from drllm.methods.prompt_reading import TEXT, Read, reach_of, read_states, read_text, reading_blocks
from drllm.policies.codebook import LEAST_PROMPTS, Codebook, StateSelector, TextSelector
from drllm.scoring.route_prediction import decide_routes
from drllm.searching.edits import EditSpace
from healed import random_adapter
from runs import SEARCH, TASK, L, model, questions, write_rows

N = 400
ROUTES = (Route.full(8), *(Route.full(8).edit(place, 0) for place in range(4)))


def two_kinds(seed: int, effect: float = 0.35) -> Matrix:
    """Prompts of two vocabularies. Route 1, which skips the first block, helps one kind and harms the other; route 2 the reverse."""
    rng = np.random.default_rng(seed)
    is_first = rng.random(N) < 0.5
    prompts = tuple((*(100 + rng.integers(0, 20, 8)).tolist(), *(200 * (1 + kind) + rng.integers(0, 20, 6)).tolist()) for kind in is_first)
    chance = np.array([[0.4] * 3 + [0.1] * 2] * N)
    chance[:, 1] += np.where(is_first, effect, -effect)
    chance[:, 2] -= np.where(is_first, effect, -effect)
    correct = rng.random((N, 5)) < chance
    return Matrix(ROUTES, ("t",) * N, tuple(map(str, range(N))), prompts, correct, np.full((N, 5), np.nan, dtype=np.float32), "raw", "key")


def states(fit: Matrix, tune: Matrix, says: float) -> dict[str, dict[int, Read]]:
    found = {}
    for seed, (split, part) in enumerate((("fit", fit), ("tune", tune))):
        features = np.random.default_rng(seed).normal(size=(N, 10))
        features[:, 0] += says * np.array([ids[-1] >= 400 for ids in part.prompts])
        found[split] = {1: Read(features, np.zeros(N))}
    return found


def test_kinds_are_told_by_their_words():
    fit, tune = two_kinds(0), two_kinds(1)
    config = CodebookConfig(n_routes=2)
    readings = read_text(fit.prompts, tune.prompts)
    best = max(fit_candidates(fit, tune, readings, config, choose_routes), key=lambda candidate: candidate.tune_gain)
    assert {str(route) for route in best.routes[1:]} == {str(ROUTES[1]), str(ROUTES[2])}, "also a route that skips the first block"
    picked = [best.routes[place] for place in choices(best, readings["tune"][TEXT])]
    right = [route == ROUTES[1 if ids[-1] >= 400 else 2] for route, ids in zip(picked, tune.prompts, strict=True)]
    assert np.mean(right) > 0.95
    # The policy decides as the candidate did.
    selector = selector_of(best, fit, 2)
    assert isinstance(selector, TextSelector)
    scores = selector.scores(tune.prompts)
    assert selector.weight.dtype == selector.bias.dtype == torch.float32
    np.testing.assert_allclose(scores, best.scores(readings["tune"][TEXT]), atol=1e-5)
    assert bool((selector.scores([(7, 8, 9)] * 2) == -math.inf).all())


def test_a_fit_prompt_is_as_strange_as_it_is_to_the_others():
    """What two prompts have in common with each other alone, neither knows from the others; a tune prompt knows it from both."""
    both, alone = (1, 2), (7, 8)
    readings = read_text([both] * LEAST_PROMPTS, [both, alone])
    assert np.isinf(readings["fit"][TEXT].away).all()
    assert np.isfinite(readings["tune"][TEXT].away).tolist() == [True, False]
    assert reach_of(readings["fit"][TEXT], TEXT, 0.0) == -math.inf, "no prompt leaves the base"
    assert reach_of(readings["tune"][TEXT], TEXT, 0.0) == readings["tune"][TEXT].away[0]
    assert [reading_blocks(n) for n in (4, 30)] == [[1], [3, 6, 10]]


def test_states_are_measured_from_the_fit_prompts_and_kept_by_what_was_read(tmp_path):
    routed, blocks = model(), [1, 2]
    fit, tune = (SimpleNamespace(prompts=[(at, 5, 6, 7)[: 2 + at % 3] for at in range(start, start + 9)]) for start in (10, 40))
    found = read_states(routed, tmp_path, fit, tune, blocks)
    for block in blocks:
        of_fit, of_tune = (found[split][block] for split in ("fit", "tune"))
        z = (of_tune.features - of_fit.features.mean(0, dtype=float)) / (of_fit.features.std(0, dtype=float) + 1e-6)
        np.testing.assert_allclose(of_tune.away, np.sqrt((z**2).mean(1)), rtol=1e-6)
    assert sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir()) == ["prompts-fit", "prompts-tune"]
    turned = read_states(routed, tmp_path, tune, fit, blocks)
    np.testing.assert_array_equal(turned["fit"][1].features, found["tune"][1].features)
    assert len(list(tmp_path.iterdir())) == 4, "of other prompts another file"


@pytest.mark.parametrize(("says", "reads"), [(0.0, "text"), (6.0, "text"), (None, "states")])
def test_states_are_read_only_where_they_gain_more_for_sure(says: float | None, reads: str):
    """None: the text says nothing, and states all."""
    fit, tune = two_kinds(0), two_kinds(1)
    known = states(fit, tune, 6.0 if says is None else says)
    if says is None:
        fit, tune = (Matrix(**{**vars(part), "prompts": tuple(ids[:8] for ids in part.prompts)}) for part in (fit, tune))
    config = CodebookConfig(n_routes=2)
    found = [(read, list(fit_candidates(fit, tune, read, config, choose_routes))) for read in (read_text(fit.prompts, tune.prompts), known)]
    read, best = choose_reading(tune, found, config)
    assert (best.block == TEXT) == (reads == "text")
    assert read is (found[0][0]["tune"][TEXT] if reads == "text" else known["tune"][1])


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    rows = [row | {"part": "train" if number % 3 else "dev"} for number, row in enumerate(questions(60))]
    out = tmp_path_factory.mktemp("run")
    data = write_rows(out / "sums.jsonl", rows)
    search(tiny, [TASK], SEARCH_ALL, out, data, routes=EditSpace(L, 1).edited(Route.full(L)))
    return out


SEARCH_ALL = SEARCH.__class__(**{**vars(SEARCH), "splits": ("fit", "tune", "calibrate")})
TEXTS = ["what is 5 and 6?", "x", "12: what is 312 and 104? It is", "why?"]


@pytest.mark.long
def test_a_policy_of_text_is_trained_saved_run_explained_and_promised(tiny, run, tmp_path):
    policy = train(tiny, run, CodebookConfig(read="text", n_routes=4, abstain=False, unfamiliar=0.1))
    assert isinstance(policy, Codebook)
    assert isinstance(policy.selector, TextSelector)
    tiny.policy = policy
    try:
        again = RoutedModel.from_pretrained(tiny.save_pretrained(tmp_path / "p"), base=tiny).policy
    finally:
        tiny.policy = None
    assert sum(file.stat().st_size for file in (tmp_path / "p").iterdir()) < 100_000
    prompts = [tiny.tokenizer(text)["input_ids"] for text in TEXTS]
    wanted = again.routes_for(prompts)
    assert wanted == policy.routes_for(prompts)
    assert wanted[1].is_full, "a letter is unlike any question"
    together = tiny.generate(TEXTS, policy=again, max_new_tokens=3, do_sample=False)
    assert [output.route for output in together] == wanted
    for ids, route, output in zip(prompts, wanted, together, strict=True):
        given = torch.tensor([ids])
        alone = tiny.generate(input_ids=given, policy=again, max_new_tokens=3, do_sample=False)[0]
        assert (alone.route, alone.token_ids) == (route, output.token_ids)
        assert torch.equal(tiny(given, routes=again).logits, tiny(given, routes=route).logits)
    assert decide_routes(tiny, [again, None], prompts, 100)[0] == wanted
    found = inspect(tiny, TEXTS[0], again, max_new_tokens=1)
    assert found.route == wanted[0]
    assert sum(share for _, share in found.spoken) + float(policy.selector.bias.max()) >= max(found.values) - 0.5
    assert "what spoke most for and against" in render(found)
    _, promise = calibrate(tiny, run, again, PromiseConfig(calibrate="calibrate", epsilon=0.45, delta=0.4))
    assert promise.point is not None


@pytest.mark.long
def test_what_is_read_can_be_asked_for(tiny, run):
    assert train(tiny, run, CodebookConfig(block=1, n_routes=1, abstain=False)).selector.block == 1
    assert isinstance(train(tiny, run, CodebookConfig(read="states", n_routes=1, abstain=False)).selector, StateSelector)
    with pytest.raises(InputError, match="block is 2, before which states are read, and read is text"):
        train(tiny, run, CodebookConfig(read="text", block=2))


N_PROMPTS = 200


@pytest.fixture(scope="module")
def adapters():
    routed = model()
    return [random_adapter(routed, Route.parse(text), seed=seed) for seed, text in enumerate(("1101", "1001"))]


def asked(seed: int = 0) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Prompts of two kinds, by their first token; the second bears no route."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, N_PROMPTS)
    prompts = [[7 + int(kind), *rng.integers(20, 40, 6).tolist()] for kind in kinds]
    kls = np.where(kinds[:, None] == 0, [0.02, 0.05], [0.4, 0.9]) + rng.gamma(1, 0.02, (N_PROMPTS, 2))
    return prompts, kls, kinds


def test_it_leaves_out_blocks_where_the_text_says_that_they_are_cheap(adapters):
    prompts, kls, kinds = asked()
    found = fit_nearest(prompts, kls, [one.healed for one in adapters], adapters, 0)
    saved = [float(np.array([0, 0.25, 0.5])[taken].mean()) for taken in found.taken]
    assert saved == sorted(saved)
    assert all(abs(one - share * 0.5) < 0.06 for one, share in zip(saved, SAVED, strict=True))
    assert kinds[found.taken[2] > 0].mean() < 0.05, "a quarter of what can be saved: of the cheap kind alone"
    assert len(found.policy.operating_points()) == len(found.taken)
    fresh, _, of = asked(1)
    routes = found.policy.at_point(2).routes_for(fresh)
    assert np.mean([kind for kind, route in zip(of, routes, strict=True) if not route.is_full]) < 0.05
    prices = [point.price for point in found.policy.points]
    assert prices == sorted(prices)


def test_out_of_fold_a_prompt_s_own_kl_chooses_nothing(adapters):
    """Where the text tells nothing, the routes that are taken are no better than dealt ones."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(20, 60, 8).tolist() for _ in range(N_PROMPTS)]
    kls = rng.gamma(1, [0.1, 0.3], (N_PROMPTS, 2))
    found = fit_nearest(prompts, kls, [one.healed for one in adapters], adapters, 0)
    losses = np.concatenate([np.zeros((N_PROMPTS, 1)), kls], 1)
    for taken in found.taken:
        own = losses[np.arange(N_PROMPTS), taken].mean()
        dealt = losses.mean(0) @ (np.bincount(taken, minlength=3) / N_PROMPTS)
        assert own > 0.7 * dealt


def test_prompts_without_a_common_token_are_one_line(adapters):
    prompts = [[3 * n, 3 * n + 1] for n in range(30)]
    with pytest.raises(InputError, match=r"^these 30 prompts have no token in common"):
        fit_nearest(prompts, np.ones((30, 2)), [one.healed for one in adapters], adapters, 0)
