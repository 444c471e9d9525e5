"""`make test-gpu` and `make bench-gpu` run where torch sees a GPU, and say so in one line where none is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import on_gpu

MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_and_no_error(capsys):
    assert on_gpu.main(["make test-gpu", "false"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"make test-gpu: torch {torch.__version__} sees no GPU here, so nothing was run"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("status", [0, 5])
def test_with_a_gpu_the_command_runs_on_it_and_its_status_counts(status, capfd):
    said = f"import os, sys; print(os.environ['DRLLM_TEST_DEVICE']); sys.exit({status})"
    assert on_gpu.main(["make test-gpu", sys.executable, "-c", said]) == status
    assert capfd.readouterr().out.splitlines() == [f"make test-gpu: {torch.cuda.get_device_name()}, torch {torch.__version__}", "cuda"]


def test_make_asks_for_a_gpu_first():
    for target in ("test-gpu", "bench-gpu"):
        recipe = MAKEFILE.split(f"\n{target}:")[1].split("\n\n")[0]
        assert f'tools/on_gpu.py "make {target}"' in recipe


def test_the_tests_of_a_gpu_cover_what_they_should():
    """Collected, not run: laws, wrap, generate, search, heal, two processes, CUDA graphs."""
    root = Path(__file__).parents[2]
    marked = {path.name for path in (root / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text(encoding="utf-8")}
    assert marked >= {
        *("test_laws.py", "test_wrapping.py", "test_generate.py", "test_search.py", "test_heal.py", "test_adapter_training.py"),
        *("test_on_workers.py", "test_serving_engine.py", "test_host_syncs.py"),
    }
