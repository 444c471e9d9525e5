"""The caller's thread count is the caller's."""

from __future__ import annotations

import contextlib

import pytest
import torch

from drllm.model.threads import torch_threads


@pytest.mark.parametrize(("n", "inside"), [(3, 3), (0, 1)])
def test_torch_has_as_many_threads_as_before(n, inside):
    assert torch.get_num_threads() == 1, "as conftest sets it"
    with contextlib.suppress(RuntimeError), torch_threads(n):
        assert torch.get_num_threads() == inside
        raise RuntimeError("a job failed")
    assert torch.get_num_threads() == 1
