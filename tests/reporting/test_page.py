"""The page of a report: what stands in it, that nothing of others is markup there, the Pareto front, groups of routes; a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from test_report import LOOPING, write_evaluation, write_search
from test_report import run as run
from test_report_scale import FULL_TASKS
from test_report_scale import full as full

from drllm import ArtifactError, InputError
from drllm.core.files import write_json
from drllm.reporting import browser, report
from drllm.reporting.chart import Axis
from drllm.reporting.drawing import need_extras
from drllm.reporting.figures import pareto_front
from drllm.reporting.page import to_html
from drllm.reporting.parts import Heading, Paragraph, RouteBrowser, Table
from drllm.runs.answers import read_answers, write_answers
from drllm.runs.records import read_records, write_shard
from drllm.tasks import load_task, texts_digest
from drllm_research.paper import charts
from pages import look_at, needs_chromium
from record_factory import write_verdicts

pytestmark = pytest.mark.long

NASTY = "<script>alert(1)</script> & 'quotes'"
GUARANTEE = {
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
    """The run with texts of its questions at hand, and a policy that was calibrated."""
    lines = [{"id": f"q{n}", "question": f"What is {n}? {NASTY}", "choices": ["this", "that"], "answer": 1} for n in range(12)]
    data = run / "mine.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tell(run, data={"arc_easy": str(data), "piqa": str(data)}, texts=digests(data))
    (run / "static").mkdir()
    write_json(run / "static" / "drllm_config.json", {"policy": "static", "guarantee": GUARANTEE})
    return run


def digests(data: Path) -> dict[str, str]:
    """Of the file's texts, which both tasks ask."""
    digest = texts_digest(example for rows in load_task("piqa", data).examples.values() for example in rows)
    return {"arc_easy": digest, "piqa": digest}


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


def test_a_prompt_is_text_in_the_page_and_never_markup(asked: Path):
    text = report.report(asked).read_text()
    assert "What is 1? &lt;script&gt;alert(1)&lt;/script&gt; &amp; &#39;quotes&#39;" in text
    assert "<script>alert(1)" not in text
    assert "right answer: that" in text


def test_the_page_shows_the_routes_with_their_prompts(asked: Path):
    text = report.report(asked).read_text()
    # Routers send 4 of 12 prompts of each task along 1211, the others along 1011; of 0 to 3 they are right, the base on 0 and 2.
    assert re.search(r"skips 1:\s+16 prompts \(arc_easy 8, piqa 8\), 2 better and 0 worse", text)
    assert re.search(r"repeats 1:\s+8 prompts \(arc_easy 4, piqa 4\), 2 better and 0 worse", text)
    assert text.index("base wrong, routers right") < text.index("base right, routers right")


def test_the_page_shows_a_loop_in_the_strip_and_in_words(asked: Path):
    """Blocks of the span stand between the classes of its ends; routes that differ in a strength are apart."""
    shutil.rmtree(asked / "evaluate")
    write_evaluation(asked, behaviour=LOOPING)
    text = report.report(asked).read_text()
    assert re.search(r"runs 1-2 again after 2:\s+12 prompts \(arc_easy 6, piqa 6\)", text)
    again = [", and again" if "loop" in kinds else "" for kinds in STRIP]
    strip = "".join(f'<span class="{kinds}" title="block {n}: execute{again[n]}"></span>' for n, kinds in enumerate(STRIP))
    assert f'aria-label="runs 1-2 again after 2 at strength 0.5">{strip}' in text
    assert "a span that runs again</p>" in text


STRIP = ("execute", "execute loop from", "execute loop to", "execute")


def test_routes_differ_in_their_loops():
    assert browser.distance("1111", "0-2,1-3") == 1
    assert browser.distance("0-2,1-3", "0-2,(1-2)*0.5,3") == 1
    assert browser.distance("0-2,1-3", "0-2,1-3") == 0
    assert browser.distance("1011", "0-2,1-3") == 2
    assert browser.cluster({"1111": 3, "0-2,1-3": 2, "0-2,(1-2)*0.5,3": 1}, 1) == {"1111": 0, "0-2,1-3": 1, "0-2,(1-2)*0.5,3": 1}


