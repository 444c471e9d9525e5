"""What the tests of the research package share: a tiny model, and sums to search."""

from pathlib import Path

import pytest

from drllm import RoutedModel
from runs import model, questions, write_rows


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rows = [row | {"part": "train" if number % 3 else "dev"} for number, row in enumerate(questions(90))]
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", rows)
