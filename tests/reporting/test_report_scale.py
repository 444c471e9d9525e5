"""A report of many policies on many tasks, and of half a run: what leads, what is folded, what is told apart, what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")

from test_report import BEHAVIOUR, L, markdown_of, write_evaluation, write_search, write_training
from test_report import run as run

from drllm.core.files import write_json
from drllm.reporting import report
from drllm.reporting.drawing import colour, draw, marker
from drllm.reporting.figures import accuracy_chart
from drllm.reporting.page import glossary
from drllm.reporting.parts import Chart, Folded, Paragraph, Table
from drllm.runs.answers import read_answers, write_answers
from drllm.runs.layout import RunFolder
from drllm.runs.load import load_run, read_summary

pytestmark = pytest.mark.long

FULL_TASKS = ("arc_easy", "arc_challenge", "arith-1", "arith-2", "arith-3", "arith-4", "arith-5")
FULL_METHODS = (
    "base",
    "routers",
    "random",
    "shuffled",
    "routers_first_block",
    "routers_windows_16",
    "routers_budget",
    "early_exit",
    "shortgpt",
    "random_skip",
)
DEEP, ASKED = 30, 24
DEEP_MODEL = SimpleNamespace(n_layers=DEEP, base_id="smollm2-135m-q4", fingerprint="f00d")


def deep_route(method: int, n: int) -> str:
    """Of question `n`: the base's for the first method, else up to four blocks skipped and one repeated, for most questions others."""
    actions = ["1"] * DEEP
    for place in range(1 + method % 4 if method else 0):
        actions[(7 * method + 5 * place + (n if n > 8 else 0)) % DEEP] = "0"
    if method and n % 3 == 0:
        actions[(3 * method + n) % DEEP] = "2"
    return "".join(actions)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A run as `drllm reproduce` leaves it: ten methods on seven tasks, and twelve trainings; with its report."""
    folder = tmp_path_factory.mktemp("full")
    behaviour = {
        method: (lambda n, place=place: (n + place) % 3 > 0, lambda n, place=place: deep_route(place, n))
        for place, method in enumerate(FULL_METHODS)
    }
    write_search(folder, FULL_TASKS)
    write_training(folder, (*(name for name in FULL_METHODS if name.startswith("routers")), *(f"routers_width_{2**n}" for n in range(8))))
    write_evaluation(folder, "tune-first-500", FULL_TASKS, behaviour, DEEP_MODEL, ASKED)
    report.report(folder)
    return folder


def test_a_method_looks_the_same_in_every_picture_and_a_baseline_has_its_colour(full: Path):
    summary = read_summary(RunFolder(full).summary("tune-first-500"))
    some = [row for row in summary.pooled if row.method in ("base", "routers", "random", "shuffled")][::-1]
    looks = []
    for rows in (summary.rows, some):
        chart = accuracy_chart(replace(summary, rows=rows))
        assert isinstance(chart, Chart)
        drawn = {shown.get_label(): shown.lines[0] for shown in draw(chart).axes[0].containers}
        looks.append({name: (line.get_color(), line.get_marker()) for name, line in drawn.items()})
    assert len(set(looks[0].values())) == len(looks[0])
    assert looks[1].items() <= looks[0].items()
    colours = {name: colour for name, (colour, _) in looks[1].items()}
    assert len(colours) == len(some)
    assert colours["routers"] == colours["shuffled"] == colours["random"] != colours["base"]


def test_no_two_methods_look_alike_before_the_57th():
    assert len({(colour(index), marker(index)) for index in range(56)}) == 56


def test_one_sentence_leads(full: Path):
    opening = (full / "report" / "report.md").read_text().partition("## Results")[0]
    assert opening.count("- **") == 1
    assert "- **routers: " in opening


def test_the_largest_comparison_in_domain_leads(run: Path):
    write_evaluation(run, "calibrate", n=4)
    worse = BEHAVIOUR | {"routers": (lambda n: False, lambda n: "1211" if n % 2 else "1111")}
    write_evaluation(run, "tune-first-500", behaviour=worse, n=40)
    write_evaluation(run, "tune-first-900", tasks=("sciq",), n=200)  # which nothing was searched on
    text = markdown_of(run)
    assert "- **routers: a loss: -50.0 points, 95 % interval " in text
    assert "McNemar p &lt; 0.001, 80 questions; " in text
    assert "(2 tasks, tune-first-500 split)**" in text
    assert text.index("### Tune-first-900 split") < text.index("### Tune-first-500 split") < text.index("### Calibrate split")


def test_a_single_route_does_not_lead(run: Path):
    told = {"static": BEHAVIOUR["static"], "codebook": BEHAVIOUR["routers"]}
    write_evaluation(run, behaviour={"base": BEHAVIOUR["base"], **told})
    text = markdown_of(run)
    assert "- **codebook: " in text


def test_a_search_without_a_finished_question_has_begun(tmp_path: Path):
    write_search(tmp_path)
    for path in tmp_path.glob("search/*/*.parquet"):
        path.unlink()
    text = markdown_of(tmp_path)
    assert "The search of arc_easy, piqa has begun, and no question is finished yet" in text
    assert "Nothing has been searched yet" not in text
    write_search(tmp_path / "half")
    for path in (tmp_path / "half" / "search" / "piqa").glob("*.parquet"):
        path.unlink()
    text = markdown_of(tmp_path / "half")
    assert "The search of piqa has begun" in text
    assert "| arc_easy | 6 |" in text


@pytest.mark.parametrize(
    ("gone", "named"), [((), "base, static, routers, shuffled"), (("routers", "piqa"), "routers")], ids=["all of them", "of one task"]
)
def test_missing_answers_are_named(run: Path, gone, named):
    path = run / "evaluate" / "tune" / "answers.parquet"
    answers = read_answers(path)
    path.unlink()
    if gone:
        write_answers(path, {place: found for place, found in answers.items() if place != gone})
    text = markdown_of(run)
    assert text.count(f"Answers of the tune split are not in this folder (of {named})") == 1
    assert "No passes by block" not in text


def test_a_single_best_method_has_no_front(full: Path):
    summary = read_summary(RunFolder(full).summary("tune-first-500"))
    better = replace(summary, rows=[replace(row, accuracy=row.mean_passes / 20) for row in summary.rows])
    worse = replace(summary, rows=[replace(row, accuracy=1 - row.mean_passes / 20) for row in summary.rows])
    for given, fronts in ((better, 1), (worse, 0)):
        chart = accuracy_chart(given)
        assert isinstance(chart, Chart)
        assert sum(line.get_label() == "Pareto front" for line in draw(chart).axes[0].lines) == fronts


def test_many_trainings_are_tabled(full: Path):
    text = (full / "report" / "report.md").read_text().partition("\n## Training\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| --- \|", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^\| routers\w* \| 3 of 3 \|", text, re.MULTILINE)) == 12


def test_what_is_not_calibrated_is_one_sentence(run: Path):
    for name in ("routers", "static", "codebook"):
        (run / name).mkdir()
        write_json(run / name / "drllm_config.json", {"policy": name})
    text = markdown_of(run)
    assert "Not calibrated, so nothing is promised of them; the figures above are what was measured: codebook, routers, static." in text


def test_the_glossary_has_the_words_of_the_page_alone():
    (folded,) = glossary([Paragraph("On tune-first-100 routers@+0.25, weights beef1234."), Table(("method",), (("random",),))])
    assert isinstance(folded, Folded)
    (table,) = folded.parts
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["tune-first-500", "routers@-0.50", "random", "weights d2b61903"]
    assert glossary([Paragraph("Nothing to explain.")]) == []


def test_many_jobs_are_folded(run: Path):
    (job,) = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", [job] * 9)
    text = report.report(run).read_text()
    assert "<summary>All 9 jobs</summary>" in text
    assert len(load_run(run).jobs) == 9


def test_rows_of_sentences_are_cards_on_a_phone_and_figures_are_not(run: Path):
    text = report.report(run).read_text()
    assert L == 4
    assert '<table class="cards">' in text
    assert 'data-name="meaning"' in text
    assert 'data-name="accuracy, %"' not in text