def test_a_route_that_is_none_is_refused(asked: Path):
    path = asked / "evaluate" / "tune" / "answers.parquet"
    found = read_answers(path)["routers", "piqa"]
    write_answers(path, {("routers", "piqa"): dataclasses.replace(found, routes=["0-2,1-9x", *found.routes[1:]])})
    with pytest.raises(ArtifactError, match=r"answers\.parquet has an unreadable route \(cannot read route '0-2,1-9x'"):
        report.report(asked)


def test_texts_that_are_not_at_hand_are_said_to_be_missing(run: Path):
    tell(run, data={"arc_easy": str(run / "gone.jsonl"), "piqa": None})
    text = report.report(run).read_text()
    assert "Texts of arc_easy are not shown, since its questions are not at hand" in text
    assert "piqa q3" in text


def test_texts_of_another_file_with_the_same_ids_are_not_shown(asked: Path):
    data = asked / "mine.jsonl"
    data.write_text(data.read_text().replace("What is 5?", "What was 5?"))
    text = report.report(asked).read_text()
    assert "Texts of piqa are not shown: file mine.jsonl does not hold the questions that were asked." in text
    assert "What is 1?" not in text


def test_half_a_surrogate_pair_does_not_stop_a_report(asked: Path):
    data = asked / "mine.jsonl"
    data.write_text(data.read_text().replace("What is 1?", "What is \\ud83d1?"))
    tell(asked, texts=digests(data))
    assert "What is ?1?" in report.report(asked).read_text()


def test_files_that_an_evaluation_did_not_ask_are_not_of_it(asked: Path):
    path = asked / "evaluate" / "tune" / "summary.json"
    summary = json.loads(path.read_text())
    summary["tasks"] = ["piqa"]
    summary["rows"] = [row for row in summary["rows"] if row["task"] == "piqa"]
    write_json(path, summary)
    text = report.report(asked).read_text()
    assert re.search(r"skips 1:\s+8 prompts \(piqa 8\)", text)
    assert "arc_easy" not in (asked / "report" / "usage_tune.csv").read_text()


def test_where_the_base_was_not_asked_nothing_is_better_or_worse(asked: Path):
    path = asked / "evaluate" / "tune" / "answers.parquet"
    answers = read_answers(path)
    path.unlink()
    write_answers(path, {place: found for place, found in answers.items() if place[0] != "base"})
    tell(asked, texts={})
    text = report.report(asked).read_text()
    assert "base unknown, routers right" in text
    assert re.search(r"skips 1:\s+16 prompts \(arc_easy 8, piqa 8\), 0 better and 0 worse", text)


def test_a_route_of_another_length_is_refused(asked: Path):
    summary = json.loads((asked / "evaluate" / "tune" / "summary.json").read_text())
    for row in summary["rows"]:
        row["n_layers"] = 5
    tell(asked, rows=summary["rows"])
    with pytest.raises(ArtifactError, match=r"tune/answers\.parquet has a route of 4 blocks: evaluate again"):
        report.report(asked)


def test_labels_of_two_models_are_not_tabled_together(asked: Path):
    folder = asked / "search" / "piqa"
    records = [
        dataclasses.replace(record, conditions=dataclasses.replace(record.conditions, weights="beef")) for record in read_records(folder)
    ]
    write_verdicts(asked, records, "beef")
    for path in folder.glob("*.parquet"):
        path.unlink()
    write_shard(folder, 0, records)
    assert "No tables of labels:" in report.report(asked).read_text()


def test_markdown_holds_no_markup_of_others(asked: Path):
    tell(asked, model="<img src=x>")
    text = report.report(asked).with_suffix(".md").read_text()
    assert text.startswith("# Adaptive depth on &lt;img src=x>\n")


def test_the_page_says_what_is_promised(asked: Path):
    text = report.report(asked).read_text()
    assert "static: with 95 % confidence less than 1 points below the base" in text
    assert "<td>2</td><td>+0.4</td><td>3.50</td><td>0.0200</td><td>passed</td>" in text


