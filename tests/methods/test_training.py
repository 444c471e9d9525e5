"""Losses, metrics and the training of all routers together, against values by hand and modules of their own."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import families
from drllm import Route, RoutedModel, RoutersConfig
from drllm.core.errors import ArtifactError, InputError
from drllm.methods.features import Features, extract_features, kept_tensors
from drllm.methods.router_training import class_weights, f1_scores, focal_loss, macro_f1, measure, train_routers, warmup_cosine
from drllm.methods.routers import held_back_of
from drllm.policies.routers import N_ACTIONS, RouterConfig, Routers
from record_factory import record
from reference import path_model


def test_class_weights_by_hand():
    # beta = 0.5: (1 - b) / (1 - b^n) is 1, 2/3, 4/7 for n = 1, 2, 3; their mean is 47/63.
    expected = torch.tensor([63 / 47, 42 / 47, 36 / 47])
    torch.testing.assert_close(class_weights(torch.tensor([1, 2, 3]), 0.5), expected)


def test_class_weights_are_one_without_rebalancing_and_finite_for_an_absent_class():
    assert class_weights(torch.tensor([5, 70, 9]), 0.0).tolist() == [1, 1, 1]
    weights = class_weights(torch.tensor([0, 70, 9]), 0.999)
    assert weights.isfinite().all()
    assert torch.equal(weights, class_weights(torch.tensor([1, 70, 9]), 0.999))
    assert abs(weights.mean().item() - 1) < 1e-6


def test_focal_loss_by_hand():
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    labels = torch.tensor([1, 0])
    alpha = torch.tensor([3.0, 0.5, 1.0])
    # alpha (1 - p)^2 (-log p) at p = 0.5 and p = 0.1
    expected = (0.5 * 0.25 * math.log(2) + 3 * 0.81 * math.log(10)) / 2
    assert focal_loss(probabilities.log(), labels, alpha, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_without_gamma_is_weighted_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 3, generator=generator)  # blocks, examples, classes
    labels = torch.randint(0, 3, (4, 6), generator=generator)
    alpha = torch.tensor([0.4, 0.9, 1.7])
    # The mean over labels, not torch's mean weighted by alpha.
    expected = functional.cross_entropy(logits.reshape(-1, 3), labels.reshape(-1), weight=alpha, reduction="none").mean()
    torch.testing.assert_close(focal_loss(logits, labels, alpha, 0.0), expected)
    torch.testing.assert_close(focal_loss(logits, labels, alpha, 1e-9), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_has_finite_gradients_when_sure(gamma):
    logits = torch.tensor([[200.0, 0, 0], [-200.0, 0, 0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), torch.ones(3), gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_f1_by_hand_and_an_absent_class():
    predictions, labels = torch.tensor([[1, 1, 0], [1, 0, 1]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    scores = f1_scores(predictions, labels, 3)
    assert scores[0] == pytest.approx(2 * 1 / (2 + 2))
    assert scores[1] == pytest.approx(2 * 3 / (4 + 4))
    assert math.isnan(scores[2])
    assert macro_f1(scores) == pytest.approx((0.5 + 0.75) / 2)
    # Predicted though never a label, or the other way round: F1 is 0, and counts.
    assert f1_scores(torch.tensor([2]), torch.tensor([1]), 3)[1:] == [0, 0]
    assert math.isnan(macro_f1([float("nan")]))


def test_mean_passes_counts_a_repeat_twice():
    routers = Routers(RouterConfig(3, 4, 2, 2))
    routers.tensors["w2"].zero_()
    routers.tensors["b2"].copy_(torch.eye(3)[[0, 1, 2]])  # block 0 skips, block 1 executes, block 2 repeats, whatever the states
    labels = torch.tensor([[0, 0], [1, 1], [2, 1]])
    metrics = measure(routers, torch.randn(3, 2, 2, 4), torch.ones(2, 2, dtype=torch.bool), labels, torch.tensor([0, 1]))
    assert metrics["mean_passes"] == 3
    assert metrics["f1_skip"] == 1
    assert metrics["f1_execute"] == pytest.approx(4 / 5)
    assert metrics["f1_repeat"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx((1 + 4 / 5 + 2 / 3) / 3)


def planted(n_records: int = 300, n_layers: int = 3, n_windows: int = 4, size: int = 12, seed: int = 0, noise: float = 0.3) -> Features:
    """Each block's label is the largest of three directions of its own, read off the mean window: linearly separable, learnable."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n_records, n_layers), generator=generator)
    directions = torch.randn(n_layers, 3, size, generator=generator)
    centres = directions[torch.arange(n_layers)[None], labels]  # (N, L, D)
    scale = torch.tensor([0.1, 1.0, 80.0])[torch.arange(n_layers) % 3]  # blocks differ in scale, as in a real model
    pooled = (centres[:, :, None] + noise * torch.randn(n_records, n_layers, n_windows, size, generator=generator)) * scale[:, None, None]
    n_valid = torch.randint(1, n_windows + 1, (n_records,), generator=generator)
    valid = torch.arange(n_windows)[None] < n_valid[:, None]
    return Features((pooled * valid[:, None, :, None]).bfloat16(), valid, labels)


