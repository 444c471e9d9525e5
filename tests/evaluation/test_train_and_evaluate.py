"""Train and evaluate on a tiny model and a file of questions: resumed, refused, and checked against a plain computation."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from drllm import EvaluateConfig, Route, RoutedModel, SearchConfig, evaluate, search, train
from drllm.core.config import to_dict
from drllm.core.errors import ArtifactError
from drllm.policies.routers import RouterConfig, Routers
from drllm.runs.answers import read_answers
from drllm.runs.merge import merge_runs
from drllm.runs.merge import rows_of as rows_of_store
from drllm.runs.provenance import read_jobs
from drllm.runs.records import read_records, shard_path
from drllm.runs.summary import Summary, SummaryRow
from drllm.scoring.loglik import LoglikScorer
from drllm.stats.paired import mcnemar, wilson
from drllm.tasks import load_task, texts_digest
from runs import EVALUATE, SEARCH, TASK, TRAIN, L, Plain, copy_run, model, questions, write_rows

pytestmark = pytest.mark.long

METHODS = ("static", "routers", "random", "shuffled")


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def trained(run, tiny) -> Path:
    """The same folder with both methods trained and saved."""
    for method in ("static", "routers"):
        tiny.policy = train(tiny, run, method, TRAIN if method == "routers" else None)
        tiny.save_pretrained(run / method)
    tiny.policy = None
    return run


@pytest.fixture(scope="module")
def summary(trained, tiny, data) -> dict:
    """The evaluation of the same folder."""
    return evaluate(tiny, METHODS, [TASK], trained, EVALUATE, data)


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain()


def test_training_writes_metrics_and_a_policy(trained, run):
    lines = [json.loads(line) for line in (run / "train" / "routers" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert {"loss", "macro_f1", "f1_skip", "f1_execute", "f1_repeat", "mean_passes", "val_macro_f1"} <= line.keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    routers = Routers.load(trained / "routers")
    assert routers.config == RouterConfig(L, 32, n_windows=4, width=16)
    config = json.loads((trained / "routers" / "drllm_config.json").read_text())
    assert (config["policy"], config["prompt_format"]) == ("routers", "raw")


def test_the_static_route_is_one_that_gains_on_the_fit_questions(trained, run, tiny, data, plain):
    """Its accuracies are those of a computation without drllm; a route is taken only where it gains."""
    table = {row["route"]: row for row in json.loads((run / "train" / "static" / "candidates.json").read_text())["candidates"]}
    fit, full = load_task(TASK, data).examples["fit"], Route.full(L)
    found = collections.defaultdict(dict)
    for row in rows_of_store(run).to_pylist():
        found[row["id"]][row["route"]] = row["margin_acc_norm"]
    assert len(table) > 2
    for text, row in table.items():
        assert row["n"] == len(fit)
        answers = [found[example.id] for example in fit]
        turned = np.array([plain.verdict(example, Route.parse(text))[1] - plain.verdict(example, full)[1] for example in fit])
        margins = np.array([one[text] - one[str(full)] for one in answers])
        spread = np.std([record.base_margin for record in read_records(run / "search")])
        assert row["gain"] == pytest.approx(np.mean(0.5 * np.clip(margins / spread, -1, 1) + 0.5 * turned), abs=1e-6)
    route = json.loads((trained / "static" / "policy.json").read_text())["route"]
    assert route == "1" * L or table[route]["gain"] > 0
    assert any(row["gain"] > 0 for row in table.values()), "on a random model some route gains: the test can fail"


@pytest.mark.slow
def test_merged_searches_of_two_files_are_trained_on_and_both_are_kept_out_of_the_evaluation(tiny, tmp_path):
    rows = questions(80)
    for name, task, part in (("a", TASK, rows[:40]), ("b", "arc_challenge", rows[40:])):
        search(tiny, [task], SEARCH, tmp_path / name, write_rows(tmp_path / f"{name}.jsonl", part))
    out = tmp_path / "both"
    merge_runs([tmp_path / "a", tmp_path / "b"], out)
    policy = train(tiny, out, "static")
    n_records = len(read_records(out / "search"))
    assert n_records == sum(len(read_records(tmp_path / name / "search")) for name in "ab")
    table = json.loads((out / "train" / "static" / "candidates.json").read_text())["candidates"]
    assert {row["n"] for row in table} == {n_records}
    tiny.policy = policy
    tiny.save_pretrained(out / "static")
    tiny.policy = None
    # A file that asks the fit questions of both again: none of them may be evaluated on.
    fit = {record.id for record in read_records(out / "search")}
    again = [row | {"part": "validation"} for row in rows if row["id"] in fit]
    fresh = [row | {"part": "validation", "id": f"new {row['id']}", "question": f"new {row['question']}"} for row in rows]
    summary = evaluate(tiny, ["static"], [TASK], out, EVALUATE, write_rows(tmp_path / "eval.jsonl", again + fresh))
    assert summary
    answered = read_answers(next((out / "evaluate").rglob("answers.parquet")))["base", TASK].ids
    assert answered
    assert all(name.startswith("new ") for name in answered)
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace('"choices": ["', '"choices": ["9'))
    with pytest.raises(ArtifactError, match="not those that were searched"):
        train(tiny, out, TRAIN)


def test_an_unfinished_search_is_not_trained_on(run, tiny, tmp_path):
    copy_run(run, tmp_path, "search", "verdicts")
    shard_path(tmp_path / "search" / TASK, 0).unlink()
    with pytest.raises(ArtifactError, match=r"search of arc_easy in .*arc_easy is unfinished \(8 of \d+ questions\)"):
        train(tiny, tmp_path, TRAIN)


def test_records_of_other_weights_are_not_trained_on(run):
    with pytest.raises(ArtifactError, match="train on the model that was searched"):
        train(model(seed=1), run, TRAIN)


def test_what_cannot_be_trained_on_gets_one_line(run, tiny, tmp_path):
    copy_run(run, tmp_path, "search")
    for text, message in (
        ("{", "not readable JSON"),
        ("[]", "not the manifest of a drllm search"),
        ("{}", "not the manifest of a drllm search"),
    ):
        (tmp_path / "search" / TASK / "_plan.json").write_text(text)
        with pytest.raises(ArtifactError, match=message) as refusal:
            train(tiny, tmp_path, TRAIN)
        assert "\n" not in str(refusal.value)
        with pytest.raises(ArtifactError, match=message):
            evaluate(tiny, [], [TASK], tmp_path, EVALUATE)


def test_a_search_that_found_nothing_right_is_not_trained_on(tiny, data, tmp_path):
    """A random model never writes a letter."""
    search(tiny, [TASK], SearchConfig(n_simulations=1, limit=4, reward="letter", max_new_tokens=2), tmp_path, data)
    records = read_records(tmp_path / "search")
    assert [record.chosen for record in records] == [None] * 4
    assert {value for record in records for one in record.verdicts.values() for value in (one.acc, one.acc_norm)} == {None}
    with pytest.raises(ArtifactError, match="kept no route"):
        train(tiny, tmp_path, TRAIN)


def rows_of(folder: Path, method: str) -> list[dict]:
    return read_answers(folder / "evaluate" / "tune" / "answers.parquet")[method, TASK].rows


def row_of(summary: Summary, method: str, task: str = TASK) -> SummaryRow:
    return next(row for row in summary.rows if (row.method, row.task) == (method, task))


def test_every_method_answers_the_same_questions_as_a_plain_computation(summary, trained, data, plain):
    tune = {example.id: example for example in load_task(TASK, data).examples["tune"]}
    assert len(tune) >= 8
    seen = collections.Counter()
    for method in ("base", *METHODS):
        rows = rows_of(trained, method)
        assert {row["id"] for row in rows} == tune.keys()
        assert len(rows) == len(tune)
        for row in rows:
            route = Route.parse(row["route"])
            assert row["n_passes"] == route.n_passes
            assert row["correct"] == plain.verdict(tune[row["id"]], route)[1]
            seen[row["correct"]] += 1
        assert row_of(summary, method).accuracy == pytest.approx(sum(row["correct"] for row in rows) / len(rows))
    assert {row["route"] for row in rows_of(trained, "base")} == {"1" * L}
    assert min(seen[True], seen[False]) >= 5


def test_policies_route_as_they_do_in_generation(summary, trained, tiny, data):
    tune = {example.id: example for example in load_task(TASK, data).examples["tune"]}
    static = json.loads((trained / "static" / "policy.json").read_text())["route"]
    assert {row["route"] for row in rows_of(trained, "static")} == {static}
    rows = rows_of(trained, "routers")
    prompts = [f"Question: {tune[row['id']].question}\nAnswer:" for row in rows]
    outputs = tiny.generate(prompts, policy=Routers.load(trained / "routers"), max_new_tokens=1)
    assert [row["route"] for row in rows] == [str(output.route) for output in outputs]
    assert len({row["route"] for row in rows}) > 1, "the routers tell prompts apart: the test can fail"


def test_controls_keep_what_they_claim_to_keep(summary, trained):
    routes = {method: [row["route"] for row in rows_of(trained, method)] for method in ("routers", "random", "shuffled")}
    assert sorted(routes["shuffled"]) == sorted(routes["routers"])
    assert routes["shuffled"] != routes["routers"]
    assert [sorted(route) for route in routes["random"]] == [sorted(route) for route in routes["routers"]]
    assert routes["random"] != routes["routers"]


def test_the_summary_follows_from_the_verdicts(summary, trained, tiny):
    assert json.loads((trained / "evaluate" / "tune" / "summary.json").read_text()) == summary.to_json()
    assert (summary.split, summary.reference, summary.tasks) == ("tune", "base", [TASK])
    assert summary.fingerprint == tiny.fingerprint
    assert [row.method for row in summary.rows] == ["base", *METHODS]
    base = [row["correct"] for row in rows_of(trained, "base")]
    assert "difference" not in row_of(summary, "base").to_json()
    for method in ("base", *METHODS):
        row, rows = row_of(summary, method), rows_of(trained, method)
        ours = [line["correct"] for line in rows]
        assert (row.n, row.n_layers) == (len(base), L)
        assert (row.wilson_low, row.wilson_high) == wilson(sum(ours), len(ours))
        assert row.mean_passes == pytest.approx(sum(line["n_passes"] for line in rows) / len(rows))
        assert row.identity_share == pytest.approx(sum(line["route"] == "1" * L for line in rows) / len(rows))
        assert row.distinct_routes == len({line["route"] for line in rows})
        if method != "base":
            assert row.difference == pytest.approx(row.accuracy - row_of(summary, "base").accuracy)
            assert row.difference_low <= row.difference <= row.difference_high
            assert row.better == sum(a and not b for a, b in zip(ours, base, strict=True))
            assert row.worse == sum(b and not a for a, b in zip(ours, base, strict=True))
            assert row.mcnemar_p == mcnemar(ours, base)


def test_evaluating_again_reads_back(summary, trained, tiny, data, tmp_path, monkeypatch):
    asked = []
    submit = LoglikScorer.submit
    monkeypatch.setattr(LoglikScorer, "submit", lambda self, handle, route: asked.append(route) or submit(self, handle, route))
    assert evaluate(tiny, METHODS, [TASK], trained, EVALUATE, data) == summary
    assert asked == []
    # Other routers: only what they and their controls decide is asked, and no route of the base or static.
    copy_run(trained, tmp_path, "search", "verdicts", "decided", "static", "routers")
    other = Routers(RouterConfig(L, 32, n_windows=4, width=16), seed=5)
    tiny.policy = other
    tiny.save_pretrained(tmp_path / "routers")
    tiny.policy = None
    again = evaluate(tiny, METHODS, [TASK], tmp_path, EVALUATE, data)
    assert 0 < len(asked) <= 3 * again.rows[0].n
    assert Route.full(L) not in asked
    assert {row.method: row.mean_passes for row in again.rows}["base"] == L
    # Other questions under the same ids: everything is.
    asked.clear()
    rows = questions()
    for row in rows:
        row["answer"] = (row["answer"] + 1) % 3
    copy_run(trained, tmp_path / "b", "static", "routers", "verdicts", "decided")
    found = evaluate(tiny, METHODS, [TASK], tmp_path / "b", EVALUATE, write_rows(tmp_path / data.name, rows))
    assert asked.count(Route.full(L)) == found.rows[0].n


def test_controls_bring_the_routers_along_and_the_base_is_always_there(summary, trained, tiny, data):
    """The model's own policy is left as it is."""
    tiny.policy = Route.parse("0111")
    found = evaluate(tiny, ["shuffled"], [TASK], trained, EVALUATE, data)
    assert tiny.policy.route == Route.parse("0111")
    tiny.policy = None
    assert row_of(found, "base").mean_passes == L
    assert [row.method for row in found.rows] == ["base", "routers", "shuffled"]
    assert row_of(found, "shuffled") == row_of(summary, "shuffled")
    evaluate(tiny, METHODS, [TASK], trained, EVALUATE, data)  # the folder as other tests expect it


