"""A question beyond the model's context is left out and said, wherever questions are asked: never the end of hours of work."""

from __future__ import annotations

import logging

import pytest

from drllm.core.config import EvaluateConfig, SearchConfig
from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.evaluation.clock import batched_ms
from drllm.evaluation.run import evaluate
from drllm.methods.training_data import TrainingData
from drllm.scoring.scorer import askable, scorer_of
from drllm.searching.runner import search
from drllm.tasks import load_task
from runs import TASK, model, questions, write_rows

LONG = " why" * 200  # beyond a context of 256 tokens


def data_with(tmp_path, part: str, n_long: int):
    """Questions of two parts; the first few of one are too long."""
    rows = [
        row | {"id": f"{name} {row['id']}", "part": name, "question": f"{name} {row['question']}"}
        for name in ("train", "validation")
        for row in questions(12)
    ]
    places = [at for at, row in enumerate(rows) if row["part"] == part][:n_long]
    for at in places:
        rows[at]["question"] += LONG
    return write_rows(tmp_path / "data.jsonl", rows)


@pytest.fixture(scope="module")
def routed():
    return model()


def test_every_place_that_asks_leaves_it_out(routed, tmp_path, caplog):
    caplog.set_level(logging.INFO, "drllm")
    data = data_with(tmp_path, "train", 2)
    loaded = load_task(TASK, data)
    split = next(name for name, rows in loaded.examples.items() if any(LONG in row.question for row in rows))
    rows = loaded.select(split)
    found, reasons = askable(scorer_of(routed, loaded.task, EvaluateConfig()), loaded.task, rows)
    assert len(reasons) >= 1
    assert [question.example.id for question in found] == [row.id for row in rows if row.id not in reasons]
    assert {*reasons.values()} == {"a prompt that, with its answer, exceeds the context of 256 tokens"}

    assert batched_ms(routed, [TASK], SearchConfig(), data) > 0

    summary = evaluate(routed, [], [TASK], tmp_path, EvaluateConfig(split=split), data)
    assert {row.n for row in summary.rows} == {len(found)}
    n = len(reasons)
    assert f"{TASK}: {n} question{'s' * (n != 1)} left out: {reasons.popitem()[1]}" in caplog.text


def test_tune_questions_that_cannot_be_asked_do_not_end_a_training(routed, tmp_path):
    data = data_with(tmp_path, "validation", 2)
    search(routed, [TASK], SearchConfig(splits=("fit", "tune")), tmp_path / "run", data, routes=[Route.parse("1011")])
    loaded = load_task(TASK, data)
    [ask] = TrainingData(routed, tmp_path / "run", [TASK]).tune()
    assert 0 < len(ask.questions) == sum(LONG not in row.question for row in loaded.select("tune"))


def test_where_none_can_be_asked_one_line_says_so(routed, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", [row | {"question": row["question"] + LONG} for row in questions(12)])
    with pytest.raises(InputError, match=r"none of the first \d+ questions of .* can be asked \(a prompt that, with its answer"):
        batched_ms(routed, [TASK], SearchConfig(), data)
    with pytest.raises(InputError, match=r"has no fit question that can be asked \(a prompt that, with its answer, exceeds"):
        evaluate(routed, [], [TASK], tmp_path, EvaluateConfig(split="fit"), data)