def test_figures_are_valid_plotly_and_hold_the_numbers_of_the_csv(asked: Path):
    from plotly.graph_objects import Figure

    text = report.report(asked).read_text()
    plots = [json.loads(found) for found in re.findall(r'<script type="application/json" id="[^"]+">(.*?)</script>', text)]
    assert len(plots) == 4
    for plot in plots:
        Figure(plot)  # refuses an unknown trace or a wrong value
        assert all(axis["title"]["text"] for name, axis in plot["layout"].items() if name.startswith("xaxis"))
    points = {trace["name"]: trace for trace in plots[0]["data"]}
    assert points["base"]["x"] == [4]
    assert points["base"]["y"] == [50.0]
    assert "50.0 % (31.4 to 68.6), 4 passes, n = 24" in points["base"]["hovertemplate"]
    (usage,) = (trace for plot in plots for trace in plot["data"] if "z" in trace)
    assert usage["z"][usage["y"].index("routers, piqa")] == pytest.approx([1, 8 / 12, 1, 1])


def test_a_table_and_a_heading_escape_what_they_show():
    text = to_html([Heading(NASTY, 1), Paragraph(f"`{NASTY}` {NASTY}"), Table((NASTY,), ((NASTY,),), caption=NASTY)])
    assert "<script>alert" not in text
    assert Outline(text).open == []
    assert "plot" not in text.split("</style>")[1]  # no chart: no script to inline


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


def test_routes_are_grouped_under_the_commonest_of_them():
    counts = {"1111111101": 9, "1111111100": 1, "0111111111": 5, "0011111111": 2, "1111211111": 4, "1111111111": 3}
    groups = browser.cluster(counts, 3)
    assert groups["1111111111"] == 0
    assert groups["1111111101"] == groups["1111111100"] == 1
    assert groups["0111111111"] == groups["0011111111"] == 2
    assert groups["1111211111"] == 3


def test_many_routes_equally_far_from_each_other_make_several_groups():
    singles = {"1" * n + "0" + "1" * (29 - n): 30 - n for n in range(24)}
    groups = browser.cluster(singles)
    assert len(set(groups.values())) == browser.GROUPS
    assert groups[min(singles, key=lambda route: -singles[route])] == 1


def test_routes_far_from_every_common_one_are_the_rest():
    common, near, far = "0" + 9 * "1", "0000" + 6 * "1", "00000" + 5 * "1"
    assert browser.cluster({common: 5, near: 1, far: 1}, 1) == {common: 1, near: 1, far: browser.REST}


def test_a_large_group_shows_some_prompts_and_counts_all(tmp_path: Path, monkeypatch):
    write_search(tmp_path)
    write_evaluation(tmp_path)
    monkeypatch.setattr(browser, "PROMPTS", 3)
    loaded = report.load_run(tmp_path)
    found = browser.browse(loaded, "tune", "routers", {})
    assert isinstance(found, RouteBrowser)
    assert [(group.n_prompts, len(group.prompts)) for group in found.groups] == [(16, 3), (8, 3)]
    assert browser.differs(loaded, "tune", "routers")
    assert not browser.differs(loaded, "tune", "static")  # one route


def test_without_plotly_the_way_out_is_named(run: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"pip install '.\[demo\]'"):
        need_extras()