def test_two_tasks_are_pooled(trained, tiny, data, tmp_path):
    copy_run(trained, tmp_path, "search", "routers")
    found = evaluate(tiny, ["routers"], [TASK, "openbookqa"], tmp_path, EVALUATE, data)
    assert [(row.method, row.task) for row in found.rows] == [
        (method, task) for method in ("base", "routers") for task in (TASK, "openbookqa", "all")
    ]
    for method in ("base", "routers"):
        parts = [row_of(found, method, task) for task in (TASK, "openbookqa")]
        pooled = row_of(found, method, "all")
        assert pooled.n == sum(part.n for part in parts)
        assert pooled.accuracy == pytest.approx(sum(part.accuracy * part.n for part in parts) / pooled.n)
    pooled = row_of(found, "routers", "all")
    assert pooled.better == sum(row_of(found, "routers", task).better for task in (TASK, "openbookqa"))


def test_an_evaluation_question_that_was_fitted_on_is_dropped_and_counted(tiny, data, tmp_path):
    """In the same file, and in another file than the one that was searched."""
    train_rows = [row | {"part": "train"} for row in questions(24)]
    shared = [train_rows[0] | {"id": "again", "question": train_rows[0]["question"].upper() + "  ", "part": "validation"}]
    fresh = [row | {"part": "validation"} for row in questions(40)[24:]]
    own = write_rows(tmp_path / "own.jsonl", [*train_rows, *shared, *fresh])
    fit = {example.id for example in load_task(TASK, own).examples["fit"]}
    assert "q0" in fit
    found = evaluate(tiny, [], [TASK], tmp_path / "a", EVALUATE, own)
    assert found.dropped[TASK]["tune"] == 1
    assert row_of(found, "base").n == 16
    assert "again" not in {row["id"] for row in rows_of(tmp_path / "a", "base")}

    search(tiny, [TASK], SearchConfig(n_simulations=0), tmp_path / "b", data)
    searched = load_task(TASK, data).examples
    asked = [row | {"part": "test"} for row in questions()] + [{**questions(61)[60], "part": "test"}]
    other = write_rows(tmp_path / "other.jsonl", asked)
    found = evaluate(tiny, [], [TASK], tmp_path / "b", EvaluateConfig(split="test", n_resamples=100), other)
    ids = {*read_answers(tmp_path / "b" / "evaluate" / "test" / "answers.parquet")["base", TASK].ids}
    assert not ids & {example.id for example in searched["fit"]}
    assert {"q60"} | {example.id for example in searched["test"]} <= ids
    assert found.dropped[TASK]["test"] >= len(searched["fit"])
    assert len(ids) + found.dropped[TASK]["test"] == 61
    assert read_jobs(tmp_path / "b")[-1]["read_test_split"] is True


