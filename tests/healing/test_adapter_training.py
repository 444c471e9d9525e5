"""Training: towards the base, the base's weights untouched, the same bytes after a kill, the last good adapter after a NaN."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

import families
import runs
from drllm import ArtifactError, HealConfig, InputError, Route, RoutedModel, UnsupportedModelError
from drllm.core.files import TEMPORARY_SUFFIX
from drllm.core.progress import Reporter, reporting_to
from drllm.healing import training
from drllm.healing.prompts import training_steps
from drllm.healing.teacher import Teacher
from drllm.healing.training import check_targets, distance_along, train_adapter
from drllm.policies.healed import HealedPolicy
from healed import CONFIG
from standings import NO_LINEAR_MAPS

pytestmark = pytest.mark.long

PROMPTS = [tuple(3 + (7 * n + at * at) % 90 for at in range(6 + n % 20)) for n in range(80)]
ROUTE = Route.parse("1011")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return Teacher(runs.model(), tmp_path_factory.mktemp("teacher"), 0, 400).texts(PROMPTS, "teaching", "fit")


def train(folder, texts, route=ROUTE, config: HealConfig = CONFIG, routed: RoutedModel | None = None):
    folder.mkdir(exist_ok=True)
    steps = training_steps([len(text.ids) for text in texts[:64]], config)
    return train_adapter(routed or runs.model(), route, [[texts[index] for index in step] for step in steps], texts[64:], config, folder)


@pytest.mark.gpu
def test_it_comes_nearer_to_the_base_whose_weights_stay(texts, tmp_path):
    routed = runs.model()
    before = {name: part.clone() for name, part in routed.model.state_dict().items()}
    wants = [part.requires_grad for part in routed.model.parameters()]
    adapter, course = train(tmp_path, texts, routed=routed)
    assert [step for step, _, _ in course.looks] == [0, 20, 40]
    assert routed.model.state_dict().keys() == before.keys()
    assert all(torch.equal(part, before[name]) for name, part in routed.model.state_dict().items())
    assert [part.requires_grad for part in routed.model.parameters()] == wants
    routed.as_source(HealedPolicy(adapter))
    bare, healed = (distance_along(routed, route, texts[64:], 400) for route in (ROUTE, adapter.healed))
    assert healed.kl < bare.kl / 2
    assert healed.same > bare.same
    assert bare.kl == pytest.approx(course.looks[0][1], rel=1e-4)
    assert healed.kl == pytest.approx(course.looks[course.best][1], rel=2e-2)  # rounded to float16


def test_what_weighs_nothing_says_nothing(texts, tmp_path):
    last = [replace(text, weights=(torch.arange(len(text.ids)) == len(text.ids) - 1).float()) for text in texts]
    wrong = [replace(text, top=torch.where(text.weights[:, None] > 0, text.top, text.top.flip(1))) for text in last]
    ends = [train(tmp_path / str(place), of, config=replace(CONFIG, steps=5)) for place, of in enumerate((last, wrong, texts))]
    assert ends[0][0] == ends[1][0] != ends[2][0]
    assert ends[0][1].looks == ends[1][1].looks


def test_a_block_that_runs_again_has_one_adapter(texts, tmp_path):
    route = Route.parse("0-2,1-2/4")
    adapter, course = train(tmp_path, texts, route)
    assert {block for block, _ in adapter.weights} == {0, 1, 2}
    assert course.looks[course.best][1] < course.looks[0][1] / 2
    assert adapter.n_weights * 5 == sum(part.numel() for part in adapter.tensors().values()) * 3


def test_rank_and_targets(texts, tmp_path):
    adapter, _ = train(tmp_path, texts, config=replace(CONFIG, rank=2, targets=("q_proj", "down_proj"), steps=2))
    assert adapter.rank == 2
    assert {name for _, name in adapter.weights} == {"self_attn.q_proj", "mlp.down_proj"}
    with pytest.raises(UnsupportedModelError, match=r"no block holds a linear map named tea: there are down_proj, .*v_proj"):
        check_targets(runs.model(), replace(CONFIG, targets=("tea",)))
    with pytest.raises(UnsupportedModelError, match="named anything: there are none"):
        check_targets(RoutedModel.wrap(families.build(*NO_LINEAR_MAPS)), CONFIG)


def test_a_base_in_bfloat16_is_healed_in_float32(texts, tmp_path):
    half = runs.model()
    half.model.to(torch.bfloat16)
    adapter, course = train(tmp_path, texts, routed=half, config=replace(CONFIG, steps=20))
    assert course.looks[-1][1] < course.looks[0][1]
    half.as_source(HealedPolicy(adapter))
    assert distance_along(half, adapter.healed, texts[64:], 400).kl < course.looks[0][1]


class Deadly(Reporter):
    """Ends the process by `kill -9` after so many units."""

    def __init__(self, after: int):
        self.after = after

    def advance(self, job) -> None:
        if job.done > self.after:  # one was written since
            os.kill(os.getpid(), 9)


@pytest.mark.gpu
@pytest.mark.parametrize("at", [13, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 25))])
def test_killed_at_any_step_it_ends_in_the_same_bytes(texts, tmp_path, monkeypatch, at):
    whole, _ = train(tmp_path / "whole", texts)
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    if (pid := os.fork()) == 0:
        with reporting_to(Deadly(at)):
            train(tmp_path / "killed", texts)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 9
    left = tmp_path / "killed" / f"state.safetensors.999999999{TEMPORARY_SUFFIX}"
    left.write_bytes(b"half")
    adapter, course = train(tmp_path / "killed", texts)
    assert course.step == 40
    assert adapter == whole
    for name, adapted in (("a", whole), ("b", adapter)):
        (tmp_path / name).mkdir()
        HealedPolicy(adapted).save(tmp_path / name)
    assert runs.folder_bytes(tmp_path / "a") == runs.folder_bytes(tmp_path / "b")
    assert not left.exists()


def test_another_seed_is_another_adapter(texts, tmp_path):
    one, again, other = (
        train(tmp_path / str(number), texts, config=replace(CONFIG, steps=3, seed=seed))[0] for number, seed in enumerate((0, 0, 1))
    )
    assert one == again != other


def test_a_nan_ends_it_and_the_last_good_adapter_is_kept(texts, tmp_path, caplog):
    good, _ = train(tmp_path / "good", texts, config=replace(CONFIG, steps=40))
    broken = [*texts[:64]]
    steps = training_steps([len(text.ids) for text in broken], CONFIG)
    for index in steps[5]:
        broken[index] = replace(broken[index], logs=torch.full_like(broken[index].logs, float("nan")))
    first = next(step for step, members in enumerate(steps) if {*members} & {*steps[5]})
    adapter, course = train(tmp_path / "broken", [*broken, *texts[64:]])
    assert course.step == first < 20, "before the first look"
    assert course.looks[-1][:2] == (first, min(kl for _, kl, _ in course.looks)), "what was learned before is looked at, and kept"
    assert course.ended == f"the KL was NaN or infinite at step {first + 1}; the best adapter before it is kept"
    assert all(part.isfinite().all() for pair in adapter.weights.values() for part in pair)
    again, course = train(tmp_path / "broken", [*broken, *texts[64:]])
    assert again == adapter
    assert course.step == first
    assert good != adapter


def test_a_route_whose_logits_are_nan_is_refused(texts, tmp_path):
    broken = runs.model()
    broken.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"^the route's logits are NaN or infinite: load the base in bfloat16 or float32$"):
        train(tmp_path, texts, routed=broken)


def test_it_ends_where_held_out_prompts_gain_nothing(texts, tmp_path):
    adapter, course = train(tmp_path, texts, config=replace(CONFIG, lr=3.0, steps=160))  # far too high: it only gets worse
    assert course.ended == "held-out prompts gained nothing in 100 steps"
    assert course.step < 160
    routed = runs.model()
    routed.as_source(HealedPolicy(adapter))
    found = distance_along(routed, adapter.healed, texts[64:], 400)
    assert found.kl == pytest.approx(min(kl for _, kl, _ in course.looks), rel=2e-2)


def test_a_broken_state_is_refused(texts, tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"state\.safetensors is not readable .*delete it to train again"):
        train(tmp_path, texts)