# What a reader would not see, or see twice: text outside its plot's box, a title of the x axis on the legend.
MISPLACED = """() => {
  const wrong = [], seen = (element) => element.getBoundingClientRect().width > 0;
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const box = plot.getBoundingClientRect();
    for (const text of [...plot.querySelectorAll("text")].filter(seen)) {
      const at = text.getBoundingClientRect();
      if (at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1)
        wrong.push(`outside: ${text.textContent}`);
    }
    for (const legend of [...plot.closest("figure").querySelectorAll(".legend")].filter(seen)) {
      const over = legend.getBoundingClientRect();
      if (over.right > window.innerWidth) wrong.push("the legend leaves the page");
      for (const title of [...plot.querySelectorAll(".xtitle, .x2title")].filter(seen))
        if (title.getBoundingClientRect().bottom > over.top + 1) wrong.push(`on the legend: ${title.textContent}`);
    }
  }
  for (const cell of [...document.querySelectorAll(".cards td")].filter(seen))
    if (cell.getBoundingClientRect().right > window.innerWidth) wrong.push(`cut: ${cell.textContent}`);
  return wrong;
}"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_or_covered_on_a_full_sized_page(full: Path, tmp_path: Path, width: int):
    """Ten methods on seven tasks, twelve trainings: titles, ticks and legends have their place, on a phone too, and after it is turned."""

    def use(page):
        assert page.evaluate(MISPLACED) == []
        page.set_viewport_size({"width": 844, "height": 390})
        page.wait_for_timeout(500)
        assert page.evaluate(MISPLACED) == []
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(500)
        assert page.evaluate(MISPLACED) == []

    look_at(full / "report" / "report.html", width, "light", 5, use, tmp_path / "page.png")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_or_covered_among_the_papers_figures(tmp_path: Path, width: int):
    control = [charts.Point(place / 5, 20 + place, 18 + place, 22 + place) for place in range(-5, 6)]
    losses = [charts.Point(name, 2.0, 1.0, 3.0) for name in ("focal (paper)", "weighted cross-entropy", "plain cross-entropy")]
    some, many = ({name: [0.2, 0.5, 0.9] for name in names} for names in (("skip", "repeat"), FULL_TASKS))
    title, words = "A figure of the paper with a title", "A caption."
    parts = [
        Heading("Figures", 1),
        charts.stacked(
            "control",
            title,
            words,
            "control p",
            {"accuracy (%), 95 % Wilson interval": {"routers": control}, "mean passes a prompt": {"routers": control}},
            ("p",),
            [(1,)],
        ),
        charts.curves("losses", title, words, (Axis("loss"), "points over the base, 95 %"), {"routers": losses, "others": losses}),
        charts.histogram("shares", title, words, "probability", some),
        charts.boxes("boxes", title, words, "passes a block", {"early blocks (0 to 9)": many, "late blocks (20 to 29)": many}),
        charts.usage("usage", title, words, {name: [1.0] * 30 for name in FULL_TASKS}),
        Table(("here", "claim"), (("holds", "a claim that is longer than a cell that a phone could show beside others"),)),
    ]
    (tmp_path / "page.html").write_text(to_html(parts), encoding="utf-8")

    def use(page):
        assert page.evaluate(MISPLACED) == []
        ticks = page.locator(".ytick text, .xtick text").all_text_contents()
        assert "0.0001" in ticks
        assert not [tick for tick in ticks if re.search("[\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}mk]$", tick)]

    look_at(tmp_path / "page.html", width, "light", 5, use, tmp_path / "page.png")


@pytest.mark.slow
@needs_chromium
def test_a_legend_draws_and_hides_by_keyboard(full: Path, tmp_path: Path):
    def use(page):
        plot = page.locator(".plot").last
        curves = plot.locator(".scatterlayer .trace")
        drawn = curves.count()
        button = plot.locator("xpath=following-sibling::ul[1]").locator("button[aria-pressed=false]").first
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("n => [...document.querySelectorAll('.plot')].at(-1).querySelectorAll('.trace').length > n", arg=drawn)
        assert curves.count() == drawn + 3  # loss, and macro-F1 of both parts

    look_at(full / "report" / "report.html", 1280, "dark", 5, use, tmp_path / "page.png")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_a_browser(asked: Path, tmp_path: Path, width: int, scheme):
    """Charts drawn, routes open by keyboard, nothing to complain of."""

    def use(page):
        page.locator("details.route > summary").first.focus()
        page.keyboard.press("Enter")
        page.locator("details.route[open] details.prompt > summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details.prompt[open] .strip").first.is_visible()
        page.locator(".plot").first.scroll_into_view_if_needed()

    look_at(report.report(asked), width, scheme, 5, use, tmp_path / "page.png")
    shutil.rmtree(asked / "evaluate")
    write_evaluation(asked, behaviour=LOOPING)
    look_at(report.report(asked), width, scheme, 5, use, tmp_path / "loops.png")
