"""`drllm retrofit` recommends: what fits into the time, the policy that tune names, the promise on calibrate, or the base."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from drllm import Route, RoutedModel
from drllm.core.config import SECTIONS, GuaranteeConfig, RetrofitConfig, SearchConfig
from drllm.core.errors import InputError
from drllm.methods.base import get_method
from drllm.reporting.recommendation import commands, lines, panel, title
from drllm.retrofitting.recommend import RECOMMENDED, recommend
from drllm.retrofitting.sizes import CALIBRATE, LIST, SCAN, SEARCH, TUNE, race_cost, sizes_of
from drllm.runs.load import read_summary
from drllm.runs.provenance import read_jobs
from drllm.runs.recommendation import Recommendation, read_recommendation
from drllm.runs.summary import SummaryRow
from runs import TASK, L, model, questions, write_rows

pytestmark = pytest.mark.long

FEW = {"fit": 270, "tune": 200, "calibrate": 50, "test": 400}


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", questions(300))


def configs(**retrofit) -> dict:
    of = {name: kind() for name, kind in SECTIONS.items()} | {name: get_method(name).config() for name in ("static", "routers")}
    return of | {"search": SearchConfig(max_step_tokens=600), "retrofit": RetrofitConfig(**{"minutes": 0.3} | retrofit)}


@pytest.fixture(scope="module")
def speed(tiny, rows, tmp_path_factory) -> tuple[Path, Recommendation, dict]:
    """Fewer passes wanted, and half of all right answers may be lost: something is promised for sure."""
    out = tmp_path_factory.mktemp("speed")
    of = configs(objective="speed") | {"gate": GuaranteeConfig("calibrate", epsilon=0.5)}
    return out, *recommend(tiny, [TASK], out, of, rows, ["drllm", "retrofit"])


def test_what_is_recommended_saves_what_was_asked_for_and_is_promised(speed, tiny):
    out, found, result = speed
    assert (found.deploy, found.promised, found.kept) == (RECOMMENDED, True, 0.9)
    assert found.best in found.tried
    assert found.tune is not None
    assert found.calibrate is not None
    assert found.calibrate.mean_passes <= 0.9 * L + 0.5
    assert 0 < found.ratio_low <= found.ratio <= found.ratio_high
    policy = RoutedModel.from_pretrained(out / RECOMMENDED, base=tiny).policy
    assert policy is not None
    assert policy.guarantee["sentence"] == found.promise
    assert found.is_static == (policy.route is not None)
    answer = result["answer"]
    assert set(answer) == {"prompt", "base", RECOMMENDED}
    assert answer["base"]["route"] == "1" * L
    assert read_recommendation(out / "recommendation.json") == found
    assert "Deploy" in panel(found, str(out))
    page = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert page.index(title(found)) < page.index("## Results")
    assert all(command in page for command in commands(found, out.as_posix()))


def test_the_named_policy_is_the_best_on_tune_within_the_budget(speed):
    out, found, result = speed
    rows = {row.method: row for row in result["summary"].pooled}
    within = [rows[name] for name in found.tried if rows[name].mean_passes <= 0.9 * L + 0.5]
    assert within
    assert rows[found.best].difference == max(row.difference for row in within)
    assert {"base", "shuffled-paper"} < rows.keys()
    assert "looped" in found.missed, "a loop runs more blocks than nine tenths"
    calibrated = read_summary(out / "evaluate" / f"calibrate-first-{found.sizes['calibrated']}" / "summary.json")
    assert {row.method for row in calibrated.rows} == {"base", found.best}
    jobs = [job["job"] for job in read_jobs(out)]
    assert jobs.index("calibrate") > jobs.index("evaluate"), "the policy is named before a calibrate question is read"


def test_again_every_stage_is_done(speed, tiny, rows):
    out, found, _ = speed
    of = configs(objective="speed") | {"gate": GuaranteeConfig("calibrate", epsilon=0.5)}
    before = (out / "recommendation.json").read_bytes()
    again, result = recommend(tiny, [TASK], out, of, rows, ["drllm", "retrofit"])
    assert again == dataclasses.replace(found, read=None)
    assert (out / "recommendation.json").read_bytes() == before
    assert len(result["skipped"]) >= 12
    assert "report" in result["skipped"]


def test_nothing_is_deployed_without_a_promise(tiny, rows, tmp_path):
    """Of a hundredth of a point no 45 questions can say anything: the base is kept, and the line says what would change that."""
    of = configs(objective="speed") | {"gate": GuaranteeConfig("calibrate", epsilon=1e-4, delta=1e-6)}
    found, result = recommend(tiny, [TASK], tmp_path, of, rows, ["drllm", "retrofit"])
    assert (found.deploy, found.promised) == ("", False)
    assert title(found) == "Keep the base"
    assert set(result["answer"]) == {"prompt", "base"}
    text = panel(found, str(tmp_path))
    assert "Best that was tried" in text
    assert "What could change this" in text
    assert not (tmp_path / RECOMMENDED).exists()


# --- words --------------------------------------------------------------------------------------------------------------------------------


def row(n: int = 100, better: int = 12, worse: int = 8, passes: float = 28.5) -> SummaryRow:
    difference = (better - worse) / n
    return SummaryRow("codebook", "all", n, 0.5, 0.4, 0.6, passes, 30, 3, 0.5, 1.0, difference, -0.05, 0.13, 0.5, better, worse)


def kept(**changes) -> Recommendation:
    given = {"model": "m", "deploy": "", "best": "codebook", "objective": "accuracy", "kept": 1.0, "tried": ["static", "codebook"]}
    return Recommendation(**given | {"tune": row(), "sizes": {"tuned": 100, "calibrated": 50}} | changes)


def test_how_many_questions_would_make_a_gain_sure():
    """By hand: 4 points, a variance of 0.2 - 0.0016 a question: (1.96 / 0.04)^2 x 0.1984 = 476.4."""
    assert kept().needed == 477
    assert kept(tune=row(better=8, worse=12)).needed == 0
    assert kept(tune=None).needed == 0
    text = " ".join(lines(kept()))
    assert "on about 477 questions" in text
    assert "on 100 tune questions, which chose it" in text
    assert "calibrate" in " ".join(lines(kept(calibrate=row(60, 5, 3))))


def test_a_box_says_what_was_not_made_and_why():
    found = kept(
        best="", tune=None, tried=["static"], missed={"paper": "its search does not fit into 1 minutes"}, kept=0.9, objective="speed"
    )
    text = " ".join(lines(found))
    assert "None of static changed an answer for the better within 0.90 of the base's passes." in text
    assert "paper: its search does not fit into 1 minutes" in text
    assert "--objective accuracy" in text
    assert commands(found, "runs/x") == ["drllm report runs/x"]


def test_only_one_route_for_all_is_exported():
    static, book = (commands(kept(deploy=RECOMMENDED, is_static=flag), "runs/x") for flag in (True, False))
    assert any("drllm export" in line for line in static)
    assert not any("drllm export" in line for line in book)


# --- sizes --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [1, 3, 10, 60, 1000])
@pytest.mark.parametrize("plain_ms", [3, 30, 300])
def test_stages_fit_into_the_time(minutes, plain_ms):
    available = {"a": FEW, "b": FEW}
    if race_cost(30, 1, 8) > SCAN * 60_000 * minutes / plain_ms:
        with pytest.raises(InputError, match="too short"):
            sizes_of(30, plain_ms, minutes, available)
        return
    found = sizes_of(30, plain_ms, minutes, available)
    forwards = 60_000 * minutes / plain_ms
    assert race_cost(30, found.max_span, found.scanned) <= SCAN * forwards
    assert found.searched == 0 or found.searched * 2 * 19.81 <= SEARCH * forwards + 1
    assert found.tuned == 12 or found.tuned * 2 * 6 <= TUNE * forwards
    assert found.tuned <= 200
    assert found.calibrated == 12 or found.calibrated * 2 * 4 <= CALIBRATE * forwards
    assert found.calibrated <= 50
    assert found.listed == 12 or found.listed * 2 * 2 * 16 * 0.6 <= LIST * forwards + 1


def test_more_time_asks_more():
    found = [sizes_of(30, 30, minutes, {"a": FEW, "b": FEW}) for minutes in (2, 5, 20, 100)]
    assert [one.scanned for one in found] == sorted(one.scanned for one in found)
    assert [one.searched for one in found] == sorted(one.searched for one in found)
    assert found[-1].scanned == 128
    assert found[-1].max_span == 0


def test_too_little_time_or_too_few_questions_is_one_line():
    with pytest.raises(InputError, match=r"--minutes 0\.5 is too short here, where the base takes 2 s a question: give at least \d+"):
        sizes_of(28, 2000, 0.5, {"a": FEW})
    with pytest.raises(InputError, match="the tasks have 5 fit questions, a scan needs at least 8"):
        sizes_of(28, 2, 10, {"a": FEW | {"fit": 5}})


def test_the_cost_of_a_race_is_about_what_a_scan_counts():
    """All candidates in the first round, half of them from round to round; a tiny model's counts by hand from the trie."""
    assert race_cost(4, 0, 8) == pytest.approx(8 * 12, rel=0.5)
    assert race_cost(30, 0, 128) < 0.3 * 128 / 8 * race_cost(30, 0, 8)
    assert not math.isnan(race_cost(1, 1, 8))
    assert Route.full(4).n_passes == 4
