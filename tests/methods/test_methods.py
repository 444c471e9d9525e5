"""Every method, from records to a policy that is saved, loaded, evaluated and generates; and what each must and must not find."""

import dataclasses
import itertools
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from scipy.stats import norm

import drllm.methods.base as registry
from codebooks import plain_selector
from drllm import ArtifactError, InputError, Route, RoutedModel, evaluate, search, train
from drllm.cli.main import main
from drllm.core.config import PromiseConfig
from drllm.evaluation.calibrate import calibrate
from drllm.evaluation.fit import fit_policy
from drllm.methods.base import get_method, method_names, method_of
from drllm.methods.codebook import CodebookConfig, Fitted, choices, choose, choose_routes, fit_one, served_passes, thresholds, worth
from drllm.methods.matrix import Matrix, mixed_gain
from drllm.methods.prompt_reading import Read, reach_of
from drllm.methods.router_training import focal_loss, rarity_weights, soft_loss
from drllm.methods.routers import BELOW, soft_target
from drllm.methods.selector import PENALTIES, STAY, Folds, fit_ridges, lower_bound, moments, principal_directions
from drllm.methods.static import StaticConfig, confirmed
from drllm.methods.training_data import TrainingData
from drllm.policies.codebook import Codebook, Point, StateSelector
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import policy_class
from drllm.policies.routers import Routers
from drllm.runs.answers import read_answers
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import path_manifests
from drllm.runs.merge import merge_runs
from drllm.runs.records import RouteRecord, read_records
from drllm.scoring.route_prediction import read_prompts
from drllm.searching.edits import EditSpace
from drllm.tasks import load_task
from record_factory import record as made_record
from record_factory import verdict
from runs import EVALUATE, SEARCH, TASK, TRAIN, L, folder_bytes, model, questions, write_rows

pytestmark = pytest.mark.long

ROUTES = [route for route in EditSpace(L, 1).edited(Route.full(L)) if route[0] == 1]
OPTIONS = {"routers": TRAIN, "codebook": CodebookConfig(block=1, n_routes=4)}


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [row | {"part": "train" if number % 3 else "dev"} for number, row in enumerate(questions(150))]
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", rows)


@pytest.fixture(scope="module")
def run(tiny, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    search(tiny, [TASK], SEARCH, out, data)
    search(tiny, [TASK], dataclasses.replace(SEARCH, splits=("fit", "tune", "calibrate")), out, data, routes=ROUTES)
    return out


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_method_trains_saves_loads_evaluates_and_generates(name, tiny, run, data):
    options = OPTIONS.get(name)
    folder = fit_policy(tiny, run, name, options)
    again = RoutedModel.from_pretrained(folder, base=tiny)
    assert again.policy is not None
    before = again.policy
    rows = evaluate(tiny, [name, f"shuffled-{name}"], [TASK], run, EVALUATE, data).rows
    assert [row.method for row in rows] == ["base", name, f"shuffled-{name}"]
    outputs = tiny.generate(["what is 1 and 2?", "so?"], policy=before, max_new_tokens=2, check_prompt_format=False)
    assert all(len(output.route) == L for output in outputs)
    fit_policy(tiny, run, name, options)
    with torch.no_grad():
        assert RoutedModel.from_pretrained(folder, base=tiny).policy is not None
    second = evaluate(tiny, [name], [TASK], run, EVALUATE, data).rows[1]
    assert (second.accuracy, second.mean_passes) == (rows[1].accuracy, rows[1].mean_passes)


def test_the_command_line_trains_lists_and_refuses(tiny, run, data, capsys, tmp_path):
    model().unwrap().save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    on = ["--out", str(run), "--model", str(tmp_path)]
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{printed}" for name in method_names())
    assert "arXiv 2510.12773" in printed
    assert main(["train", *on, "--method", "codebook", "--n-routes", "2", "--block", "1"]) == 0
    assert f"compare it: drllm evaluate --out {run} --methods base,codebook --split tune --limit 100\n" in capsys.readouterr().out
    assert json.loads((run / "codebook" / "codebook.json").read_text())["block"] == 1
    (run / "run.yaml").write_text("codebook: {n_routes: 4, block: 2}\n")
    assert main(["train", *on, "--method=codebook", "--config", str(run / "run.yaml")]) == 0
    assert json.loads((run / "codebook" / "codebook.json").read_text())["block"] == 2
    capsys.readouterr()
    for arguments, wanted in [
        (["--method", "codebok"], "unknown method 'codebok'; did you mean 'codebook'"),
        (["--method", "static", "--n-routes", "2"], "unknown flag --n-routes"),
        (["--method", "codebook", "--budget", "2"], "--budget is 2.0, expected between 0.1 and 1"),
        (["--method", "codebook", "--block", "9"], "block is 9, expected less than the model's 4"),
        (["--method", "static", "--epsilon", "0"], "--epsilon is 0.0"),
        (["--method", "static", "--epsilon", "0.1"], "belong to a promise: name the split"),
        (["--method", "static", "--epsilon", "0.01", "--delta", "0.05"], "belong to a promise: name the split"),
        (["--preset", "paper", "--budget", "0.9"], "--budget below 1 is kept by a control set on tune"),
        (["--method"], "expected one argument"),
    ]:
        assert main(["train", *on, *arguments]) == 2
        err = capsys.readouterr().err
        assert wanted in err
        assert err.strip().splitlines()[-1].startswith("drllm: error: ")


OTHERS = '''
from dataclasses import dataclass

from drllm import Route
from drllm.core.options import Options, option
from drllm.methods.base import Method
from drllm.policies.constant import RoutePolicy


@dataclass(frozen=True)
class MineConfig(Options):
    """Skip one block."""

    block: int = option(1, "the block to skip", ge=0)


class Theirs(RoutePolicy):
    """One route."""

    name = "theirs"


METHOD = Method("mine", "one block skipped", "nobody", MineConfig, lambda routed, training_data, config, folder:
    Theirs(Route.full(routed.n_layers).edit(config.block, 0)))
'''


@pytest.fixture
def others(monkeypatch, tmp_path):
    (tmp_path / "others-1.dist-info").mkdir()
    (tmp_path / "others-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1\n")
    named = (
        "[drllm.methods]\nmine = others:METHOD\nodd = others:Theirs\nunmade = nowhere:METHOD\n[drllm.policies]\ntheirs = others:Theirs\n"
    )
    (tmp_path / "others-1.dist-info" / "entry_points.txt").write_text(named)
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("others", None)


def test_another_packages_method_and_policy_are_found_by_their_entry_points(others, tiny, run, capsys):
    assert {"mine", "odd", "unmade"} <= set(method_names())
    assert policy_class("theirs").__name__ == "Theirs", "as in a new process: nothing has imported the class, an artefact names it"
    policy = train(tiny, run, get_method("mine").config(block=2))
    assert str(policy.route) == "1101"
    tiny.policy = policy
    folder = tiny.save_pretrained(run / "mine")
    tiny.policy = None
    assert type(RoutedModel.from_pretrained(folder, base=tiny).policy).__name__ == "Theirs"
    shutil.rmtree(folder)
    assert method_of(get_method("mine").config()).name == "mine"
    assert main(["train", "--method", "mine", "--help"]) == 0
    assert "--block" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"method 'odd': its entry point gives a ABCMeta, expected a drllm\.methods\.base\.Method"):
        get_method("odd")
    with pytest.raises(InputError, match=r"method 'unmade' cannot be loaded from nowhere:METHOD .*: update or remove that package"):
        get_method("unmade")
    with pytest.raises(ArtifactError, match="unknown policy 'thiers'; did you mean 'theirs'"):
        policy_class("thiers")