QUICK = RoutersConfig(epochs=8, width=16, n_windows=4)
SHAPE = RouterConfig(n_layers=3, hidden_size=12, n_windows=4, width=16)


def held_back(features: Features, every: int = 5) -> torch.Tensor:
    return torch.arange(len(features.labels)) % every == 0


def test_a_planted_problem_is_learnt():
    features = planted()
    history: list[dict] = []
    train_routers(features, held_back(features), QUICK, SHAPE, history.append)
    names = {"macro_f1", "f1_skip", "f1_execute", "f1_repeat", "accuracy", "mean_passes"}
    assert history[0].keys() == {"epoch", "loss"} | names | {f"val_{name}" for name in names}
    assert [metrics["epoch"] for metrics in history] == list(range(1, 9))
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert history[-1]["val_macro_f1"] > 0.95
    assert history[-1]["val_accuracy"] > 0.95
    assert history[-1]["macro_f1"] > 0.95
    assert history[-1]["val_mean_passes"] == pytest.approx(features.labels[held_back(features)].sum(1).float().mean().item(), abs=0.2)


def test_labels_that_depend_on_nothing_are_not_generalised():
    features = planted()
    shuffled = replace(features, labels=features.labels[torch.randperm(300, generator=torch.Generator().manual_seed(9))])
    history: list[dict] = []
    train_routers(shuffled, held_back(features), QUICK, SHAPE, history.append)
    assert history[-1]["val_macro_f1"] < 0.6


def saved_bytes(routers: Routers, folder) -> bytes:
    folder.mkdir()
    routers.save(folder)
    return (folder / "routers.safetensors").read_bytes()


def test_same_seed_same_bytes_and_nothing_else_is_changed(tmp_path):
    features, before = planted(60), torch.random.get_rng_state()
    runs = [
        saved_bytes(train_routers(features, held_back(features), replace(QUICK, epochs=2, seed=seed), SHAPE), tmp_path / str(index))
        for index, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_held_back_records_never_train(tmp_path):
    features = planted(60)
    held = held_back(features)
    other = Features(features.pooled.clone(), features.valid, features.labels.clone())
    other.pooled[held] = 1e4
    other.labels[held] = 2  # would change the class counts
    config = replace(QUICK, epochs=2)
    trained = [saved_bytes(train_routers(f, held, config, SHAPE), tmp_path / name) for f, name in ((features, "a"), (other, "b"))]
    assert trained[0] == trained[1]


@pytest.mark.parametrize(("normalize", "preset"), [(True, "default"), (False, "default"), (False, "paper")])
def test_training_together_equals_modules_of_their_own(normalize, preset):
    """A loop over separate modules, as the paper trains them, reaches the same weights; preset paper clips the gradient of all."""
    kind = "rms" if normalize else "raw"
    config = RoutersConfig(preset, epochs=2, width=16, n_windows=4, batch_size=8, normalize=kind, lr=3e-3)
    shape = replace(SHAPE, normalize=normalize)
    features = planted(40)
    held = held_back(features)
    trained = train_routers(features, held, config, shape)

    start, names = Routers(shape, config.seed), {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias"}
    modules = nn.ModuleList()
    for block in range(3):
        network = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, N_ACTIONS))
        network.load_state_dict({at: start.tensors[name][block].t() for name, at in names.items()})
        modules.append(network)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=config.lr, weight_decay=config.weight_decay, foreach=False)
    rows = (~held).nonzero()[:, 0]
    counts = torch.stack([(features.labels[rows] == action).sum() for action in range(3)])
    raw = (1 - config.beta) / (1 - config.beta ** counts.double())
    alpha = (raw / raw.mean()).float()
    generator = torch.Generator().manual_seed(config.seed)
    n_steps, step = 2 * 4, 0  # 32 records in batches of 8
    norms: list[float] = []
    for _ in range(config.epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(config.batch_size):
            losses = []
            for row in batch.tolist():
                for block, network in enumerate(modules):
                    windows = features.pooled[row, block][features.valid[row]].float()
                    if normalize:
                        windows = windows / (windows.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                    label = features.labels[row, block]
                    log_p = network(windows).mean(0).log_softmax(-1)[label]
                    losses.append(-alpha[label] * (1 - log_p.exp()) ** config.gamma * log_p)
            for group in optimizer.param_groups:  # no warm-up: a tenth of 8 steps is none
                group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / n_steps))
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0 if preset == "paper" else math.inf)))
            optimizer.step()
            step += 1
    for block, network in enumerate(modules):
        for name, at in names.items():
            torch.testing.assert_close(trained.tensors[name][block], network.state_dict()[at].t(), rtol=1e-3, atol=1e-4)
    assert (trained.tensors["w1"] - start.tensors["w1"]).abs().max() > 5e-3, "the case must be able to fail"
    assert preset == "default" or max(norms) > 2, "the gradient must need clipping"


