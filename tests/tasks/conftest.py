"""A Hub that serves what a test says."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def fake_hub(monkeypatch):
    """A `datasets` library that serves what the test puts into the returned dict, without any data package installed."""
    sets: dict[tuple[str, str | None], object] = {}

    def load_dataset(repo: str, config: str | None) -> object:
        found = sets[repo, config]
        if isinstance(found, Exception):
            raise found
        return found

    library = ModuleType("datasets")
    library.__dict__.update(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {})))
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("drllm.tasks.sources.package_folder", lambda: (None, ""))
    return sets
