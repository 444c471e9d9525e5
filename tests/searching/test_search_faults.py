"""What goes wrong in a long search: each fault has a clear outcome, and nothing that was computed is lost."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import drllm
from byte_tokens import byte_tokenizer
from drllm import Resources, Route, RoutedModel, SearchConfig, search, train
from drllm.cli.main import main
from drllm.core.errors import ArtifactError, InputError
from drllm.core.progress import Progress, Reporter, reporting_to
from drllm.runs.merge import merge_runs
from drllm.runs.provenance import read_jobs
from drllm.runs.records import read_records, read_shard, shard_indices, shard_path
from drllm.tasks import load_task
from runs import TASK, TRAIN, L, copy_run, folder_bytes, matrix, model, questions, write_rows

pytestmark = pytest.mark.long

TESTS = Path(__file__).parent
SMALL = SearchConfig(n_simulations=4, group_size=4, limit=12)


def odd_rows() -> list[dict]:
    """Rows that a careless file holds; every id says what is odd."""

    def ask(name, question, choices, answer=0):
        return {"id": name, "question": question, "choices": choices, "answer": answer}

    return [
        ask("plain", "What is 1 and 1?", ["2", "3", "4"]),
        ask("two choices", "Is 2 even?", ["yes", "no"]),
        ask("twenty choices", "Which is 7?", [str(number) for number in range(20)], 7),
        ask("an empty choice", "Which is nothing?", ["", "something", "all"]),
        ask("a blank choice", "Which is blank?", ["  ", "something"], 1),
        ask("equal choices", "Which is it?", ["same", "same"], 1),
        ask("equal choices, the first", "Which one is it?", ["same", "same"], 0),
        ask("unicode", "Was heißt 日本語 👩🏽‍🚀 in ﷽ e\u0301?", ["שלום", "𝔘𝔫𝔦", "né"], 2),
        ask("much too long", "why? " * 200, ["a", "b"]),
        ask("even: longer", "why? " * 300, ["a", "b"]),
        ask("too long by a choice", "why?", ["because " * 60, "no"]),
        ask("again", "What is 1 and 1?", ["2", "3", "4"]),
    ]


def searched_rows(path: Path, rows: list[dict]) -> Path:
    """A file whose `rows` may all be searched: others stand for its development part."""
    others = [row | {"part": "dev", "id": f"dev {row['id']}", "question": f"dev {row['question']}"} for row in questions(4)]
    return write_rows(path, [row | {"part": "train"} for row in rows] + others)


def test_odd_questions_are_searched_or_left_out_with_a_reason(tmp_path, caplog):
    caplog.set_level(logging.INFO, "drllm")
    data = searched_rows(tmp_path / "odd.jsonl", odd_rows())
    assert load_task(TASK, data).dropped["duplicate"] == 1
    config = SearchConfig(n_simulations=3, splits=("fit", "calibrate"))
    search(model(), [TASK], config, tmp_path, data, routes=[Route.parse("1121")])
    records = {record.id: record for record in matrix(tmp_path)}
    skipped = json.loads((tmp_path / "paths" / TASK / "_plan.json").read_text())["skipped"]
    too_long = "a prompt that, with its answer, exceeds the context of 256 tokens"
    assert skipped == dict.fromkeys(("much too long", "even: longer", "too long by a choice"), too_long)
    assert records.keys() == {row["id"] for row in odd_rows()} - {"again"} - skipped.keys()
    for record in records.values():
        assert all(margin == margin for margin in record.margins), record.id  # none is nan
    second, first = records["equal choices"], records["equal choices, the first"]
    assert (second.base_correct, first.base_correct) == (False, True), "as in lm-evaluation-harness argmax takes the first of equals"
    assert second.base_margin == first.base_margin == 0
    assert f"{TASK}: 3 questions left out: {too_long}" in caplog.messages
    assert f"{TASK}: 1 question left out: duplicate" in caplog.messages
    (job,) = read_jobs(tmp_path)
    assert (job["tasks"][TASK]["skipped"], job["tasks"][TASK]["dropped"]) == (3, {"duplicate": 1})


def test_no_question_that_fits_is_refused(tmp_path):
    rows = [row | {"question": "why? " * 200 + row["question"]} for row in questions(12)]
    with pytest.raises(InputError, match=r"arc_easy has no question that can be searched \("):
        search(model(), [TASK], SMALL, tmp_path / "run", write_rows(tmp_path / "long.jsonl", rows))


def test_a_question_that_fits_is_searched_though_its_second_wording_does_not(data, tmp_path):
    """The first wording here has no word of its own, the second begins with "Q: "."""
    loaded = load_task(TASK, data)
    most = 256 - max(len(f" {choice}") for row in questions() for choice in row["choices"])
    fit = [replace(one, question=one.question.rjust(most, "w")) for one in loaded.examples["fit"]]
    bare = replace(loaded, task=replace(loaded.task, loglik_template="{question}"), examples=loaded.examples | {"fit": fit})
    search(model(), [bare], SMALL, tmp_path)
    checks = {check.check for record in read_records(tmp_path / "search") for check in record.checks}
    assert checks == {"fp32:acc", "fp32:acc_norm"}


def broken_on(marker: str) -> RoutedModel:
    """A tiny model whose embedding of one byte is not a number: every question with that byte has broken logits."""
    routed = model()
    (token,) = byte_tokenizer()(marker)["input_ids"]
    with torch.no_grad():
        routed.model.get_input_embeddings().weight[token] = float("nan")
    return RoutedModel.wrap(routed.unwrap(), byte_tokenizer())


@pytest.mark.parametrize("reward", ["loglik", "letter"])
def test_a_question_with_broken_logits_is_recorded_as_such_and_costs_no_search(reward, tmp_path):
    rows = questions(30)
    rows[4]["question"] = rows[4]["question"].replace("?", " ~?")
    data = searched_rows(tmp_path / "sums.jsonl", rows)
    assert any(example.id == "q4" for example in load_task(TASK, data).examples["fit"])
    config = SearchConfig(n_simulations=4, group_size=8, reward=reward, max_new_tokens=2)
    search(broken_on("~"), [TASK], config, tmp_path, data)
    records = {record.id: record for record in read_records(tmp_path / "search")}
    broken = records.pop("q4")
    assert (broken.routes, broken.chosen, broken.base_correct) == ((Route.full(L),), None, False)
    assert broken.control_routes == ()
    assert broken.verified(Route.full(L)) == {"finite": False}
    assert broken.broken
    assert not any(record.broken for record in records.values())
    assert all(len(record.routes) > 1 for record in records.values())


@pytest.mark.slow
def test_a_group_of_nothing_but_broken_logits_stops_nothing(tmp_path):
    """As fp16 on the longest questions: they are done first, since each needs but one evaluation, or are all that a resumed search has."""
    rows = questions(24)
    for row in rows[:8]:
        row["question"] = row["question"].replace("?", ", and how do you know that it is so ~?")
    data = searched_rows(tmp_path / "sums.jsonl", rows)
    config = SearchConfig(n_simulations=4, group_size=1, control=False, verify=False)
    found = {}
    for pool_size in (1, 128):
        out = search(broken_on("~"), [TASK], config, tmp_path / str(pool_size), data, resources=Resources(pool_size=pool_size))
        found[pool_size] = folder_bytes(out / "search")
        assert sum(record.broken for record in read_records(out / "search")) >= 4
        assert not all(record.broken for record in read_records(out / "search"))
    assert found[1] == found[128]
    folder = tmp_path / "1" / "search" / TASK
    last = shard_path(folder, max(shard_indices(folder)))
    assert all(record.broken for record in read_shard(last))
    last.unlink()
    search(broken_on("~"), [TASK], config, tmp_path / "1", data)
    assert folder_bytes(tmp_path / "1" / "search") == found[1]


def test_a_model_of_nothing_but_broken_logits_is_refused(data, tmp_path):
    routed = model()
    with torch.no_grad():
        next(iter(routed.model.parameters())).fill_(float("nan"))
    routed = RoutedModel.wrap(routed.unwrap(), byte_tokenizer())
    with pytest.raises(InputError, match="logits are NaN or infinite"):
        search(routed, [TASK], SMALL, tmp_path, data)


@pytest.fixture
def disk(monkeypatch) -> list[float]:
    """How many files it still takes."""
    fsync, left = os.fsync, [math.inf]

    def taking(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", taking)
    return left


def test_a_full_disk_ends_in_one_line_and_the_same_command_resumes(data, tmp_path, disk, capsys):
    whole = search(model(), [TASK], SMALL, tmp_path / "whole", data)
    disk[0], out = 5, tmp_path / "full"  # the manifest, verdicts and records of two groups
    with pytest.raises(OSError, match="No space left on device") as error:
        search(model(), [TASK], SMALL, out, data, resources=Resources(pool_size=1))
    assert Path(error.value.filename).name.startswith("search-")
    assert shard_indices(out / "search" / TASK) == [1, 2]
    assert not list(out.rglob("*.partial"))
    disk[0] = math.inf
    search(model(), [TASK], SMALL, out, data)
    assert folder_bytes(out / "search") == folder_bytes(whole / "search")
    model().unwrap().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    disk[0] = 0
    command = ["search", "--model", str(tmp_path / "tiny"), "--tasks", TASK, "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*command, "--limit", "4"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("drllm: error: No space left on device: ")
    assert line.endswith("make room and run the same command, which resumes")


def test_an_unreadable_shard_is_refused_before_the_work_goes_on(data, tmp_path):
    search(model(), [TASK], SMALL, tmp_path, data)
    folder = tmp_path / "search" / TASK
    whole = shard_path(folder, 1).read_bytes()
    shard_path(folder, 0).unlink()
    damaged = bytearray(whole)
    # The last byte of a column's values: elsewhere, in statistics or names of the footer, a flipped bit may change nothing that is read.
    column = pq.ParquetFile(shard_path(folder, 1)).metadata.row_group(0).column(0)
    damaged[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 1
    for content in (b"", whole[: len(whole) // 2], b"not parquet at all", bytes(damaged)):
        shard_path(folder, 1).write_bytes(content)
        with pytest.raises(ArtifactError, match=r"shard-00001\.parquet .*: delete it and run the same command again"):
            search(model(), [TASK], SMALL, tmp_path, data)
        assert not shard_path(folder, 0).exists(), "refused before anything was searched"
    shard_path(folder, 1).unlink()
    search(model(), [TASK], SMALL, tmp_path, data)
    assert shard_path(folder, 1).read_bytes() == whole


def test_a_shard_of_another_model_or_other_questions_is_refused_before_the_work_goes_on(data, tmp_path):
    search(model(), [TASK], SMALL, tmp_path / "run", data)
    folder = tmp_path / "run" / "search" / TASK
    search(model(1), [TASK], SMALL, tmp_path / "other", data)
    copy_run(tmp_path / "other", tmp_path / "run", "verdicts")
    whole, other_questions = shard_path(folder, 1).read_bytes(), shard_path(folder, 2).read_bytes()
    shard_path(folder, 0).unlink()
    for foreign in (shard_path(tmp_path / "other" / "search" / TASK, 1).read_bytes(), other_questions):
        shard_path(folder, 1).write_bytes(foreign)
        with pytest.raises(ArtifactError, match=r"shard-00001\.parquet holds records of other questions or another model .*: remove it"):
            search(model(), [TASK], SMALL, tmp_path / "run", data)
        assert not shard_path(folder, 0).exists(), "refused before anything was searched"
    shard_path(folder, 1).write_bytes(whole)
    search(model(), [TASK], SMALL, tmp_path / "run", data)
    shard_path(folder, 1).write_bytes(shard_path(tmp_path / "other" / "search" / TASK, 1).read_bytes())
    with pytest.raises(ArtifactError, match="holds records of another model"):
        train(model(), tmp_path / "run", TRAIN)


def test_another_tokenizer_is_another_search(data, tmp_path):
    search(model(), [TASK], SMALL, tmp_path, data)
    other = byte_tokenizer()
    other.add_tokens(["what is"])
    with pytest.raises(ArtifactError, match="was searched with questions = "):
        search(RoutedModel.wrap(model().unwrap(), other), [TASK], SMALL, tmp_path, data)


class Interrupting(Reporter):
    """Does something when the first group is done."""

    def __init__(self, act: Callable[[], object]):
        self.act: Callable[[], object] | None = act

    def advance(self, job: Progress) -> None:
        if job.done and self.act is not None:
            act, self.act = self.act, None
            act()


def ctrl_c() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_keeps_the_shards_and_the_same_search_resumes(data, tmp_path):
    out = tmp_path / "run"
    with reporting_to(Interrupting(ctrl_c)), pytest.raises(KeyboardInterrupt):
        search(model(), [TASK], SMALL, out, data, resources=Resources(pool_size=4))
    assert len(shard_indices(out / "search" / TASK)) == 1
    search(model(), [TASK], SMALL, out, data)
    assert [job["status"] for job in read_jobs(out)] == ["interrupted", "done"]
    search(model(), [TASK], SMALL, tmp_path / "whole", data)
    assert folder_bytes(out / "search") == folder_bytes(tmp_path / "whole" / "search")


def test_a_second_search_in_the_same_folder_is_refused_while_the_first_is_at_work(data, tmp_path):
    def again() -> None:
        with pytest.raises(ArtifactError, match=r"another search is at work in .*run: wait for it, or give another --out"):
            search(model(), [TASK], SMALL, tmp_path / "run", data)

    with reporting_to(meanwhile := Interrupting(again)):
        search(model(), [TASK], SMALL, tmp_path / "run", data)
    assert meanwhile.act is None, "it was tried"
    assert [job["status"] for job in read_jobs(tmp_path / "run")] == ["done"]


KILLS = """
import dataclasses, json, os, random, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import drllm.core.files, runs, test_search_faults
from drllm import Resources, search
from drllm.scoring.prefixes import PrefixRunner

