"""The page of a report: what stands in it, that nothing of others is markup there, the Pareto front; a real browser."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from test_report import FULL_TASKS
from test_report import full as full
from test_report import run as run

from drllm import ArtifactError
from drllm.core.files import write_json
from drllm.reporting import report
from drllm.reporting.drawing import write_charts
from drllm.reporting.figures import pareto_front
from drllm.reporting.page import to_html, write_page
from drllm.reporting.parts import Heading, Paragraph, Table
from drllm.runs.answers import read_answers, write_answers
from drllm.runs.records import read_records, write_shard
from drllm_research.paper import charts
from pages import look_at, needs_chromium
from record_factory import write_verdicts

pytestmark = pytest.mark.long

NASTY = "<script>alert(1)</script> & 'quotes'"
PROMISE = {
    "sentence": "with 95 % confidence less than 1 points below the base",
    "delta": 0.05,
    "tested": [{"point": 2, "p": 0.02, "difference": 0.004, "mean_passes": 3.5, "passed": True}],
}


class Outline(HTMLParser):
    """Tags that are open at the end, references to other places, and ids."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href") if values.get(name)]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def asked(run: Path) -> Path:
    """The run with a policy that was calibrated."""
    (run / "static").mkdir()
    write_json(run / "static" / "drllm_config.json", {"policy": "static", "promise": PROMISE})
    return run


def tell(run: Path, **changes) -> None:
    """Change what a run's evaluation says of itself."""
    path = run / "evaluate" / "tune" / "summary.json"
    write_json(path, json.loads(path.read_text()) | changes)


def test_the_page_needs_nothing_beside_it_and_is_well_formed(asked: Path):
    text = report.report(asked).read_text()
    outline = Outline(text)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert text.count('<img src="data:image/png;base64,') == 2


def test_a_route_that_is_none_is_refused(asked: Path):
    path = asked / "evaluate" / "tune" / "answers.parquet"
    found = read_answers(path)["routers", "piqa"]
    write_answers(path, {("routers", "piqa"): dataclasses.replace(found, routes=["0-2,1-9x", *found.routes[1:]])})
    with pytest.raises(ArtifactError, match=r"answers\.parquet has an unreadable route \(cannot read route '0-2,1-9x'"):
        report.report(asked)


def test_files_that_an_evaluation_did_not_ask_are_not_of_it(asked: Path):
    rows = json.loads((asked / "evaluate" / "tune" / "summary.json").read_text())["rows"]
    tell(asked, tasks=["piqa"], rows=[row for row in rows if row["task"] == "piqa"])
    report.report(asked)
    assert "arc_easy" not in (asked / "report" / "usage_tune.csv").read_text()


def test_a_route_of_another_length_is_refused(asked: Path):
    rows = json.loads((asked / "evaluate" / "tune" / "summary.json").read_text())["rows"]
    tell(asked, rows=[row | {"n_layers": 5} for row in rows])
    with pytest.raises(ArtifactError, match=r"tune/answers\.parquet has a route of 4 blocks: evaluate again"):
        report.report(asked)


def test_labels_of_two_models_are_not_tabled_together(asked: Path):
    folder, replace = asked / "search" / "piqa", dataclasses.replace
    records = [replace(record, conditions=replace(record.conditions, weights="beef")) for record in read_records(folder)]
    write_verdicts(asked, records, "beef")
    for path in folder.glob("*.parquet"):
        path.unlink()
    write_shard(folder, 0, records)
    assert "No table of labels:" in report.report(asked).read_text()


def test_markdown_holds_no_markup_of_others(asked: Path):
    tell(asked, model="<img src=x>")
    text = report.report(asked).with_suffix(".md").read_text()
    assert text.startswith("# Adaptive depth on &lt;img src=x>\n")


def test_the_page_says_what_is_promised(asked: Path):
    text = report.report(asked).read_text()
    assert "static: with 95 % confidence less than 1 points below the base" in text
    assert "<td>2</td><td>+0.4</td><td>3.50</td><td>0.0200</td><td>passed</td>" in text


def test_a_table_and_a_heading_escape_what_they_show():
    text = to_html([Heading(NASTY, 1), Paragraph(f"`{NASTY}` {NASTY}"), Table((NASTY,), ((NASTY,),), caption=NASTY)], {})
    assert "<script>alert" not in text
    assert Outline(text).open == []


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(3, 40), (2, 41), (4, 50)], [(2, 41), (4, 50)]),
        ([(3, 40), (3, 42), (2, 42)], [(2, 42)]),
        ([(1, 10), (2, 20), (3, 20)], [(1, 10), (2, 20)]),
        ([], []),
    ],
)
def test_the_front_holds_what_nothing_cheaper_beats(points, expected):
    assert pareto_front(points) == expected


# What a reader would not see: a cell or a picture that leaves the page.
CUT = """() => [...document.querySelectorAll(".cards td, figure img")]
  .filter((one) => one.getBoundingClientRect().right > window.innerWidth).map((one) => one.textContent || one.alt)"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_is_cut_on_a_full_sized_page(full: Path, tmp_path: Path, width: int, scheme):
    """Ten methods on seven tasks, twelve trainings."""
    cut = []
    look_at(full / "report" / "report.html", width, scheme, 2, lambda page: cut.extend(page.evaluate(CUT)), tmp_path / "page.png")
    assert cut == []


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_a_browser(asked: Path, tmp_path: Path, width: int, scheme):
    """Pictures shown, numbers open by keyboard, nothing to complain of; so with the paper's kinds of figures."""

    def use(page):
        assert page.evaluate(CUT) == []
        page.locator("details.numbers > summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details.numbers[open] table").first.is_visible()

    look_at(report.report(asked), width, scheme, 2, use, tmp_path / "page.png")
    losses = [charts.Point(name, 2.0, 1.0, 3.0) for name in ("focal (paper)", "weighted cross-entropy", "plain cross-entropy")]
    some, many = ({name: [0.2, 0.5, 0.9] for name in names} for names in (("skip", "repeat"), FULL_TASKS))
    title, words = "A figure of the paper with a title", "A caption."
    parts = [
        Heading("Figures", 1),
        charts.curves("losses", title, words, ("loss", "points over the base, 95 %"), {"routers": losses, "others": losses}),
        charts.histogram("shares", title, words, "probability", some),
        charts.boxes("boxes", title, words, "passes a block", {"early blocks (0 to 9)": many, "late blocks (20 to 29)": many}),
        charts.usage("usage", title, words, {name: [1.0] * 30 for name in FULL_TASKS}),
        Table(("here", "claim"), (("holds", "a claim that is longer than a cell that a phone could show beside others"),)),
    ]
    write_charts(parts, tmp_path)
    look_at(write_page([], parts, tmp_path), width, scheme, 4, use, tmp_path / "page.png")