def test_what_cannot_be_trained_gets_one_line(tiny, run, tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no \(question x route\) matrix: run `drllm search --paths"):
        train(tiny, tmp_path, "codebook")
    with pytest.raises(ArtifactError, match="holds no search records"):
        train(tiny, tmp_path, TRAIN)
    with pytest.raises(InputError, match="'routers' takes a RoutersConfig, got a CodebookConfig"):
        train(tiny, run, "routers", CodebookConfig())
    with pytest.raises(InputError, match="dict holds the options of no method"):
        train(tiny, run, {"method": "routers"})
    with pytest.raises(InputError, match=r"no codebook spends 0\.10"):
        train(tiny, run, CodebookConfig(block=1, budget=0.1))


N, K = 900, 6


def planted(seed: int, effect: float) -> tuple[Matrix, np.ndarray]:
    """Route 1 helps where the first feature is positive and harms elsewhere; the other routes are noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(N, 20)).astype(np.float32)
    base = rng.random(N) < 0.4
    flips = rng.random((N, K)) < np.where(base, 0.15, 0.1)[:, None]  # as many won as lost
    correct = np.column_stack([base, base[:, None] ^ flips])
    helps = features[:, 0] > 0
    likely = rng.random(N) < effect
    correct[likely, 1] = helps[likely]
    margins = (correct - 0.5 + 0.3 * rng.normal(size=correct.shape)).astype(np.float32)
    routes = [Route.full(8), *(Route.full(8).edit(2 + place, 0) for place in range(K))]
    tasks, ids = ("t",) * N, tuple(map(str, range(N)))
    return Matrix(tuple(routes), tasks, ids, ((1,),) * N, correct, margins, "raw", "key"), features


def near(features: np.ndarray) -> Read:
    return Read(features, np.zeros(len(features)))


def fitted(fit: Matrix, features: np.ndarray, tune: Matrix, tune_features: np.ndarray, price: float = 0.0, **options) -> Fitted:
    config = CodebookConfig(**options)
    folds = Folds(features, worth(fit, config), 5, 0)
    return fit_one(fit, tune, range(1, K + 1), folds, near(tune_features), price, math.inf, config)


def test_a_selector_finds_which_prompts_a_route_helps():
    fit, features = planted(0, 0.6)
    tune, tune_features = planted(1, 0.6)
    found = fitted(fit, features, tune, tune_features)
    oracle = np.where(tune_features[:, 0] > 0, tune.gains[:, 1], 0).mean()
    assert found.tune_gain > 0.7 * oracle > 0.05
    assert 0.2 < found.switched < 0.8


def test_targets_of_a_task_tell_kinds_of_prompts_apart_and_nothing_finer():
    """Route 1 helps one task, route 2 the other, and noise helps some questions of each: the two together help both."""

    def kinds(seed: int) -> tuple[Matrix, np.ndarray]:
        rng = np.random.default_rng(seed)
        n, full = 600, Route.full(8)
        is_first = np.arange(n) < n // 2
        routes = (full, full.edit(4, 2), full.edit(5, 0), full.edit(6, 0), full.edit(7, 2))
        chance = np.full((n, 5), 0.3)
        chance[is_first, 1] = chance[~is_first, 2] = 0.5
        chance[is_first, 2] = chance[~is_first, 1] = 0.2
        correct = rng.random((n, 5)) < chance
        margins = np.full((n, 5), np.nan, dtype=np.float32)
        features = rng.normal(size=(n, 12))
        features[:, 0] += np.where(is_first, 3, -3)
        ids = tuple(map(str, range(n)))
        return Matrix(routes, tuple(np.where(is_first, "a", "b")), ids, ((1,),) * n, correct, margins, "raw", "key"), features

    (fit, features), (tune, tune_features) = kinds(0), kinds(1)
    config = CodebookConfig(targets="task")
    targets = worth(fit, config)
    for task in ("a", "b"):
        mine = fit.gains[np.array(fit.tasks) == task]
        np.testing.assert_allclose(targets[np.array(fit.tasks) == task], [mine.mean(0) - mine.std(0, ddof=1) / np.sqrt(300)] * 300)
    allowed = np.array([False, True, True, True, True])
    order = choose_routes(fit, allowed, 4, config, 0.0)
    assert set(order) == {1, 2}, "the other routes gain nothing on any task"
    found = fit_one(fit, tune, order, Folds(features, targets, 5, 0), near(tune_features), 0.0, math.inf, config)
    picked = np.array(order)[choices(found, near(tune_features)) - 1]
    assert (picked[:300] == 1).mean() > 0.95
    assert (picked[300:] == 2).mean() > 0.95
    assert found.tune_gain == pytest.approx(0.2, abs=0.06)


def test_noise_leaves_the_base_alone():
    """Where no route helps any kind of prompt, hardly anything may be lost; most draws switch nothing."""
    stayed = 0
    for seed in range(6):
        fit, features = planted(10 + seed, 0.0)
        tune, tune_features = planted(40 + seed, 0.0)
        found = fitted(fit, features, tune, tune_features, confidence=0.99)
        stayed += found.threshold == STAY
        assert found.tune_gain > -0.03
    assert stayed >= 3


def test_without_abstention_noise_is_followed():
    fit, features = planted(11, 0.0)
    tune, tune_features = planted(41, 0.0)
    sure, free = (fitted(fit, features, tune, tune_features, abstain=abstain) for abstain in (True, False))
    assert free.switched > sure.switched


def test_a_price_buys_shorter_routes():
    fit, features = planted(0, 0.6)
    tune, tune_features = planted(1, 0.6)
    passes = [fitted(fit, features, tune, tune_features, price).tune_passes for price in (0.01, 5.0)]
    assert passes[0] > passes[1] == 7


def test_routes_are_taken_for_coverage_and_for_themselves():
    fit, _ = planted(0, 0.6)
    allowed = np.array([False] + [True] * K)
    order = choose_routes(fit, allowed, 3, CodebookConfig(), 0.0)
    assert order[0] == 1, "the route that helps half of the prompts"
    assert len(set(order)) == 3
    assert 0 not in order
    allowed[1] = False
    assert 1 not in choose_routes(fit, allowed, 9, CodebookConfig(), 0.0)


def test_routes_that_share_their_passes_are_preferred():
    """Of two repeats that gain nearly alike, the one whose block is repeated already; without a price, the better one."""
    full = Route.full(8)
    routes = (full, full.edit(2, 2), full.edit(5, 2), full.edit(2, 2, 0), full.edit(4, 0))
    gains = np.array([0.0, 0.50, 0.20, 0.19, -0.5])
    margins = np.tile(gains, (40, 1)) + np.linspace(-1, 1, 40)[:, None]
    correct = np.zeros((40, 5), dtype=bool)
    fit = Matrix(routes, ("t",) * 40, tuple(map(str, range(40))), ((1,),) * 40, correct, margins.astype(np.float32), "raw", "key")
    allowed = np.array([False, True, True, True, True])
    assert choose_routes(fit, allowed, 2, CodebookConfig(margin_weight=1, nesting=0.2), 0.0) == [1, 3]
    assert choose_routes(fit, allowed, 2, CodebookConfig(margin_weight=1, nesting=0), 0.0) == [1, 2]
    assert served_passes([full, full.edit(2, 2), full.edit(5, 2), full.edit(4, 0)]) == 10


def test_the_threshold_by_hand():
    """Sorted by score: 30 gains of 1, then 30 of -1. The bound is highest where the first 30 leave the base, the fewest that may."""
    scores = np.array([*np.linspace(1, 0.6, 30), *np.linspace(0.5, 0.1, 30)])
    gains = np.array([1] * 30 + [-1] * 30)
    assert lower_bound(scores, gains, 0.95) == pytest.approx((0.6 + 0.5) / 2)
    assert lower_bound(scores, -gains, 0.95) == lower_bound(scores, 0 * gains, 0.95) == STAY
    assert lower_bound(np.ones(60), gains, 0.95) == STAY, "equal scores leave together"
    assert lower_bound(scores[:20], gains[:20], 0.95) == STAY, "too few to say"


@pytest.mark.parametrize(("seed", "mean"), [(seed, mean) for seed in range(6) for mean in (0.02, 0.1, 0.5)])
def test_the_threshold_has_the_highest_lower_bound_of_all(seed, mean):
    rng = np.random.default_rng(seed)
    scores, gains = rng.integers(0, 25, 90) / 10, rng.normal(mean, 0.3, 90)

    def bound(threshold: float) -> float:
        left = gains[scores > threshold]
        return left.sum() - norm.ppf(0.9) * left.std() * math.sqrt(len(left)) if len(left) >= 30 else -math.inf

    values = sorted(set(scores))
    best = max([values[0] - 0.5, *((a + b) / 2 for a, b in itertools.pairwise(values))], key=bound)
    assert lower_bound(scores, gains, 0.9) == pytest.approx(best if bound(best) > 0 else STAY)


def test_features_are_standardised_in_float64_each_or_by_one_scale():
    features = (np.random.default_rng(0).normal(5, 1, size=(50, 4)) * [1, 5, 0, 900]).astype(np.float32)
    mean, scale = moments(features)
    exact = features.astype(float)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale, exact.std(0) + 1e-6, rtol=1e-12)
    np.testing.assert_allclose(moments(features, one_scale=True)[1], math.sqrt((exact.std(0) ** 2).mean()) + 1e-6)


@pytest.mark.parametrize("options", [{}, {"n_components": 3}, {"one_scale": True}])
def test_folds_pick_the_ridge_that_predicts_what_it_has_not_seen(options):
    rng = np.random.default_rng(5)
    features = rng.normal(size=(60, 30)) * rng.uniform(0.1, 9, 30)
    targets = rng.normal(size=(60, 3)) + features[:, :1] * [0, 0.3, 0]
    ridge, predicted = Folds(features, targets, 4, 3, **options).pick(picked := [2, 1])
    fold_of, folds = np.random.default_rng(3).permutation(60) % 4, range(4)
    fitted = [fit_ridges(features[fold_of != fold], targets[fold_of != fold], **options) for fold in folds]
    unseen = {penalty: np.zeros((60, 2)) for penalty in PENALTIES}
    for penalty, fold in itertools.product(PENALTIES, folds):
        unseen[penalty][fold_of == fold] = fitted[fold][penalty].predict(features[fold_of == fold])[:, picked]
    best = min(PENALTIES, key=lambda penalty: ((unseen[penalty] - targets[:, picked]) ** 2).mean())
    assert ridge.penalty == best > PENALTIES[0], "a test of a choice"
    np.testing.assert_allclose(predicted, unseen[best])
    np.testing.assert_allclose(ridge.weight, fit_ridges(features, targets, **options)[best].weight[:, picked])
    assert (len(set(ridge.scale)) == 1) == ("one_scale" in options)


@pytest.mark.parametrize("n_features", [12, 60, 90])
def test_few_components_find_what_kinds_of_questions_differ_in(n_features):
    """Two kinds of questions, far apart in many features: one component predicts what all features predict with more noise."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 60)
    features = rng.normal(size=(60, n_features)) + 4 * kind[:, None] * rng.normal(size=n_features)
    targets = np.where(kind, 1.0, -1.0)[:, None]
    directions = principal_directions((features - features.mean(0)) / features.std(0), 1)
    component = (features - features.mean(0)) / features.std(0) @ directions
    assert component.shape == (60, 1)
    assert component.std() == pytest.approx(1, abs=1e-6)
    ridge = fit_ridges(features, targets, 1)[1.0]
    predicted = ridge.predict(features)
    assert (np.sign(predicted) == np.sign(targets)).all()
    slope = ((component * (targets - targets.mean())).sum() / ((component**2).sum() + 1)) * component + targets.mean()
    np.testing.assert_allclose(predicted, slope, atol=1e-4)


@pytest.mark.parametrize("n_features", [7, 60])
def test_a_ridge_is_the_ridge_by_least_squares(n_features):
    """Both ways round (fewer features than questions, and more) against least squares with the penalty as further rows."""
    rng = np.random.default_rng(0)
    features, targets = rng.normal(3, 2, size=(40, n_features)), rng.normal(size=(40, 3))
    for penalty, ridge in fit_ridges(features, targets).items():
        z = (features - features.mean(0)) / features.std(0)
        rows = np.vstack([z, np.sqrt(penalty) * np.eye(n_features)])
        by_hand = np.linalg.lstsq(rows, np.vstack([targets - targets.mean(0), np.zeros((n_features, 3))]), rcond=None)[0]
        np.testing.assert_allclose(ridge.weight, by_hand, rtol=1e-4, atol=1e-7)


def test_ties_on_tune_take_the_smaller_book():
    fit, features = planted(0, 0.6)
    one = fitted(fit, features, fit, features)
    small = dataclasses.replace(one, routes=one.routes[:3])
    assert choose([one, small], 8, 1.0) is small
    assert choose([dataclasses.replace(one, tune_passes=7.0, tune_gain=-1), small], 8, 0.9).tune_passes == 7.0


def test_the_reach_leaves_out_the_share_that_was_asked_for():
    away = np.random.default_rng(0).normal(5, 3, 1000)
    read = Read(np.zeros((1000, 0)), away)
    assert (away > reach_of(read, 1, 0.02)).sum() == 20
    assert reach_of(read, 1, 0.0) == math.inf
    assert reach_of(read, 0, 0.0) == away.max(), "a text stranger than all that were learned from keeps the base"


@pytest.mark.slow
def test_routes_added_later_join_the_matrix(tiny, data, tmp_path):
    """Two calls with routes are the matrix of both, also after a merge; a matrix of other questions is refused, two tasks share routes."""
    splits = dataclasses.replace(SEARCH, splits=("fit", "tune"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    search(tiny, [TASK], splits, whole, data, routes=ROUTES[:6])
    search(tiny, [TASK], splits, parts, data, routes=ROUTES[:4])
    search(tiny, [TASK], splits, parts, data, routes=ROUTES[2:6])
    merge_runs([parts], tmp_path / "merged")
    for split in ("fit", "tune"):
        once, *others = (TrainingData(tiny, run).matrix(split) for run in (whole, parts, tmp_path / "merged"))
        for joined in others:
            assert (once.routes, once.ids) == (joined.routes, joined.ids)
            assert np.array_equal(once.correct, joined.correct)
            assert np.array_equal(once.margins, joined.margins)
    training_data = TrainingData(tiny, parts)
    assert [len(task.questions) for task in training_data.fit_tasks] == [len(training_data.matrix())]
    assert all(len(record.routes) == 7 for _, record in training_data.fit_records)
    assert sum(len(ask.questions) for ask in training_data.tune()) == len(training_data.matrix("tune"))
    train(tiny, parts, CodebookConfig(block=1, n_routes=4))
    search(tiny, ["arc_challenge"], splits, parts, data, routes=ROUTES[1:4])
    assert TrainingData(tiny, parts).matrix().routes == (Route.full(L), *ROUTES[1:4])
    with pytest.raises(ArtifactError, match=r"config\.limit = 0, now it is 5: use another --out, or the same settings"):
        search(tiny, [TASK], dataclasses.replace(splits, limit=5), parts, data, routes=ROUTES[:2])


def test_loops_share_what_their_visits_have_in_common_at_their_beginning():
    full = Route.full(8)
    assert served_passes([full, full.loop(1, 3)]) == 8 + 3
    assert served_passes([full, full.loop(1, 3), full.loop(1, 3, times=3)]) == 8 + 3 + 3
    assert served_passes([full, full.loop(1, 3), full.loop(1, 3, 0.5)]) == 8 + 3 + 3, "a damped loop is another"
    assert served_passes([full.loop(1, 3), full.loop(2, 3)]) == 8 + 3 + 2
    assert served_passes([full.loop(1, 3), full.loop(4, 5)]) == 8 + 3 + 2
    assert served_passes([full.edit(2, 0), full.edit(2, 2)]) == 8 + 1


LOOPS = [Route.full(L), Route.parse("1101"), Route.full(L).loop(1, 2), Route.full(L).loop(2, 3), Route.full(L).loop(1, 2, 0.5)]


@pytest.fixture(scope="module")
def loop_run(tiny, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("loops")
    search(tiny, [TASK], dataclasses.replace(SEARCH, splits=("fit", "tune")), out, data, routes=LOOPS)
    return out


def test_a_codebook_reads_before_the_first_loop_ends_and_decides_visits(tiny, loop_run, tmp_path):
    """A loop of blocks 1 and 2 is an edit at block 2: there is none for a selector that reads before block 3."""
    options = CodebookConfig(block=2, n_routes=4, components=4, abstain=False)
    policy = train(tiny, loop_run, options)
    assert isinstance(policy, Codebook)
    assert {str(route) for route in policy.routes} == {str(route) for route in LOOPS}
    tiny.policy = policy
    tiny.save_pretrained(tmp_path)
    tiny.policy = None
    assert RoutedModel.from_pretrained(tmp_path, base=tiny).policy.routes == policy.routes
    card = (tmp_path / "README.md").read_text()
    assert "tags: [drllm, adaptive-depth, rys]" in card
    assert "`0-2,(1-2)*0.5,3` (runs 1-2 again after 2 at strength 0.5)" in card
    assert "promise: none" in card
    tiny.policy = None
    late = train(tiny, loop_run, dataclasses.replace(options, block=3), name="late")
    assert {str(route) for route in late.routes[1:]} == {"0-3,2-3"}
    weights = torch.randn(2 * tiny.hidden_size, 4, generator=torch.Generator().manual_seed(0))
    features = read_prompts(tiny, [tiny.tokenizer(text)["input_ids"] for text in TEXTS], [2], 600)[2]
    codebook = Codebook(LOOPS, StateSelector(2, features.mean(0), features.std(0) + 0.1, weights, torch.zeros(4)), [Point(0.0)])
    wanted = codebook.chosen(features)
    assert sum(not route.is_in_place for route in wanted) >= 2
    together = tiny.generate(TEXTS, policy=codebook, max_new_tokens=4, do_sample=False)
    assert [output.route for output in together] == wanted
    for text, output in zip(TEXTS, together, strict=True):
        alone = tiny.generate(text, policy=output.route, max_new_tokens=4, do_sample=False)[0]
        assert alone.token_ids == output.token_ids


TEXTS = ["what is 5 and 6?", "x", "a much longer prompt than the others, is it not?", "why?", "12: what is 312 and 104?", "Hello there"]


def test_static_takes_loops(tiny, loop_run, data):
    assert train(tiny, loop_run, StaticConfig(budget=0.9)).route == LOOPS[1], "the only shorter one"


def test_policies_of_loops_are_evaluated_beside_their_baselines(tiny, loop_run, data):
    route = Route.full(L).loop(1, 2, 0.5)
    tiny.policy = RoutePolicy(route)
    tiny.save_pretrained(loop_run / "static")
    tiny.policy = None
    methods = ["base", "static", "random-static", "shuffled-static"]
    summary = evaluate(tiny, methods, [TASK], loop_run, dataclasses.replace(EVALUATE, split="tune", limit=12), data)
    rows = {row.method: row for row in summary.rows}
    assert {rows[name].mean_passes for name in methods[1:]} == {L + 2}
    assert (rows["static"].identity_share, rows["static"].distinct_routes) == (0, 1)
    assert rows["shuffled-static"].accuracy == rows["static"].accuracy
    found = read_answers(RunFolder(loop_run).answers("tune-first-12"))["random-static", TASK]
    moved = [Route.parse(text) for text in found.routes]
    assert {len(moved_route.loops) for moved_route in moved} == {1}
    assert len(set(moved)) > 1


def test_routers_leave_loops_out_and_say_how_many(tiny, data, tmp_path, caplog):
    caplog.set_level("INFO")
    search(tiny, [TASK], dataclasses.replace(SEARCH, max_loop_span=3, limit=24, early_stop=True), tmp_path, data)
    records = read_records(tmp_path / "search")
    looped = [record for record in records if record.chosen and not record.chosen.is_in_place]
    n_kept = sum(record.kept for record in records)
    assert 0 < len(looped) < n_kept, "the test can fail"
    assert isinstance(train(tiny, tmp_path, dataclasses.replace(TRAIN, preset="paper", held_out=0)), Routers)
    said = f"routers decide one action a block: {len(looped)} of {n_kept} right routes, which have loops, are left out"
    assert [record.message for record in caplog.records].count(said) == 1
    caplog.clear()
    train(tiny, tmp_path, dataclasses.replace(TRAIN, preset="default", tune_questions=0))
    right = [route for record in records for route, reward in zip(record.routes, record.rewards, strict=True) if reward]
    n_looped = sum(not route.is_in_place for route in right)
    said = f"routers decide one action a block: {n_looped} of {len(right)} right routes, which have loops, are left out"
    assert [record.message for record in caplog.records].count(said) == 1


def test_a_static_route_of_the_matrix_is_looked_up(tiny, data, tmp_path):
    search(tiny, [TASK], SEARCH, tmp_path, data, routes=ROUTES)
    asked = folder_bytes(tmp_path / "verdicts")
    train(tiny, tmp_path, "static")
    assert folder_bytes(tmp_path / "verdicts") == asked
    table = json.loads((tmp_path / "train" / "static" / "candidates.json").read_text())["candidates"]
    matrix = TrainingData(tiny, tmp_path).matrix()
    gains = dict(zip(map(str, matrix.routes), matrix.mixed_gains(0.5).mean(0), strict=True))
    assert len(table) == 1 + len(ROUTES)
    assert table[0]["route"] == "1" * L
    assert all(row["gain"] == pytest.approx(gains[row["route"]]) for row in table)


def test_a_tuned_static_route_is_the_best_of_fit_and_tune_together(tiny, run):
    training_data = TrainingData(tiny, run)
    gains = np.concatenate([training_data.matrix(split).mixed_gains(0.5) for split in ("fit", "tune")])
    lower = gains.mean(0) - gains.std(0, ddof=1) / np.sqrt(len(gains))
    routes, passes = training_data.matrix().routes, training_data.matrix().passes()
    assert train(tiny, run, StaticConfig(use_tune=True)).route == routes[int(lower.argmax())]
    best = max(np.flatnonzero(passes <= 0.75 * L), key=lambda place: lower[place])
    assert train(tiny, run, StaticConfig(use_tune=True, budget=0.75)).route == routes[int(best)]
    with pytest.raises(InputError, match="no route of the matrix spends at most 1"):
        train(tiny, run, StaticConfig(use_tune=True, budget=0.25))


def test_too_few_questions_for_a_budget_are_named(tiny, data, tmp_path):
    search(tiny, [TASK], dataclasses.replace(SEARCH, limit=8), tmp_path, data)
    with pytest.raises(InputError, match=r"^no route of at most 3\.0 passes, the budget, was tried on 10 fit questions"):
        train(tiny, tmp_path, StaticConfig(budget=0.75))


def test_gains_mix_margin_and_verdict():
    margins, right = np.array([[0.0, 1.0, -4.0], [0.0, 0.5, 0.1]]), np.array([[False, True, False], [True, True, False]])
    found = mixed_gain(margins, right, np.array([[2.0], [1.0]]), 0.5)
    np.testing.assert_allclose(found, [[0, 0.25 + 0.5, -0.5], [0, 0.25, 0.05 - 0.5]])
    np.testing.assert_allclose(mixed_gain(np.full((1, 2), np.nan), np.array([[False, True]]), 1.0, 0.5), [[0, 1]])


def test_a_route_needs_questions_that_did_not_choose_it():
    rng = np.random.default_rng(0)
    good, noise = rng.normal(0.5, 1, 200), rng.normal(0, 1, 200)
    assert confirmed(good, good, 0.9)
    assert not confirmed(good, noise - noise.mean(), 0.9)
    assert not confirmed(-good, good, 0.9)


def test_operating_points_are_shares_of_the_tune_prompts_that_leave():
    matrix, features = planted(0, 0.5)
    tune, tune_features = planted(1, 0.5)
    best = fitted(matrix, features, tune, tune_features)
    points = thresholds(best, near(tune_features))
    left = [float((choices(dataclasses.replace(best, threshold=value), near(tune_features)) > 0).mean()) for value in points]
    assert len(points) == 4
    assert left == pytest.approx([share * best.switched for share in (0.25, 0.5, 0.75, 1)], abs=1 / N)
    assert best.switched > 0.3
    assert points[-1] == best.threshold
    assert thresholds(dataclasses.replace(best, threshold=STAY), near(tune_features)) == [STAY]


def test_a_policy_is_calibrated_saved_with_its_promise_and_refused_for_a_smaller_one(tiny, run, tmp_path):
    size = 2 * tiny.hidden_size
    policy = Codebook([Route.full(L), ROUTES[0]], plain_selector(1, size, [1.0]), [Point(0)])
    chosen, promise = calibrate(tiny, run, policy, PromiseConfig(calibrate="calibrate", epsilon=0.4, delta=0.4))
    assert promise.n >= 10
    assert promise.point == 0, "so wide a promise is kept"
    tiny.policy = chosen
    try:
        folder = tiny.save_pretrained(tmp_path / "p")
    finally:
        tiny.policy = None
    again = RoutedModel.from_pretrained(folder, base=tiny).policy
    assert again is not None
    assert again.promise == json.loads(json.dumps(promise.to_json()))
    assert promise.sentence in (folder / "README.md").read_text()
    tiny.generate("x", policy=again, epsilon=0.4, max_new_tokens=1, check_prompt_format=False)
    for epsilon in (0.1, float("nan")):
        with pytest.raises(InputError, match=r"asks for more than the 0\.4"):
            tiny.generate("x", policy=again, epsilon=epsilon, max_new_tokens=1, check_prompt_format=False)
    again.prompt_format = "chat"
    with pytest.raises(InputError, match="the promise was made for 'chat' prompts, these are 'raw'"):
        tiny.generate("x", policy=again, epsilon=0.4, max_new_tokens=1, check_prompt_format=False)
    again.prompt_format = None
    saved = json.loads((folder / "drllm_config.json").read_text())
    for broken in ({"epsilon": 0.0001}, saved["promise"] | {"epsilon": "small"}):
        (folder / "drllm_config.json").write_text(json.dumps(saved | {"promise": broken}))
        with pytest.raises(ArtifactError, match="a promise that is none"):
            RoutedModel.from_pretrained(folder, base=tiny)
    again.promise = again.promise | {"dtype": "torch.bfloat16"}
    with pytest.raises(InputError, match=r"promised for torch\.bfloat16 weights, these are torch\.float32"):
        tiny.generate("x", policy=again, epsilon=0.4, max_new_tokens=1, check_prompt_format=False)
    tiny.policy = None


def test_a_point_that_changes_nothing_does_not_hide_the_next(tiny, run):
    size = 2 * tiny.hidden_size
    points = [Point(1e9), Point(-1e9)]  # nobody leaves the base, everybody does
    policy = Codebook([Route.full(L), ROUTES[0]], plain_selector(1, size, [1.0]), points)
    _, promise = calibrate(tiny, run, policy, PromiseConfig(calibrate="calibrate", epsilon=0.4, delta=0.4))
    assert [row["point"] for row in promise.tested] == [1]


def test_what_fails_the_gate_is_the_base(tiny, run):
    policy = train(tiny, run, "routers", TRAIN)
    chosen, promise = calibrate(tiny, run, policy, PromiseConfig(calibrate="calibrate", epsilon=1e-6, delta=1e-6))
    assert promise.point is None
    assert chosen.route == Route.full(L)
    tiny.generate("x", policy=chosen, epsilon=0.001, max_new_tokens=1)
    with pytest.raises(InputError, match="asks for a promise and this policy has none"):
        tiny.generate("x", policy=policy, epsilon=0.5, max_new_tokens=1, check_prompt_format=False)


def test_a_promise_of_agreement_covers_short_greedy_answers_alone(tiny):
    policy = RoutePolicy(ROUTES[0])
    policy.promise = {"point": 0, "epsilon": 0.05, "dtype": str(tiny.model.dtype), "tokens": 4}
    tiny.generate("x", policy=policy, epsilon=0.05, max_new_tokens=4)
    with pytest.raises(InputError, match="promised for greedy answers of at most 4 tokens, not for answers of 5 tokens: leave epsilon out"):
        tiny.generate("x", policy=policy, epsilon=0.05, max_new_tokens=5)
    with pytest.raises(InputError, match="of at most 4 tokens, not for sampled answers"):
        tiny.generate("x", policy=policy, epsilon=0.05, max_new_tokens=4, do_sample=True)


def test_a_code_book_follows_its_selector_only_where_it_may_abstain(tiny, run):
    """Where no gain is sure, so that tune sees none, the base is kept."""
    sure = CodebookConfig(block=1, confidence=0.9999)
    assert train(tiny, run, sure).route == Route.full(L)
    assert train(tiny, run, dataclasses.replace(sure, abstain=False)).route is None


def test_the_promise_says_what_was_judged_and_how_many_questions_of_each_task(tiny, run):
    _, promise = calibrate(tiny, run, RoutePolicy(ROUTES[0]), PromiseConfig(calibrate="calibrate", epsilon=0.4, delta=0.4))
    assert promise.tasks == {TASK: promise.n}
    assert f"{promise.n} calibrate questions of {TASK}, judged by loglik, acc_norm" in promise.sentence


def test_every_other_policy_tried_on_the_same_questions_is_counted(tiny, run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    promise = PromiseConfig(calibrate="calibrate", epsilon=0.4, delta=0.4)

    def earlier(route: Route, promise: PromiseConfig = promise) -> int:
        return calibrate(tiny, tmp_path / "run", RoutePolicy(route), promise)[1].earlier

    before = earlier(ROUTES[0])
    assert [earlier(route) - before for route in (ROUTES[0], ROUTES[1], ROUTES[0])] == [0, 1, 1], "the same again is no other"
    found = calibrate(tiny, tmp_path / "run", RoutePolicy(ROUTES[1]), promise)[1]
    less = dataclasses.replace(promise, epsilon=0.3)
    assert earlier(ROUTES[1], less) == found.earlier, "the same policy, asked for another promise"
    assert before >= len({*ROUTES} - {Route.full(L)}), "routes of a list that was answered on them are tries, too"
    more = [Route.full(L).edit(0, 0).edit(1, 2), Route.full(L).edit(1, 0).edit(3, 2), ROUTES[0]]
    [manifest] = path_manifests(tmp_path / "run").values()
    search(tiny, [TASK], manifest.search_config, tmp_path / "run", data, routes=more)
    assert earlier(ROUTES[1]) == found.earlier + 2
    size, thresholds = 2 * tiny.hidden_size, [Point(1e9), Point(0.0), Point(-1e9)]
    codebook = Codebook([Route.full(L), ROUTES[1]], plain_selector(1, size, [0.0], torch.ones(size, 1)), thresholds)
    first, again = (calibrate(tiny, tmp_path / "run", codebook, asked)[1] for asked in (promise, less))
    assert len(codebook.operating_points()) > 1
    assert again.earlier == first.earlier, "also of several points, which are tested in an order until one fails"


def record(routes: list[str], margins: list[float]) -> RouteRecord:
    found = {Route.parse(text): verdict(not margin <= 0, margin) for text, margin in zip(routes, margins, strict=True)}
    return made_record(others=(0.0,) * (len(found) - 1), routes=tuple(found), verdicts=found, chosen=Route.parse(routes[0]))


def test_soft_targets_by_hand():
    """Two right paths, one wrong: weights exp(0) and exp(-1), over their sum."""
    target = soft_target(record(["1111", "1011", "1121"], [0.5, 1.0, -0.2]), 0.5)
    low = np.exp(-1) / (1 + np.exp(-1))
    assert target[1] == pytest.approx([1 - low, low, 0], abs=1e-6)
    assert target[2] == pytest.approx([0, 1, 0])
    assert target.sum(1) == pytest.approx(np.ones(4))
    no_margins = soft_target(record(["1111", "1011"], [np.nan, np.nan]), 0.5)
    assert no_margins[1] == pytest.approx([0.5, 0.5, 0])


@pytest.mark.parametrize("variant", [{"shared": True}, {"first_block": True}])
def test_router_variants_train_and_decide_alike_alone_and_in_a_batch(variant, tiny, run):
    routers = train(tiny, run, dataclasses.replace(TRAIN, preset="paper", **variant))
    texts = ["what is 1 and 2?", "so?"]
    together = tiny.generate(texts, policy=routers, max_new_tokens=1)
    assert [output.route for output in together] == [tiny.generate(text, policy=routers, max_new_tokens=1)[0].route for text in texts]


def test_routers_learn_from_a_dense_matrix_alone(tiny, data, tmp_path):
    search(tiny, [TASK], SEARCH, tmp_path, data, routes=ROUTES)
    routers = train(tiny, tmp_path, dataclasses.replace(TRAIN, preset="default", tune_questions=0))
    assert isinstance(routers, Routers)
    with pytest.raises(ArtifactError, match="no tree search"):
        train(tiny, tmp_path, dataclasses.replace(TRAIN, preset="paper"))


def test_the_soft_loss_of_a_sure_target_is_the_focal_loss():
    logits, labels, alpha = torch.randn(4, 6, 3), torch.randint(0, 3, (4, 6)), torch.tensor([2.0, 0.5, 1.0])
    for gamma in (0.0, 2.0):
        sure = torch.nn.functional.one_hot(labels, 3).float()
        torch.testing.assert_close(soft_loss(logits, sure, alpha, gamma), focal_loss(logits, labels, alpha, gamma))
    weights = rarity_weights(torch.tensor([0.01, 0.98, 0.01]))
    assert weights[0] / weights[1] == pytest.approx(98**0.5, rel=1e-5)
    assert weights.mean() == pytest.approx(1)


@pytest.mark.slow
def test_the_control_is_set_on_tune_within_the_budget(tiny, run):
    free = train(tiny, run, dataclasses.replace(TRAIN, preset="default", tune_questions=20))
    table = json.loads((run / "train" / "routers" / "knob.json").read_text())["points"]
    best = max(row["accuracy"] for row in table)
    assert len(table) == 10
    assert isinstance(free, Routers)
    place = [point.control for point in Routers(free.config).operating_points()].index(free.control)
    assert table[place]["accuracy"] == best
    tight = train(tiny, run, dataclasses.replace(TRAIN, preset="default", tune_questions=20, budget=0.6))
    assert isinstance(tight, Routers)
    table = json.loads((run / "train" / "routers" / "knob.json").read_text())["points"]
    assert len(table) == 16, "a budget may call for settings beyond the routers themselves"
    within = [row for row in table if row["mean_passes"] <= 0.6 * L]
    points = [point.control for point in Routers(free.config).operating_points()] + list(BELOW)
    assert table[points.index(tight.control)] in within
    assert table[points.index(tight.control)]["accuracy"] == max(row["accuracy"] for row in within)
    paper = train(tiny, run, TRAIN)
    assert isinstance(paper, Routers)
    assert paper.control is None


def test_what_any_search_of_the_run_has_seen_is_not_calibrated_on(tiny, tmp_path):
    """The search read one file, the matrix another in which the search's fit questions stand as calibrate questions."""
    rows, few = questions(120), dataclasses.replace(SEARCH, n_simulations=4)
    one = write_rows(tmp_path / "a.jsonl", [row | {"part": "train" if place else "dev"} for place, row in enumerate(rows)])
    search(tiny, [TASK], few, tmp_path / "run", one)
    searched = {record.id for record in read_records(tmp_path / "run" / "search")}
    fresh = [row | {"id": f"new {row['id']}", "question": f"new {row['question']}"} for row in rows]
    again = [row | {"id": f"again {row['id']}"} for row in rows if row["id"] in searched]
    both = write_rows(tmp_path / "b.jsonl", fresh + again)  # without parts, other shares of the same hash are calibrate questions
    search(tiny, [TASK], few, tmp_path / "run", both, routes=ROUTES[:2])
    _, promise = calibrate(tiny, tmp_path / "run", RoutePolicy(ROUTES[0]), PromiseConfig(calibrate="calibrate", epsilon=0.4))
    asked = load_task(TASK, both).examples["calibrate"]
    assert any(example.id.startswith("again ") for example in asked), "the test can fail"
    assert promise.n == sum(example.id.startswith("new ") for example in asked)
