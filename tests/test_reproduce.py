"""`drllm reproduce`: every table and figure on a tiny model, resumed, refused, and its figures against the files they are of."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import drllm.pipeline
import drllm.reproducing.clock
from drllm import InputError, RoutedModel
from drllm.cli import main, make_parser
from drllm.config import ReproduceConfig
from drllm.methods.base import get_method
from drllm.records import read_records
from drllm.reporting.load import read_answers
from drllm.reproducing import published
from drllm.reproducing.exhibits import Difference, against, claim, in_domain, train_routers
from drllm.reproducing.paper_figures import KNOB, WINDOWS
from drllm.reproducing.paper_tables import BUDGET, BUDGETED
from drllm.reproducing.run import EXHIBITS, dry_run, reproduce, stages_of, wanted_exhibits
from drllm.reproducing.setup import Setup
from drllm.reproducing.stages import Bench, Search, Train
from drllm.routes import Route
from runs import L, model, questions, write_rows

LEARNED, OUTSIDE = ("arc_easy", "arc_challenge"), "piqa"
SCALE = 0.04
PAPER_FILES = Path(__file__).parents[1] / "examples" / "paper"


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sums under the names of three tasks, no question twice."""
    root = tmp_path_factory.mktemp("data")
    rows = questions(300)
    for index, task in enumerate((*LEARNED, OUTSIDE)):
        (root / task).mkdir()
        mine = rows[100 * index : 100 * (index + 1)]
        write_rows(root / task / "train.jsonl", mine[:50])
        write_rows(root / task / "dev.jsonl", mine[50:80])
        write_rows(root / task / "test.jsonl", mine[80:])
    return root


def setup_of(out: Path, folder: Path, **options) -> Setup:
    config = ReproduceConfig(**{"scale": SCALE, "outside": (OUTSIDE,), "n_simulations": 8, "tokens": 300} | options)
    return Setup("tiny", LEARNED, out, str(folder), config)


@pytest.fixture(scope="module")
def bench(tiny, folder, tmp_path_factory) -> Bench:
    """Everything reproduced once."""
    bench = Bench(tiny, setup_of(tmp_path_factory.mktemp("run"), folder), ["drllm", "reproduce"])
    reproduce(bench, wanted_exhibits(["all"]))
    return bench


