"""Every method from the command line on SmolLM2-135M and ARC-Easy, with little data: `make test-slow`."""

from __future__ import annotations

import json

import pytest

from drllm import Route, SearchConfig
from drllm.cli.main import main
from drllm.methods.base import method_names
from drllm.searching.edits import random_routes
from drllm_research.methods.blind_codebooks import BLIND_SEED
from runs import ASKS_SMOLLM2, IN_A_FAST_TYPE

MODEL, FULL = "smollm2-135m-q4", Route.full(30)
pytestmark = ASKS_SMOLLM2
LIST = [FULL.edit(27, 2), FULL.edit(18, 0).edit(19, 0), FULL.edit(12, 0), FULL.edit(20, 2), FULL.edit(25, 0), FULL.edit(29, 2)]
FEW = {
    "routers": ["--epochs", "2", "--tune-questions", "4"],
    "codebook": ["--n-routes", "4"],
    "tale": ["--questions", "4", "--budget", "0.95"],
    "shortgpt": ["--budget", "0.9"],
    "early_exit": ["--budget", "0.9"],
    "random_skip": ["--budget", "0.9"],
    "flexidepth": ["--steps", "2", "--tune-questions", "4"],
}  # the rest take their defaults


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tree search, and a list on fit and tune."""
    out = tmp_path_factory.mktemp("real")
    routes = [*LIST, *random_routes(30, 8, SearchConfig(), BLIND_SEED)]
    (out / "list.txt").write_text("\n".join(map(str, routes)))
    on = ["search", "--model", MODEL, "--tasks", "arc_easy", "--out", str(out), *IN_A_FAST_TYPE]
    assert main([*on, "--limit", "24", "--n-simulations", "6"]) == 0
    assert main([*on, "--limit", "40", "--paths", str(out / "list.txt"), "--splits", "fit,tune"]) == 0
    return out


@pytest.mark.parametrize("name", method_names())
def test_a_method_trains_answers_and_generates(name, run, capsys):
    assert main(["train", "--out", str(run), "--method", name, *FEW.get(name, [])]) == 0
    saved = json.loads((run / name / "drllm_config.json").read_text())
    assert saved["n_layers"] == 30
    assert main(["evaluate", "--out", str(run), "--methods", f"base,{name}", "--limit", "16"]) == 0
    summary = json.loads((run / "evaluate" / "tune-first-16" / "summary.json").read_text())
    assert name in json.dumps(summary)
    capsys.readouterr()
    code = main(["generate", "--policy", str(run / name), "--max-new-tokens", "3", "The capital of France is"])
    printed = capsys.readouterr()
    assert code == 0
    assert printed.out.strip()
