"""The caller's thread count is the caller's."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drllm import Resources
from drllm.model.pool import settled, torch_threads


@pytest.mark.parametrize(("n", "inside"), [(3, 3), (0, 1)])
def test_torch_has_as_many_threads_as_before(n, inside):
    assert torch.get_num_threads() == 1, "as conftest sets it"
    with contextlib.suppress(RuntimeError), torch_threads(n):
        assert torch.get_num_threads() == inside
        raise RuntimeError("a job failed")
    assert torch.get_num_threads() == 1


def test_a_scan_on_a_gpu_is_no_work_for_processes_of_the_cpu():
    """On the CPU a scan takes a process a core; a card is one place, whatever the number of cores."""
    parts = [torch.empty(1)]
    for device, executor in (("cuda", "local"), ("cpu", "local")):
        routed: Any = SimpleNamespace(device=torch.device(device), by_name=True, model=SimpleNamespace(parameters=lambda: parts))
        found = settled(routed, Resources(), scanning=True)
        assert (found.executor, found.workers) == (executor, 1)
    with torch_threads(2):
        assert settled(routed, Resources(), scanning=True).executor == "processes"
        routed.device = torch.device("cuda")
        found = settled(routed, Resources(executor="processes"), scanning=True)
        assert (settled(routed, Resources(), scanning=True).executor, found.workers) == ("local", 1)