@pytest.mark.parametrize("absent", [0, 2])
def test_an_action_without_labels_is_nan_and_left_out_of_macro(absent):
    features = planted()
    features.labels[features.labels == absent] = 1
    history: list[dict] = []
    # Long enough that no router predicts the absent action any more: an F1 of 0 would be right then.
    train_routers(features, held_back(features), replace(QUICK, epochs=20), SHAPE, history.append)
    last = history[-1]
    names = ["f1_skip", "f1_execute", "f1_repeat"]
    assert math.isnan(last[names[absent]])
    present = [last[name] for index, name in enumerate(names) if index != absent]
    assert last["macro_f1"] == pytest.approx(sum(present) / 2)
    assert all(math.isfinite(score) for score in present)


def test_one_record_and_none_held_back():
    features = planted(1)
    history: list[dict] = []
    routers = train_routers(features, torch.tensor([False]), replace(QUICK, epochs=1), SHAPE, history.append)
    assert not any(parameter.requires_grad for parameter in routers.parameters())
    assert math.isfinite(history[0]["loss"])
    assert not [name for name in history[0] if name.startswith("val_")]


@pytest.mark.parametrize(
    ("held", "shape", "broken", "says"),
    [
        (1, {}, False, "no record is left to train on: search more questions"),
        (5, {"n_layers": 4}, False, "extract them again"),
        (5, {"hidden_size": 13}, False, "extract them again"),
        (5, {"n_windows": 8}, False, "extract them again"),
        (5, {}, True, "diverged in epoch 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(held, shape, broken, says):
    features = planted(20)
    if broken:
        features.pooled[3] = float("nan")
    with pytest.raises(InputError, match=says):
        train_routers(features, held_back(features, held), QUICK, replace(SHAPE, **shape))


def test_warm_up_is_linear_and_the_cosine_ends_at_zero():
    factor = warmup_cosine(110, 10)
    assert [factor(step) for step in range(10)] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.5)
    assert factor(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(110) == pytest.approx(0)
    assert warmup_cosine(5, 0)(0) == 1


def test_warm_up_is_at_most_a_tenth_of_all_steps(tmp_path):
    features, of = planted(50), replace(QUICK, batch_size=8)  # 40 records in batches of 8, 8 epochs: 40 steps
    found = [train_routers(features, held_back(features), replace(of, warmup_steps=n), SHAPE) for n in (500, 4, 2, 0)]
    most, four, two, none = (saved_bytes(routers, tmp_path / str(place)) for place, routers in enumerate(found))
    assert most == four
    assert len({four, two, none}) == 3


LABELS = [Route.parse(text) for text in ("1111", "0111", "1102", "2011", "1210", "0021", "2221", "1000")]
LENGTHS = [9, 3, 17, 8, 26, 1, 12, 5]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, families.VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]


@torch.no_grad()
def states_along(base: nn.Module, route: Route, prompt: list[int]) -> list[torch.Tensor]:
    """The states (T, D) entering each block, from an uncached run of the base's own code over the path, watched by hooks.

    A block that is skipped is entered by what enters the next one on the path, or leaves the last one.
    """
    twin = path_model(base, route.path)
    _, blocks = find_blocks_of(twin)
    entering: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    for block in dict.fromkeys(blocks):
        block.register_forward_pre_hook(
            lambda _module, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        block.register_forward_hook(lambda _module, _args, out: left.append(out[0] if isinstance(out, tuple) else out))
    twin(torch.tensor([prompt]), use_cache=False)
    states = [*entering, left[-1]]
    return [states[sum(passed < block for passed in route.path)][0] for block in range(len(route))]


def find_blocks_of(twin: nn.Module) -> tuple[str, nn.ModuleList]:
    return next(
        (name, module) for name, module in twin.named_modules() if isinstance(module, nn.ModuleList) and name.endswith(("layers", "h"))
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_features_are_the_pooled_states_of_the_label_path(family, prompts):
    base = families.build(family)
    expected = torch.zeros(len(prompts), 4, 5, base.config.hidden_size)
    for row, (prompt, label) in enumerate(zip(prompts, LABELS, strict=True)):
        for block, x_TD in enumerate(states_along(base, label, prompt)):
            n = min(5, len(prompt))
            length = len(prompt) // n
            expected[row, block, :n] = x_TD[: n * length].reshape(n, length, -1).mean(1)
    features = extract_features(RoutedModel.wrap(base), prompts, LABELS, 5, 80)
    assert features.pooled.shape == expected.shape
    assert features.labels.tolist() == [[int(action) for action in label] for label in LABELS]
    assert features.valid.tolist() == [[window < len(prompt) for window in range(5)] for prompt in prompts]
    # Stored in bfloat16, whose rounding is at most 2^-8 of a value, and 1e-5 for the arithmetic before it.
    bound = 2**-8 * expected.abs() + 1e-5 * expected.abs().max().clamp(min=1)
    assert ((features.pooled.float() - expected).abs() <= bound).all()
    other = extract_features(RoutedModel.wrap(families.build(family)), prompts, [Route.full(4)] * len(prompts), 5, 80)
    assert ((other.pooled.float() - expected).abs() > 10 * bound)[:, 3].any(), "the path matters: the test can fail"


def test_features_do_not_depend_on_the_batch(prompts):
    routed = RoutedModel.wrap(families.build("llama"))
    alone = [extract_features(routed, [prompt], [label], 5, 1) for prompt, label in zip(prompts, LABELS, strict=True)]
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    for max_step_tokens in (1, 60, 4096):
        together = extract_features(routed, [prompts[at] for at in order], [LABELS[at] for at in order], 5, max_step_tokens)
        for row, at in enumerate(order):
            torch.testing.assert_close(together.pooled[row].float(), alone[at].pooled[0].float(), rtol=2**-7, atol=1e-5)
            assert torch.equal(together.valid[row], alone[at].valid[0])
            assert torch.equal(together.labels[row], alone[at].labels[0])


def test_saved_features_come_back_under_their_key_only(tmp_path, prompts):
    names = ("pooled", "valid", "labels")
    path = tmp_path / "features.safetensors"
    features = extract_features(RoutedModel.wrap(families.build("llama")), prompts, LABELS, 4, 200)
    computed = []

    def kept(key: str) -> list[torch.Tensor]:
        return kept_tensors(path, key, names, lambda: computed.append(key) or vars(features))

    for key in ("key", "key", "another key", "key"):
        for name, tensor in zip(names, kept(key), strict=True):
            assert torch.equal(tensor, getattr(features, name))
    assert computed == ["key", "another key", "key"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="not a readable feature file"):
        kept("key")


@pytest.mark.parametrize(("held_out", "sizes", "expected"), [(10, (30, 12, 1), (10, 6, 0)), (0, (30,), (0,)), (3, (5, 200), (2, 3))])
def test_as_many_records_of_each_task_are_held_back_as_asked_or_half(held_out, sizes, expected):
    records = [record(f"task{task}", f"{task}-{n}") for task, size in enumerate(sizes) for n in range(size)]
    held = held_back_of(records, RoutersConfig(held_out=held_out))
    found = [sum(is_held for one, is_held in zip(records, held, strict=True) if one.task == f"task{task}") for task in range(len(sizes))]
    assert tuple(found) == expected
    backwards = held_back_of(records[::-1], RoutersConfig(held_out=held_out))[::-1]
    assert backwards == held, "by their ids, whatever the order"
