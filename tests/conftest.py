"""Shared by all tests: one thread a worker, tiny models, a tokenizer made in memory."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from drllm.cli.terminal import quiet_other_packages

quiet_other_packages()  # before transformers imports torchao

import pytest
import torch
from hypothesis import Phase, settings
from transformers import PreTrainedTokenizerFast

import families
from byte_tokens import byte_tokenizer
from drllm import RoutedModel
from drllm.core.progress import Reporter, reporting_to

# A busy machine is no fault of an example. Of a mutant (docs/mutants.md) it is asked whether a test fails, not on how small an example.
TRIES_MUTANTS = "MUTANT_UNDER_TEST" in os.environ
PHASES = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain) or not TRIES_MUTANTS]
settings.register_profile("any machine", deadline=None, phases=PHASES)
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector need not look through millions of objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Workers share two cores, and sums in one order can be compared byte for byte."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_reporter():
    """`main` sets a reporter for the rest of its process: the tests that come after it, in whatever order, read the log again."""
    with reporting_to(Reporter()):
        yield


@pytest.fixture(autouse=True, scope="session")
def trials_end():
    """mutmut ends a trial that waits for ever; this ends one that an interrupted mutmut has left behind."""
    if "__mutmut_" in os.environ.get("MUTANT_UNDER_TEST", ""):
        signal.alarm(300)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A file of sums to search."""
    from runs import questions, write_rows

    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", questions())


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    """A run folder with a finished search."""
    import runs
    from drllm import search

    return search(runs.model(), [runs.TASK], runs.SEARCH, tmp_path_factory.mktemp("run"), data, ["drllm", "search"])


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer."""
    return byte_tokenizer()


@pytest.fixture
def tiny(tokenizer) -> RoutedModel:
    """A wrapped tiny llama that reads text."""
    return RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=512), tokenizer)


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
