"""SmolLM2-135M with spans of blocks twice, in PEFT, in its own float type."""

from __future__ import annotations

import pytest
import torch

from drllm import Route, RoutedModel
from drllm.deploy.export import export

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", ["0-14,12-29", "0-9,6-29", "0-10,3-29"])
def test_an_adapter_in_the_bases_own_type(tmp_path, path):
    """In bfloat16 a cached forward differs from a whole one by more than the check allows: like is compared with like."""
    pytest.importorskip("peft", reason="needs peft (pip install peft)")
    done = export(RoutedModel.wrap("smollm2-135m-q4", dtype=torch.bfloat16), Route.parse(path, 30), tmp_path / "adapter", "peft")
    print(f"{path}: {done.difference}")
    assert done.difference < 0.1