def test_a_corrupt_answer_file_is_refused(summary, trained, tiny, data, tmp_path):
    copy_run(trained, tmp_path, "search", "evaluate")
    path = tmp_path / "evaluate" / "tune" / "answers.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"answers.parquet is not a readable shard .*: delete it and run the same command again"):
        evaluate(tiny, [], [TASK], tmp_path, EVALUATE, data)


def test_the_run_file_holds_every_job(summary, trained):
    done = [job for job in read_jobs(trained) if job["status"] == "done"]  # others are searches that were refused
    assert list(dict.fromkeys(job["job"] for job in done)) == ["search", "train", "evaluate"]
    assert (done[0]["argv"], done[0]["config"]["n_simulations"]) == (["drllm", "search"], SEARCH.n_simulations)
    assert {job["config"]["method"] for job in done if job["job"] == "train"} == {"static", "routers"}
    assert next(job for job in done if job["job"] == "evaluate")["config"] == to_dict(EVALUATE)
    for job in done:
        assert job["seconds"] >= 0
        assert {"versions", "hardware", "commit", "date"} <= job.keys()


def test_an_evaluation_reads_the_questions_that_were_searched_unless_told(tiny, data, tmp_path):
    search(tiny, [TASK], SEARCH, tmp_path, data)
    told = evaluate(tiny, [], [TASK], tmp_path, EVALUATE, data)
    untold = evaluate(tiny, [], [TASK], tmp_path, EVALUATE)
    assert untold.sources == told.sources
    assert untold.data == told.data == {TASK: str(data)}
    assert untold.texts == told.texts == {TASK: texts_digest(load_task(TASK, data).select(EVALUATE.split, EVALUATE.limit))}
    assert data.name in told.sources[TASK]
    before = {path: path.read_bytes() for path in (tmp_path / "evaluate").rglob("*") if path.is_file()}
    looked = evaluate(tiny, [], [TASK], tmp_path, dataclasses.replace(EVALUATE, limit=2), data)
    assert looked.rows[0].n == 2
    assert {path: path.read_bytes() for path in before} == before