def count(owner, name, events, last, when):
    original = getattr(owner, name)
    def call(*args, **kwargs):
        if when == "before":
            events.append(name)
            if len(events) == last:
                os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if when == "after":
            events.append(name)
            if len(events) == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, call)

def child(out, last, report=None):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    # Moments: before and after each flush to disk, each rename, and each step of the model.
    events = []
    for owner, name in ((drllm.core.files.os, "fsync"), (Path, "replace"), (PrefixRunner, "_apply")):
        for when in ("before", "after"):
            count(owner, name, events, last, when)
    loops = int(sys.argv[4])
    config = dataclasses.replace(test_search_faults.SMALL, max_loop_span=loops)
    search(routed, [runs.TASK], config, out, sys.argv[2], resources=Resources(pool_size=4))
    if report:
        report.write_text(str(len(events)))
    os._exit(0)

routed, root = runs.model(), Path(sys.argv[1])
assert child(root / "whole", 0, root / "n") == 0
n, moments = int((root / "n").read_text()), []
rng = random.Random(7)
for number in range(n_kills := int(sys.argv[3])):
    # One moment in each part of the search, so that few lie all over it, too.
    last = rng.randint(1 + n * number // n_kills, n * (number + 1) // n_kills)
    status = child(root / f"killed-{number}", last)
    shards = len(list((root / f"killed-{number}").rglob("shard-*.parquet")))
    again = child(root / f"killed-{number}", 0)
    moments.append({"event": last, "signal": os.WTERMSIG(status), "shards": shards, "resumed": again})
print(json.dumps({"n": n, "moments": moments}))
"""


@pytest.mark.parametrize(("n_kills", "loops"), [(4, 2), *(pytest.param(*many, marks=pytest.mark.slow) for many in ((4, 0), (20, 2)))])
def test_killed_at_random_moments_and_run_again_gives_the_records_of_an_uninterrupted_search(n_kills, loops, data, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": f"{Path(drllm.__file__).parents[1]}:{TESTS}:{TESTS.parent / 'support'}",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-c", KILLS, str(tmp_path), str(data), str(n_kills), str(loops)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    whole = folder_bytes(tmp_path / "whole" / "search")
    verdicts = folder_bytes(tmp_path / "whole" / "verdicts")
    n_shards = len(shard_indices(tmp_path / "whole" / "search" / TASK))
    assert n_shards == 3
    merge_runs([tmp_path / "whole"], tmp_path / "whole-merged")
    for number, moment in enumerate(found["moments"]):
        assert (moment["signal"], moment["resumed"]) == (9, 0), moment
        out = tmp_path / f"killed-{number}"
        assert folder_bytes(out / "search") == whole, moment
        assert folder_bytes(out / "verdicts") == verdicts, moment
        (job,) = read_jobs(out)
        assert job["tasks"][TASK]["resumed_groups"] == moment["shards"]
        merge_runs([out], tmp_path / f"merged-{number}")
        assert folder_bytes(tmp_path / f"merged-{number}" / "verdicts") == folder_bytes(tmp_path / "whole-merged" / "verdicts")
    assert len({moment["shards"] for moment in found["moments"]}) >= 3, "the moments lie all over the search"


def test_two_halves_searched_apart_and_merged_are_the_whole(data, tmp_path):
    """What a question's record holds depends on the question alone, so parts can be searched anywhere."""
    config = SearchConfig(n_simulations=4, group_size=4)
    search(model(), [TASK], config, tmp_path / "whole", data)
    fit = {example.id for example in load_task(TASK, data).examples["fit"]}
    rows = [row for row in questions() if row["id"] in fit]
    random.Random(1).shuffle(rows)
    for name, half in {"a": rows[: len(rows) // 2], "b": rows[len(rows) // 2 :]}.items():
        # Marked as train, with other rows as dev, every one of them falls into fit or calibrate.
        part = write_rows(tmp_path / f"{name}.jsonl", half)
        search(model(), [TASK], config, tmp_path / name, part)
    found = [record for name in "ab" for record in read_records(tmp_path / name / "search")]
    by_id = {record.id: record for record in read_records(tmp_path / "whole" / "search")}
    assert len(found) >= 10
    assert all(str(record) == str(by_id[record.id]) for record in found)
    merge_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    search(model(), [TASK], config, tmp_path / "both", data)
    assert folder_bytes(tmp_path / "both" / "search") == folder_bytes(tmp_path / "whole" / "search")
    assert len(folder_bytes(tmp_path / "both" / "verdicts")) == 1, "all that it asked was there"
