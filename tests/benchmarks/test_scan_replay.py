"""`benchmarks/scan.py` on a tiny model: the race replayed on the stored product is the race that `drllm scan` runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

import runs
import scan as benchmark
from byte_tokens import byte_tokenizer
from drllm import ScanConfig, scan
from drllm.runs.layout import RunFolder
from drllm.runs.scan_result import read_map, read_scan

pytestmark = pytest.mark.long

QUESTIONS = 24  # more than the 17 of `_probes`


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A folder with the product, what its replay says, and a scan of the same questions."""
    folder = tmp_path_factory.mktemp("product")
    runs.model().unwrap().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    data = runs.write_rows(folder / "arc_easy.jsonl", runs.questions(120))
    asked = {"model": str(folder / "model"), "tasks": runs.TASK, "data": str(data), "dtype": "float32", "threads": 1}
    asked |= {"questions": QUESTIONS, "out": folder / "whole"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "show_progress", lambda: None)  # for the whole process
        benchmark.product(argparse.Namespace(**asked))
    benchmark.replay(argparse.Namespace(source=folder / "whole" / "product.npz", orders=20, to=folder / "replay.json"))
    scan(runs.model(), [runs.TASK], ScanConfig(questions=QUESTIONS, fresh=0, n_resamples=100), folder / "scanned", data)
    return folder


def test_the_replay_costs_and_names_what_the_scan_does(stored):
    told = json.loads((stored / "replay.json").read_text(encoding="utf-8"))
    folder = RunFolder(stored / "scanned").scan
    result, cells = read_scan(folder), read_map(folder)
    assert (told["questions"], told["candidates"]) == (QUESTIONS, len(cells))
    assert told["as_scanned"]["share_of_full_cost"] == pytest.approx(result.cost.share)
    assert told["full_forwards"] == pytest.approx(result.cost.full)
    whole = {(one["kind"], one["first"], one["last"]): one for one in told["best"]}
    both = [cell for cell in cells if cell.questions == QUESTIONS and (cell.kind, cell.first, cell.last) in whole]
    assert both, "of the best on all questions some were raced to the end"
    for cell in both:
        one = whole[cell.kind, cell.first, cell.last]
        assert (one["score"], one["accuracy"]) == pytest.approx((cell.score, cell.accuracy), abs=2e-3), "margins are stored as float16"


def test_a_race_that_leaves_nobody_behind_finds_the_best(stored):
    product = benchmark.Product(stored / "whole" / "product.npz")
    kinds = [one.kind for one in product.pool]
    told = benchmark.raced(product, kinds, [benchmark.asked_first(product, np.arange(QUESTIONS))])
    assert told["share_of_full_cost"] < 1, "who is clearly behind is asked no more"
    told = benchmark.raced(product, kinds, [np.arange(8)])  # one round
    assert (told["share_of_full_cost"], told["same_best"], told["score_lacking"]) == (pytest.approx(1, rel=0.2), 1, 0)