@pytest.fixture(scope="module")
def page(bench) -> str:
    return (bench.folder / "all.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    return page.partition(f"## {title}")[2].partition("\n## ")[0]


def test_every_table_and_figure_is_on_the_page(bench, page):
    html = (bench.folder / "all.html").read_text(encoding="utf-8")
    for exhibit in EXHIBITS.values():
        assert f"## {exhibit.title}\n" in page
        assert f">{exhibit.title}</h2>" in html
        assert f"drllm reproduce {exhibit.name} --model tiny" in section(page, exhibit.title)
    pictures = re.findall(r"!\[.*\]\((.*)\.png\)", page)
    assert len(pictures) == len(set(pictures)) == 13
    for name in pictures:
        assert (bench.folder / f"{name}.png").stat().st_size > 5000
        assert (bench.folder / f"{name}.csv").is_file()
    assert "nan" not in page.replace("finan", "")


def test_figures_are_those_of_the_files(bench, page):
    text = section(page, EXHIBITS["table3"].title)
    for task in LEARNED:
        rows = read_answers(bench.setup.out / "evaluate" / f"tune-first-{bench.setup.n_compared()}" / "routers" / f"{task}.parquet")
        accuracy = 100 * sum(row["correct"] for row in rows) / len(rows)
        passes = sum(row["n_passes"] for row in rows) / len(rows)
        assert re.search(rf"\| {task} \| routers \| {accuracy:.1f} .*\| {passes:.2f} of {L} \|", text)
    records = [record for task in LEARNED for record in read_records(bench.setup.out / "search" / task)]
    assert f"| questions visited | {len(records)} | 24,330 |" in section(page, EXHIBITS["table2"].title)
    passes = [list(map(float, row[2:3])) for row in rows_of(bench.folder / "usage_by_block.csv") if row[0] == "arc_easy"]
    routes = [Route.parse(row["route"]) for row in read_answers(bench.setup.out / "evaluate/tune-first-20/routers/arc_easy.parquet")]
    assert [value for (value,) in passes] == pytest.approx([sum(route[block] for route in routes) / len(routes) for block in range(L)])


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_the_knob_goes_from_no_block_to_every_block_twice(bench):
    rows = [(series, float(x)) for series, x, *_ in rows_of(bench.folder / "knob.csv")]
    passes = [x for series, x in rows if series != "base"]
    assert (passes[0], passes[-1]) == (0, 2 * L)
    assert passes[KNOB.index(0.5)] == L
    ends = passes[: KNOB.index(-0.5) + 1], passes[KNOB.index(0.5) :]
    assert all(end == sorted(end) for end in ends), "between them a router that repeats is blended with the base's route"


def test_rivals_save_what_they_are_to_save(bench, page):
    text = section(page, EXHIBITS["table5"].title)
    for name in ("early_exit", "shortgpt", "random_skip", BUDGETED, "mindskip", "flexidepth"):
        if name in bench.missed:
            assert f"{name} is not in the table: a {get_method(name).name!r} policy spends at least" in text
            assert not re.search(rf"\| (shuffled-)?{name} \|", text)
            continue
        found = re.search(rf"\| all \| {name} \|.*\| ([\d.]+) of {L} \|", text)
        assert found is not None, name
        assert float(found[1]) <= BUDGET * L + 0.6, name  # the budget holds on the questions that the knob was set on
    assert float(re.search(rf"\| all \| early_exit \|.*\| ([\d.]+) of {L} \|", text)[1]) == int(BUDGET * L)  # type: ignore[index]


def test_commands_are_what_the_command_line_takes(bench):
    commands = [stage.command(bench.setup) for stage in stages_of(wanted_exhibits(["all"]), bench.setup)]
    for command in filter(None, commands):
        _, name, *rest = shlex.split(command)
        make_parser(name, rest).parse_args(rest)
    _, name, *rest = ["drllm", "reproduce", "fig9", *bench.setup.flags]
    parsed = make_parser(name, rest).parse_args(rest)
    assert (parsed.scale, parsed.outside, parsed.tokens, parsed.tasks) == (SCALE, [OUTSIDE], 300, [",".join(LEARNED)])
    assert sum(bool(command) for command in commands) > 25


def test_again_nothing_is_done_twice(bench, tiny, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("done already")

    monkeypatch.setattr(drllm.pipeline, "fit_policy", refuse)
    monkeypatch.setattr(drllm.reproducing.clock, "throughput", refuse)
    monkeypatch.setattr(drllm.reproducing.clock, "latency", refuse)
    before = {path.name: path.read_bytes() for path in bench.folder.iterdir()}
    again = reproduce(Bench(tiny, bench.setup, ["drllm", "reproduce"]), wanted_exhibits(["all"]))
    assert again.name == "all.html"
    assert {path.name: path.read_bytes() for path in bench.folder.iterdir()} == before
    one = reproduce(Bench(tiny, bench.setup), wanted_exhibits(["table6"]))
    assert section(one.with_suffix(".md").read_text(encoding="utf-8"), EXHIBITS["table6"].title)
    assert one.name == "table6.html"


def test_a_policy_that_was_changed_is_trained_again(bench, tiny, tmp_path, folder):
    setup = setup_of(tmp_path, folder)
    stage = Train("early_exit", "early_exit", (("budget", 0.5),))
    Bench(tiny, setup).run(Search("arc_easy"))
    Bench(tiny, setup).run(stage)
    written = (tmp_path / "early_exit" / "policy.json").stat().st_mtime_ns
    Bench(tiny, setup).run(stage)
    assert (tmp_path / "early_exit" / "policy.json").stat().st_mtime_ns == written
    Bench(tiny, setup).run(Train("early_exit", "early_exit", (("budget", 0.25),)))
    assert json.loads((tmp_path / "early_exit" / "policy.json").read_text())["route"] == "1" + "0" * (L - 1)
    Bench(tiny, setup).run(Search("arc_challenge"))  # other records, though this method reads none of them
    Bench(tiny, setup).run(Train("early_exit", "early_exit", (("budget", 0.25),)))
    jobs = json.loads((tmp_path / "run.json").read_text())
    assert sum(job["job"] == "train" for job in jobs) == 3


def test_variants_learn_from_the_same_states(bench):
    names = {path.name for path in (bench.setup.out / "train" / "features").iterdir()}
    assert names == {f"kept-{n}.safetensors" for n in WINDOWS} | {"base-8.safetensors"}


def test_a_difference_is_that_of_the_same_questions(bench):
    stage = in_domain(bench.setup)
    found = against(bench, stage, "routers", "base")
    row = next(row for row in bench.run(stage)["rows"] if (row["method"], row["task"]) == ("routers", "all"))
    assert found.mean == pytest.approx(row["difference"])
    assert found.p == pytest.approx(row["mcnemar_p"])
    assert against(bench, stage, "routers", "routers").is_gain is None
    assert Difference("a", "b", 0.02, 0.01, 0.03, 0.01).is_gain is True
    assert Difference("a", "b", -0.02, -0.03, -0.01, 0.01).is_gain is False
    assert Difference("a", "b", 0.02, 0.01, 0.03, 0.2).is_gain is None, "the interval alone is too narrow with few changes"
    assert [claim("x", holds).rpartition("This ")[2] for holds in (True, False, None)] == [
        "holds here.", "does not hold here.", "is neither confirmed nor refuted here.",
    ]  # fmt: skip


def test_the_cost_foretold_bounds_what_was_evaluated(bench):
    stages = stages_of(wanted_exhibits(["table2"]), bench.setup)
    assert stages == [Search(task) for task in LEARNED]
    for stage in stages:
        assert isinstance(stage, Search)
        records = list(read_records(bench.setup.out / "search" / stage.task))
        n_routes = sum(len(record.routes) + len(record.control_routes) for record in records)
        assert n_routes * 0.31 <= stage.forwards(bench.setup)


def test_the_dry_run_adds_up(bench):
    lines = dry_run(wanted_exhibits(["all"]), bench.setup, 100)
    rows = [line.split() for line in lines[1:] if not line.startswith(" " * 28)]
    forwards = [float(row[0].replace(",", "")) for row in rows]
    assert sum(forwards[:-1]) == pytest.approx(forwards[-1], rel=0.01)
    assert float(rows[-1][1]) == pytest.approx(forwards[-1] * 0.1 / 3600, abs=0.001)
    assert train_routers(bench.setup, "other", width=64).forwards(bench.setup) == 0, "the states are there already"


def test_the_command_line_dry_run_needs_no_model(tmp_path, capsys):
    arguments = ["--model", "nobody/nothing", "--out", str(tmp_path / "x"), "--dry-run", "--plain-ms", "90", "--scale", "0.5"]
    assert main(["reproduce", "table3", "latency", *arguments]) == 0
    out = capsys.readouterr().out
    assert "drllm search --model nobody/nothing" in out
    assert "in all, at 90 ms" in out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("path", sorted(PAPER_FILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_configurations_are_ready(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "all", "--config", str(path), "--dry-run", "--plain-ms", "30"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for task, n in published.SAMPLED.items():
        name, *rest = shlex.split(lines[lines.index(next(line for line in lines if line.endswith(f"  search {task}"))) + 1])[1:]
        parsed = make_parser(name, rest).parse_args(rest)
        assert (parsed.tasks, parsed.limit, parsed.model, parsed.reward) == ([task], n, settings["model"], "generated")
        assert (parsed.dtype, parsed.device, parsed.max_step_tokens) == ("bfloat16", "cuda", settings["reproduce"]["max_step_tokens"])
    assert published.published(settings["model"]) is not None
    assert float(lines[-1].split()[1]) > 1
    assert not list(tmp_path.iterdir())


def test_there_is_a_configuration_for_each_of_the_papers_models():
    found = {yaml.safe_load(path.read_text(encoding="utf-8"))["model"] for path in PAPER_FILES.glob("*.yaml")}
    assert [published.MODELS[key] for key in published.MODELS] == [
        next(item for name in found if (item := published.published(name)) is model) for model in published.MODELS.values()
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no table or figure named"),
        (["tabel3"], "unknown table or figure 'tabel3'; did you mean 'table3'?"),
        (["table3", "--scale", "2"], "ReproduceConfig.scale is 2.0, expected between 0.001 and 1"),
        (["table3", "--outside", "mmul"], "mmul"),
        (["table3", "--split", "train"], "invalid choice: 'train'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert main(["reproduce", *arguments, "--model", "nobody/nothing", "--out", str(tmp_path / "x"), "--dry-run", "--plain-ms", "9"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_published_figures_go_by_the_models_own_name():
    found = published.published("meta-llama/Llama-3.2-3B-Instruct")
    assert found is not None
    assert found.arc == (73.5, 74.5)
    assert published.published("/models/Qwen2.5-7B-Instruct/") is published.MODELS["qwen2.5-7b-instruct"]
    assert published.published("smollm2-135m-q4") is None


def test_names_that_a_policy_cannot_have():
    from drllm.evaluation.names import check_name

    for name in ("base", "search", "shuffled", "random-x", "shuffled-routers", "a/b", "", "..", ".x", "train"):
        with pytest.raises(InputError, match="--name"):
            check_name(name)
    for name in ("routers@-0.50", "routers_2", "a.b"):
        check_name(name)
