"""The report of hand-made run folders, written by the real writers: whole, half, with many policies; the table and its sentence."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drllm import ArtifactError, EvaluateConfig, InputError, Route
from drllm.core import text
from drllm.core.files import write_json, write_text
from drllm.reporting import drawing, report
from drllm.reporting import summary_table as table
from drllm.reporting.figures import accuracy_chart, usage_map
from drllm.reporting.page import glossary
from drllm.reporting.parts import Chart, Folded, Paragraph, Table
from drllm.runs.answers import Answers, read_answers, write_answers
from drllm.runs.layout import RunFolder
from drllm.runs.load import load_run, read_summary
from drllm.runs.manifest import Manifest, check_manifest
from drllm.runs.records import write_shard
from drllm.runs.store import Asked
from drllm.runs.summary import Summary, SummaryRow
from drllm.runs.summary import rows_of as rows_of_summary
from record_factory import record, write_verdicts

pytestmark = pytest.mark.long

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

N, L = 12, 4
ROUTED: Any = SimpleNamespace(n_layers=L, base_id="tiny", fingerprint="f00d")
# What each method gets right of question n, and its route.
BEHAVIOUR = {
    "base": (lambda n: n % 2 == 0, lambda n: "1111"),
    "static": (lambda n: n % 2 == 0, lambda n: "1011"),
    "routers": (lambda n: n % 2 == 0 or n < 4, lambda n: "1211" if n % 3 == 0 else "1011"),
    "shuffled": (lambda n: n % 3 == 0, lambda n: "1211" if n % 3 == 1 else "1011"),
}
PICTURES = ("accuracy_tune", "usage_tune")


TASKS = ("arc_easy", "piqa")


def write_search(run: Path, tasks: tuple[str, ...] = TASKS) -> None:
    for task in tasks:
        folder = run / "search" / task
        manifest = {"task": task, "source": "file mine.jsonl", "model": "tiny", "fingerprint": "f00d", "dtype": "torch.float32", "ids": []}
        check_manifest(folder, Manifest.of(manifest))
        full, short = Route.full(L), Route.parse("1012")
        for shard in range(2):
            records = [
                replace(
                    record(task, base=float(n == 0), others=(float(n == 1),), routes=(full, short), chosen=[full, short, None][n]),
                    asked=Asked(task, "fit", f"{task}-{n}", f"{task} {shard} {n}"),
                )
                for n in range(3)
            ]
            write_verdicts(run, records, f"{task}-{shard}")
            write_shard(folder, shard, records)


def write_training(run: Path, policies: tuple[str, ...] = ("routers",)) -> None:
    (run / "train" / "static").mkdir(parents=True)  # static has no epochs and leaves no metrics
    lines = [
        {"epoch": n, "loss": 1 / n, "macro_f1": 0.3 + n / 10, "mean_passes": 3.5, "val_macro_f1": 0.3, "val_loss": None} for n in (1, 2, 3)
    ]
    for policy in policies:
        (run / "train" / policy).mkdir(parents=True)
        write_text(run / "train" / policy / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def answers_of(right: Any, route: Any, n: int) -> Answers:
    """What a method answers to so many questions."""
    routes = [route(number) for number in range(n)]
    passes, correct = [Route.parse(text).n_passes for text in routes], [bool(right(number)) for number in range(n)]
    return Answers([f"q{number}" for number in range(n)], routes, passes, correct)


def write_evaluation(
    run: Path, split: str = "tune", tasks: tuple[str, ...] = TASKS, behaviour: Any = BEHAVIOUR, routed: Any = ROUTED, n: int = N
) -> Summary:
    folder = run / "evaluate" / split
    answers = {(method, task): answers_of(*does, n) for method, does in behaviour.items() for task in tasks}
    write_answers(folder / "answers.parquet", answers)
    rows = rows_of_summary(list(behaviour), tasks, answers, routed.n_layers, EvaluateConfig(split=split, n_resamples=200))  # type: ignore[arg-type]
    summary = Summary(split=split, reference="base", model=routed.base_id, fingerprint=routed.fingerprint, tasks=list(tasks), rows=rows)
    summary = summary.changed(dropped={"arc_easy": {"tune": 3}, "piqa": {}})
    write_json(folder / "summary.json", summary.to_json())
    return summary


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_search(folder)
    write_training(folder)
    write_evaluation(folder)
    job = {"job": "search", "status": "done", "argv": ["drllm", "search", "--out", "a b"], "seconds": 12.345, "commit": None}
    write_json(folder / "run.json", [job | {"versions": {"torch": "2.13"}, "hardware": {"cores": 2}}])
    return folder


def markdown_of(run: Path) -> str:
    return report.report(run).with_suffix(".md").read_text()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_tells_what_the_run_holds(run: Path):
    path = report.report(run)
    text = path.with_suffix(".md").read_text()
    assert path == run / "report" / "report.html"
    assert text.startswith("# Adaptive depth on tiny\n")
    assert "- **routers: no detectable gain: +16.7 points, 95 % interval " in text
    assert "24 questions; it runs 3.7 block passes a prompt, the base 4, " in text
    assert "(2 tasks, tune split)**" in text
    assert text.index("**routers:") < text.index("## Results")
    # Two tasks and the pool of both, for each method.
    assert sum(line.startswith(("| arc_easy |", "| piqa |", "| all |")) for line in text.split("## Labels")[0].splitlines()) == 3 * len(
        BEHAVIOUR
    )
    # 6 questions; 4 kept routes, half of them rescues of what the base gets wrong; 1111 and 1012 twice each.
    assert "| arc_easy | 6 | 4 | 2 | 2.0 | 4 | 50.0 |  |  | 2 / 12 / 2 | 4.00 of 4 |" in text
    assert "| routers | 3 of 3 | 0.333 | 0.6 / 0.3 | 3.5 |" in text
    assert "tune split: arc_easy tune 3." in text
    assert "arc_easy, piqa: file mine.jsonl; model tiny, weights f00d, torch.float32." in text
    assert "| search | done | `drllm search --out 'a b'` | 12.35 |  |" in text
    assert "Versions of the last job: torch 2.13." in text
    assert "Baselines: shuffled. random-NAME moves" in text
    for name in PICTURES:
        assert f"({name}.png)" in text
        assert f"({name}.csv)" in text


def test_every_picture_opens_and_has_its_numbers_beside_it(run: Path):
    folder = report.report(run).parent
    pictures = [f"{name}.{kind}" for name in PICTURES for kind in ("csv", "png")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["report.html", "report.md", *pictures])
    for name in PICTURES:
        with Image.open(folder / f"{name}.png") as image:
            image.load()
            assert image.width > 600
            assert image.height > 300
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20  # something is drawn
    usage = [row for row in rows_of(folder / "usage_tune.csv") if row["method"] == "routers"]
    passes = {(row["task"], int(row["block"])): float(row["mean_passes"]) for row in usage}
    assert passes[("piqa", 0)] == 1
    assert passes[("piqa", 1)] == pytest.approx(4 * 2 / 12, abs=1e-5)  # 4 of 12 repeat block 1, the others skip it
    accuracy = {row["method"]: row for row in rows_of(folder / "accuracy_tune.csv")}
    assert list(accuracy) == list(BEHAVIOUR)
    assert float(accuracy["routers"]["accuracy"]) == pytest.approx(8 / 12, abs=1e-5)
    assert accuracy["routers"]["n"] == "24"
    assert float(accuracy["routers"]["passes"]) == pytest.approx(11 / 3, abs=1e-5)


def test_every_method_is_drawn_inside_the_picture_of_accuracy(tmp_path: Path):
    chart = accuracy_chart(write_evaluation(tmp_path))
    assert isinstance(chart, Chart)
    axes = drawing.draw(chart).axes[0]
    for *_, low, high, passes in chart.rows:
        assert axes.get_xlim()[0] < float(passes) < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < 100 * float(low) <= 100 * float(high) < axes.get_ylim()[1]


def test_the_same_run_gives_the_same_bytes(run: Path):
    folder = report.report(run).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report.report(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_missing_stages_are_named(tmp_path: Path):
    write_search(tmp_path / "searched")
    text = markdown_of(tmp_path / "searched")
    assert "Nothing has been evaluated yet" in text
    assert "No method with epochs has been trained yet" in text
    assert "has no run.json" in text

    write_evaluation(tmp_path / "evaluated", split="test", tasks=("piqa",))
    text = markdown_of(tmp_path / "evaluated")
    assert "Nothing has been searched yet" in text
    assert "### Test split" in text
    assert (tmp_path / "evaluated/report/accuracy_test.png").is_file()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: run.rename(run.with_name("moved")), "no run folder"),
        (lambda run: (run / "evaluate" / "tune" / "summary.json").write_text("{"), "summary.json is not readable JSON"),
        (lambda run: (run / "evaluate" / "tune" / "summary.json").write_text('{"rows": [3]}'), "summary.json holds a bad Summary "),
        (lambda run: (run / "search" / "piqa" / "_plan.json").write_text(""), "_plan.json is not readable JSON"),
        (lambda run: (run / "search" / "piqa" / "shard-00000.parquet").write_bytes(b"PAR1"), "shard-00000.parquet is not a readable"),
        (lambda run: (run / "train" / "routers" / "metrics.jsonl").write_text("{}\n{"), "metrics.jsonl is not readable JSON lines"),
        (lambda run: (run / "evaluate" / "tune" / "answers.parquet").write_bytes(b"x"), "answers.parquet is not a readable shard"),
        (lambda run: (run / "run.json").write_text("[{"), "run.json is not readable JSON"),
    ],
)
def test_a_missing_or_corrupt_run_is_refused_in_one_line(run: Path, damage, message: str):
    damage(run)
    with pytest.raises(ArtifactError, match=message) as caught:
        report.report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report").exists()


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="holds no search, training or evaluation"):
        report.report(tmp_path)


def test_without_matplotlib_the_way_out_is_named(run: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install '.\[demo\]'"):
        report.report(run)
    assert not (run / "report").exists()


def test_reporting_imports_no_torch(run: Path):
    heavy = "{'torch', 'transformers', 'matplotlib.pyplot'}"
    script = f"import sys; import drllm; drllm.report({str(run)!r}); sys.exit(int(bool({heavy} & sys.modules.keys())))"
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")}, check=False)
    assert done.returncode == 0


def one_row(**changes: Any) -> Summary:
    about: dict[str, Any] = {"method": "routers", "task": "all", "n": 304, "accuracy": 0.4, "wilson_low": 0.35, "wilson_high": 0.45}
    about |= {"difference": -0.003, "difference_low": -0.021, "difference_high": 0.015, "mcnemar_p": 0.7, "better": 3, "worse": 4}
    rows = [SummaryRow(**about | {"mean_passes": 29.94, "n_layers": 30} | changes)]
    return Summary(split="tune", reference="base", model="tiny", tasks=["arc_easy"], rows=rows)


UP = {"difference": 0.03, "difference_low": 0.01, "difference_high": 0.05}
DOWN = {"difference": -0.03, "difference_low": -0.05, "difference_high": -0.01}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "routers: no detectable gain: -0.3 points, 95 % interval -2.1 to +1.5, McNemar p 0.700, 304 questions; "
            "it runs 29.9 block passes a prompt, the base 30",
        ),
        (UP | {"mcnemar_p": 0.004}, "routers: a gain: +3.0 points"),
        (UP | {"mcnemar_p": 1e-9}, "routers: a gain: +3.0 points, 95 % interval +1.0 to +5.0, McNemar p < 0.001, 304 questions"),
        (UP | {"mcnemar_p": 0.06}, "routers: no detectable gain: +3.0 points"),
        (DOWN | {"mcnemar_p": 0.004}, "routers: a loss: -3.0 points"),
        ({"difference": -0.0001, "mcnemar_p": 1.0}, "routers: no detectable gain: +0.0 points"),
        ({"better": 0, "worse": 0, "difference": 0.0}, "routers: no gain: it changes no verdict on 304 questions"),
        ({"identity_share": 0.875}, "and takes another route than the base on 12.5 % of the prompts"),
    ],
)
def test_the_sentence_claims_no_more_than_the_numbers(changes, expected):
    sentence = table.verdict(one_row(**changes), "routers")
    assert expected in sentence
    assert "\n" not in sentence
    assert table.verdict(one_row(), "static") == "static: not evaluated"


def test_the_terminal_table_keeps_each_method_on_a_line(tmp_path: Path):
    summary = write_evaluation(tmp_path)
    lines = table.render(summary).splitlines()
    assert lines[0] == "tiny on arc_easy, piqa, tune split; in brackets: 95 % intervals"
    body = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in BEHAVIOUR}
    assert list(body) == list(BEHAVIOUR)
    assert all(len(line) <= text.WIDTH for line in lines)
    assert "4 / 0" in body["routers"]
    assert "2.67 of 4" not in body["routers"]
    assert "3.67 of 4" in body["routers"]
    assert "/" not in body["base"]


def test_a_long_name_cuts_no_figure(tmp_path: Path):
    summary = write_evaluation(tmp_path)
    name = "shuffled-" + "a_name_longer_than_any_of_ours" * 2
    rows = [replace(row, method=name) if row.method == "routers" else row for row in summary.rows]
    text = table.render(summary.changed(rows=rows))
    assert "…" not in text
    assert any(line.split()[0] == name and "4 / 0" in line for line in text.splitlines() if line.strip())


def test_the_report_is_of_the_latest_evaluation_of_a_split(run: Path):
    """An earlier call's answers stay in the file; to show them again, evaluate them together, which asks nothing anew."""
    write_evaluation(run, behaviour={name: BEHAVIOUR[name] for name in ("base", "static")})
    page = markdown_of(run)
    assert "**static: " in page
    assert "| all | routers |" not in page
    assert "Baselines:" not in page
    write_evaluation(run)
    assert "| all | routers |" in markdown_of(run)


def test_a_task_that_a_method_leaves_alone_is_on_the_heat_map():
    """That it takes the base's route there is a finding; a method that does so everywhere is no row, and is named."""
    asked = {("routers", "piqa"): "1111", ("routers", "arc_easy"): "1011", ("static", "piqa"): "1111", ("base", "piqa"): "1111"}
    chart = usage_map({("tune", *place): [{"route": route}] for place, route in asked.items()}, "tune")
    assert isinstance(chart, Chart)
    assert {(row[0], row[1]) for row in chart.rows} == {("routers", "piqa"), ("routers", "arc_easy")}
    assert chart.caption.endswith("The base's route on every prompt: static.")


LOOPING = BEHAVIOUR | {
    "routers": (lambda n: n < 4, lambda n: "1011"),
    "codebook": (lambda n: n < 6, lambda n: "0-2,1-3" if n % 2 else "0-2,(1-2)*0.5,3" if n % 4 else "1111"),
    "static": (lambda n: n < 5, lambda n: "0-3,2-3"),
}


def test_a_loop_is_framed_on_the_heat_map_and_named_with_its_share(run: Path):
    shutil.rmtree(run / "evaluate")
    write_evaluation(run, behaviour=LOOPING)
    folder = report.report(run).parent
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "A frame stands around the commonest loop of a row." in page
    rows = list(csv.DictReader((folder / "usage_tune.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["mean_passes"] for row in rows if (row["method"], row["task"]) == ("static", "piqa")] == ["1", "1", "2", "2"]
    chart = usage_map(load_run(run).questions, "tune")
    assert isinstance(chart, Chart)
    axes = drawing.draw(chart).axes[0]
    labels = [label.get_text().partition(" (")[0] for label in axes.get_yticklabels()]
    frames = [(round(frame.get_y() + 0.4), frame.get_x() + 0.45, frame.get_width() - 0.9) for frame in axes.patches]
    framed = {labels[row]: (round(first), round(first + width)) for row, first, width in frames}
    assert framed == {f"{name}, {task}": span for name, span in (("codebook", (1, 2)), ("static", (2, 3))) for task in TASKS}


def test_without_loops_no_page_speaks_of_them(run: Path):
    assert "loop" not in markdown_of(run)


FULL_TASKS = ("arc_easy", "arc_challenge", "arith-1", "arith-2", "arith-3", "arith-4", "arith-5")
FULL_METHODS = (
    *("base", "routers", "random", "shuffled", "routers_first_block", "routers_windows_16", "routers_budget"),
    *("early_exit", "shortgpt", "random_skip"),
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
        drawn = {shown.get_label(): shown.lines[0] for shown in drawing.draw(chart).axes[0].containers}
        looks.append({name: (line.get_color(), line.get_marker()) for name, line in drawn.items()})
    assert len(set(looks[0].values())) == len(looks[0])
    assert len({(drawing.colour(index), drawing.marker(index)) for index in range(56)}) == 56
    assert looks[1].items() <= looks[0].items()
    colours = {name: colour for name, (colour, _) in looks[1].items()}
    assert len(colours) == len(some)
    assert colours["routers"] == colours["shuffled"] == colours["random"] != colours["base"]


def test_one_sentence_leads_and_many_trainings_are_tabled(full: Path):
    opening, _, text = (full / "report" / "report.md").read_text().partition("## Results")
    assert opening.count("- **") == 1
    assert "- **routers: " in opening
    trained = text.partition("\n## Training\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| --- \|", trained, re.MULTILINE)) == 1
    assert len(re.findall(r"^\| routers\w* \| 3 of 3 \|", trained, re.MULTILINE)) == 12


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
        assert sum(line.get_label() == "Pareto front" for line in drawing.draw(chart).axes[0].lines) == fronts


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
