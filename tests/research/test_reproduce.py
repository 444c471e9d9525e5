"""`drllm reproduce`: every table and figure on a tiny model, resumed, refused, and its figures against the files they are of."""

import csv
import dataclasses
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

import families
from byte_tokens import byte_tokenizer
from drllm import ArtifactError, InputError, RoutedModel
from drllm.cli.main import main, make_parser
from drllm.core.config import Resources
from drllm.core.route import Route
from drllm.evaluation.fit import fit_policy, under_policy
from drllm.methods.base import method_names
from drllm.model.pool import torch_threads
from drllm.policies.constant import RoutePolicy
from drllm.policies.saved import save_policy
from drllm.policies.saved_config import policy_digest
from drllm.reporting.parts import Paragraph
from drllm.reporting.report import report
from drllm.runs.answers import Answers, read_answers
from drllm.runs.manifest import read_manifest
from drllm.runs.names import check_methods, owner_of
from drllm.runs.records import read_records
from drllm.tasks import grading
from drllm_research.paper import claims, published, tables
from drllm_research.paper.ablations import SearchWith
from drllm_research.paper.claims import Claim, Difference, above_all, against, weighed
from drllm_research.paper.config import ReproduceConfig
from drllm_research.paper.exhibits import Exhibit, in_domain, train_routers
from drllm_research.paper.figures import CONTROL, WINDOWS, Turn
from drllm_research.paper.run import EXHIBITS, check, dry_run, reproduce, stages_of, wanted_exhibits
from drllm_research.paper.setup import Setup
from drllm_research.paper.speed import p_of_ratio
from drllm_research.paper.stages import Bench, Clock, Search, Train
from drllm_research.paper.tables import BUDGET, BUDGETED
from drllm_research.rivals.evaluator import method_named
from rote import answering
from runs import L, folder_bytes, model, questions, write_rows

pytestmark = pytest.mark.long

LEARNED, OUTSIDE, PASSAGES = ("arc_easy", "arc_challenge"), "piqa", "squadv2"
SCALE = 0.04
PAPER_FILES = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rows = questions(300)
    for index, task in enumerate((*LEARNED, OUTSIDE)):
        (root / task).mkdir()
        mine = rows[100 * index : 100 * (index + 1)]
        write_rows(root / task / "train.jsonl", mine[:50])
        write_rows(root / task / "dev.jsonl", mine[50:80])
        write_rows(root / task / "test.jsonl", mine[80:])
    (root / PASSAGES).mkdir()
    answers = [[f"{number} cats"] if number % 3 else [] for number in range(40)]
    passages = [{"question": f"{n}?", "context": f"Ann has {n} cats.", "answers": found} for n, found in enumerate(answers)]
    write_rows(root / PASSAGES / "valid.jsonl", passages)
    return root


def setup_of(out: Path, folder: Path, **options) -> Setup:
    config = ReproduceConfig(**{"scale": SCALE, "outside": (OUTSIDE, PASSAGES), "n_simulations": 8, "tokens": 300} | options)
    return Setup("tiny", LEARNED, out, str(folder), config)


@pytest.fixture(scope="module", params=[pytest.param("all", marks=pytest.mark.slow)])  # a mark of every test that reads it
def bench(request, tiny, folder, tmp_path_factory) -> Bench:
    bench = Bench(tiny, setup_of(tmp_path_factory.mktemp("run"), folder), ["drllm", "reproduce"])
    reproduce(bench, wanted_exhibits([request.param]))
    return bench


@pytest.fixture(scope="module")
def page(bench) -> str:
    return (bench.folder / "all" / "report.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    return page.partition(f"## {title}")[2].partition("\n## ")[0]


def test_every_table_and_figure_is_on_the_page(bench, page):
    html = (bench.folder / "all" / "report.html").read_text(encoding="utf-8")
    for exhibit in EXHIBITS.values():
        assert f"## {exhibit.title}\n" in page
        assert f">{exhibit.title}</h2>" in html
        assert f"drllm reproduce {exhibit.name} --model tiny" in section(page, exhibit.title)
    pictures = re.findall(r"!\[.*\]\((.*)\.png\)", page)
    assert len(pictures) == len(set(pictures)) == 12
    for name in pictures:
        assert (bench.folder / "all" / f"{name}.png").stat().st_size > 5000
        assert (bench.folder / "all" / f"{name}.csv").is_file()
    assert "nan" not in page.replace("finan", "")
    assert "What the words on this page mean" in page
    kept = {task: bench.kept(task) for task in LEARNED}
    assert all(found.is_enough for found in kept.values())
    said = ", ".join(f"{task} {n} of {n} ({len(kept[task].visited)} visited)" for task, n in zip(LEARNED, (16, 24), strict=True))
    assert f"learned from {said} (questions from" in page


def test_a_report_says_where_the_tables_stand(bench):
    text = report(bench.setup.out).with_suffix(".md").read_text(encoding="utf-8")
    assert "`reproduce/all/report.html`" in text
    assert text.index("routers: ") < text.index("`reproduce/all/report.html`") < text.index("## Results")


def test_the_command_of_the_control_makes_the_same_policy(bench, tmp_path, monkeypatch):
    stage, load = Turn(0.25), RoutedModel.from_pretrained
    copied = dataclasses.replace(bench.setup, out=tmp_path)
    shutil.copytree(bench.setup.out / "routers", tmp_path / "routers")
    monkeypatch.setattr(RoutedModel, "from_pretrained", lambda folder: load(folder, base=bench.routed))
    python, flag, code = shlex.split(stage.command(copied))
    assert (python, flag) == ("python", "-c")
    with under_policy(bench.routed, None):
        exec(code, {})
    assert policy_digest(tmp_path / stage.policy) == policy_digest(bench.setup.out / stage.policy)
    assert policy_digest(tmp_path / stage.policy) != policy_digest(tmp_path / "routers")


def test_claims_stand_together_with_their_commands(bench, page):
    text = section(page, "What holds here")
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| ")][2:]
    judging = "table2 table3 table4 table5 table6 table7 latency fig5 fig8 fig9 forcing"
    assert {row[4] for row in rows} == {*judging.split()}
    words = {"holds", "does not hold", "neither confirmed nor refuted"}
    for holds, claim, figures, by, name, command in rows:
        told = section(page, EXHIBITS[name].title)
        assert holds in words
        assert f"- **{by}: {claim}. This {'is ' if holds.startswith('neither') else ''}{holds} here." in told
        assert figures.split(";")[0] in told
        assert command == f"`drllm reproduce {name} {shlex.join(bench.setup.flags)}`"
        assert command in told


def answers_of(bench: Bench, split: str) -> dict[tuple[str, str], Answers]:
    return read_answers(bench.setup.run.answers(split))


def test_figures_are_those_of_the_files(bench, page):
    text = section(page, EXHIBITS["table3"].title)
    for task in LEARNED:
        rows = answers_of(bench, f"tune-first-{bench.setup.n_compared()}")["routers", task].rows
        accuracy = 100 * sum(row["correct"] for row in rows) / len(rows)
        passes = sum(row["n_passes"] for row in rows) / len(rows)
        assert re.search(rf"\| {task} \| routers \| {accuracy:.1f} .*\| {passes:.2f} of {L} \|", text)
    searched, labels = (section(page, EXHIBITS["table2"].title), [bench.kept(task) for task in LEARNED])
    assert f"| questions visited | {sum(len(found.visited) for found in labels)} | 24,330 |" in searched
    assert "| questions learned from | 40 | 4,000 |" in searched
    assert f"| of which mend a wrong answer, % | {100 * sum(found.mended for found in labels) / 40:.1f} | 30.0 |" in searched
    passes = [list(map(float, row[2:3])) for row in rows_of(bench.folder / "all" / "usage_by_block.csv") if row[0] == "arc_easy"]
    routes = [Route.parse(row["route"]) for row in answers_of(bench, "tune-first-20")["routers", "arc_easy"].rows]
    assert [value for (value,) in passes] == pytest.approx([sum(route[block] for route in routes) / len(routes) for block in range(L)])


def test_answers_out_of_passages_have_exact_match_and_f1(bench, page):
    verdicts = answers_of(bench, f"tune-first-{bench.setup.n_compared()}")["routers", PASSAGES]
    assert len(verdicts.f1) == len(verdicts.ids) > 5
    has_answer = [(int(name.rpartition("-")[2]) - 1) % 3 != 0 for name in verdicts.ids]
    cells = ["", ""]
    for kind in (None, True, False):
        chosen = [at for at, found in enumerate(has_answer) if kind in (None, found)]
        exact, f1 = (100 * sum(float(column[at]) for at in chosen) / len(chosen) for column in (verdicts.correct, verdicts.f1))
        cells += [str(len(chosen)), f"{exact:.1f}", f"{f1:.1f}"]
    assert f"| {PASSAGES} | routers | {' | '.join(cells[2:-1])} |" in section(page, EXHIBITS["table4"].title)
    assert not answers_of(bench, f"tune-first-{bench.setup.n_compared()}")["routers", OUTSIDE].f1


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_the_control_goes_from_no_block_to_every_block_twice(bench):
    told = rows_of(bench.folder / "all" / "knob.csv")
    assert [row[-1] for row in told if row[0] != "base"] == [f"p {p:+g}" for p in CONTROL]
    rows = [(series, float(x)) for series, x, *_ in told]
    passes = [x for series, x in rows if series != "base"]
    assert (passes[0], passes[-1]) == (0, 2 * L)
    assert passes[CONTROL.index(0.5)] == L
    ends = passes[: CONTROL.index(-0.5) + 1], passes[CONTROL.index(0.5) :]
    assert all(end == sorted(end) for end in ends), "between them a router that repeats is blended with the base's route"


def test_rivals_save_what_they_are_to_save(bench, page):
    text = section(page, EXHIBITS["table5"].title)
    for name in ("early_exit", "shortgpt", "random_skip", BUDGETED, "mindskip", "flexidepth"):
        if name in bench.missed:
            assert f"{name} is not in the table: a {method_named(name).name!r} policy spends at least" in text
            assert not re.search(rf"\| (shuffled-)?{name} \|", text)
            continue
        found = re.search(rf"\| all \| {name} \|.*\| ([\d.]+) of {L} \|", text)
        assert found is not None, name
        assert float(found[1]) <= BUDGET * L + 0.8, name  # the budget holds on the questions that the control was set on
    assert float(re.search(rf"\| all \| early_exit \|.*\| ([\d.]+) of {L} \|", text)[1]) == int(BUDGET * L)  # type: ignore[index]


def test_commands_are_what_the_command_line_takes(bench):
    commands = [stage.command(bench.setup) for stage in stages_of(wanted_exhibits(["all"]), bench.setup)]
    for command in filter(None, commands):
        program, name, *rest = shlex.split(command)
        assert program in ("drllm", "python")
        if program == "drllm":
            make_parser(name, rest).parse_args(rest)
    _, name, *rest = ["drllm", "reproduce", "fig9", *bench.setup.flags]
    parsed = make_parser(name, rest).parse_args(rest)
    assert (parsed.scale, parsed.outside, parsed.tokens, parsed.tasks) == (SCALE, [f"{OUTSIDE},{PASSAGES}"], 300, [",".join(LEARNED)])
    assert sum(bool(command) for command in commands) > 25
    page = (bench.folder / "all" / "report.md").read_text(encoding="utf-8")
    for line in re.findall(r"^drllm evaluate .*$", page, re.MULTILINE):
        methods = make_parser("evaluate", []).parse_args(shlex.split(line)[2:]).methods[0].split(",")
        check_methods(methods, bench.setup.out, method_names())
        assert not {owner_of(name) or name for name in methods} & bench.missed.keys()
    assert "# throughput: `drllm reproduce` alone does this" in page


def kept_bytes(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in folder_bytes(folder).items() if not name.endswith("/run.json")}


@pytest.mark.slow
def test_again_nothing_is_done_twice(bench, tiny):
    """Policies are trained as often as before, and seconds, which no second clock would find again, stand on the page as they were."""
    before, n_trainings = kept_bytes(bench.folder), trainings(bench.setup.out)
    again = reproduce(Bench(tiny, bench.setup, ["drllm", "reproduce"]), wanted_exhibits(["all"]))
    assert again == bench.folder / "all" / "report.html"
    assert kept_bytes(bench.folder) == before
    assert trainings(bench.setup.out) == n_trainings > 20
    one = reproduce(Bench(tiny, bench.setup), wanted_exhibits(["table6"]))
    assert section(one.with_suffix(".md").read_text(encoding="utf-8"), EXHIBITS["table6"].title)
    assert one == bench.folder / "table6" / "report.html"
    assert {name: data for name, data in kept_bytes(bench.folder).items() if not name.startswith("table6/")} == before


@pytest.mark.slow
def test_a_policy_that_was_changed_is_trained_again(tiny, tmp_path, folder):
    setup = dataclasses.replace(setup_of(tmp_path, folder), tasks=LEARNED[:1])
    Bench(tiny, setup).run(Search("arc_easy"))
    for budget, n_trainings in ((0.5, 1), (0.5, 1), (0.25, 2)):
        Bench(tiny, setup).run(Train("early_exit", "early_exit", (("budget", budget),)))
        assert json.loads((tmp_path / "early_exit" / "policy.json").read_text())["route"].count("1") == L * budget
        assert trainings(tmp_path) == n_trainings
    both = setup_of(tmp_path, folder)
    Bench(tiny, both).run(Search("arc_challenge"))
    Bench(tiny, both).run(Train("early_exit", "early_exit", (("budget", 0.25),)))
    assert trainings(tmp_path) == 3, "other records, though this method reads none of them"


def trainings(out: Path) -> int:
    return sum(job["job"] == "train" for job in json.loads((out / "run.json").read_text()))


def test_other_records_of_the_run_are_not_learned_from(bench, tiny, folder, tmp_path):
    setup = setup_of(tmp_path, folder)
    for task in LEARNED:
        Bench(tiny, setup).run(Search(task))
    one = dataclasses.replace(setup, tasks=LEARNED[:1])
    Bench(tiny, one).run(train_routers(one))
    alone = (tmp_path / "routers" / "routers.safetensors").read_bytes()
    Bench(tiny, setup).run(train_routers(setup))
    assert (tmp_path / "routers" / "routers.safetensors").read_bytes() != alone
    Bench(tiny, one).run(train_routers(one))
    assert (tmp_path / "routers" / "routers.safetensors").read_bytes() == alone
    assert f"--tasks {LEARNED[0]} " in train_routers(one).command(one)


def test_a_kill_while_a_policy_is_written_resumes(tiny, folder, tmp_path):
    setup, stage = setup_of(tmp_path, folder), Train("early_exit", "early_exit", (("budget", 0.5),), LEARNED[:1])
    Bench(tiny, setup).run(Search(LEARNED[0]))
    Bench(tiny, setup).run(stage)
    config = tmp_path / "early_exit" / "drllm_config.json"
    whole = config.read_bytes()
    config.unlink()  # written last
    Bench(tiny, setup).run(stage)
    assert config.read_bytes() == whole
    assert trainings(tmp_path) == 2


def test_a_policy_of_the_users_own_is_not_overwritten(tiny, folder, tmp_path):
    setup, stage = setup_of(tmp_path, folder), Train("early_exit", "early_exit", (("budget", 0.5),), LEARNED[:1])
    Bench(tiny, setup).run(Search(LEARNED[0]))
    fit_policy(tiny, tmp_path, "early_exit", tasks=LEARNED[:1])
    with pytest.raises(ArtifactError, match=r"early_exit holds a policy that no reproduction made here"):
        Bench(tiny, setup).run(stage)


@pytest.mark.slow
def test_a_control_is_set_again_when_its_questions_change(tiny, folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    setup = setup_of(tmp_path / "run", data)
    options = (("budget", 0.9), ("tune_questions", 8))
    stage = Train("routers_budget", "routers", options, LEARNED[:1], n_tune=8, points=16)
    Bench(tiny, setup).run(Search(LEARNED[0]))
    Bench(tiny, setup).run(stage)
    Bench(tiny, setup).run(stage)
    assert trainings(setup.out) == 1
    write_rows(data / LEARNED[0] / "dev.jsonl", questions(400)[330:390])
    Bench(tiny, setup).run(stage)
    assert trainings(setup.out) == 2


@pytest.mark.slow
def test_times_of_other_threads_are_not_given_again(tiny, folder, tmp_path):
    setup = setup_of(tmp_path, folder)
    for stage in (*(Search(task) for task in LEARNED), train_routers(setup)):
        Bench(tiny, setup).run(stage)
    first = Bench(tiny, setup).run(Clock("latency"))
    assert Bench(tiny, setup).run(Clock("latency")) == first
    with torch_threads(2):
        assert Bench(tiny, setup).run(Clock("latency")) != first
    assert first["tokens"] == setup.scaled(300, 8)
    assert first["ratio_low"] < first["ratio"] < first["ratio_high"]


def test_it_runs_with_the_threads_asked_for(tiny, folder, tmp_path):
    setup = dataclasses.replace(setup_of(tmp_path, folder), resources=Resources(threads=2))
    told = Exhibit("told", "Told", lambda setup: [], lambda bench: [Paragraph(f"with {torch.get_num_threads()} threads")])
    assert "with 2 threads" in reproduce(Bench(tiny, setup), [told]).with_suffix(".md").read_text(encoding="utf-8")
    assert torch.get_num_threads() == 1, "as conftest sets it"


def test_what_can_only_fail_late_is_refused_first(tiny, folder, tmp_path):
    def refused(message, names=("all",), **changes):
        options = {key: changes.pop(key) for key in ("reward", "outside", "split") if key in changes}
        setup = dataclasses.replace(setup_of(tmp_path, folder, **options), **changes)
        with pytest.raises(InputError, match=message):
            reproduce(Bench(tiny, setup), wanted_exhibits(names))
        assert not (tmp_path / "search").exists()

    refused("--outside arc_easy: the routers learn from it", outside=("arc_easy",))
    data = without_test(folder, tmp_path)
    shutil.copytree(data / OUTSIDE, data / "openbookqa")
    refused("openbookqa.*no questions in split", outside=("openbookqa",), split="test", data=str(data))
    with pytest.raises(InputError, match="names no task"):
        setup_of(tmp_path, folder, outside=())


def test_tasks_may_be_asked_in_both_formats(tiny, tmp_path):
    setup = dataclasses.replace(setup_of(tmp_path, tmp_path, reward="generated"), tasks=("arc_easy", "arith-1"), data="")
    check(Bench(tiny, setup), wanted_exhibits(["table3"]))


def test_out_of_domain_is_graded_as_lm_eval_does_also_where_letters_are_learned(folder, tmp_path):
    setup = setup_of(tmp_path, folder, reward="generated")
    asked = {name: stages_of(wanted_exhibits([name]), setup)[-1] for name in ("table3", "table4")}
    for name, reward in {"table3": "generated", "table4": "auto"}.items():
        _, job, *rest = shlex.split(asked[name].command(setup))
        assert (make_parser(job, rest).parse_args(rest).reward or "auto") == reward


def without_test(folder: Path, tmp_path: Path) -> Path:
    copied = shutil.copytree(folder, tmp_path / "untested")
    (copied / OUTSIDE / "test.jsonl").unlink()
    return copied


@pytest.mark.slow
def test_what_is_not_for_a_family_is_named_and_left_out(folder, tmp_path):
    routed = RoutedModel.wrap(families.build("cohere", vocab_size=300, max_position_embeddings=256), byte_tokenizer())
    bench = Bench(routed, setup_of(tmp_path, folder))
    page = reproduce(bench, wanted_exhibits(["table5"])).with_suffix(".md").read_text(encoding="utf-8")
    assert {"mindskip", "flexidepth"} <= bench.missed.keys()
    assert "mindskip is not in the table:" in page
    assert "Best of the rivals" in page or "routers_budget is not in the table" in page


def test_variants_learn_from_the_same_states(bench):
    names = {path.name for path in (bench.setup.out / "train" / "features").iterdir()}
    assert names == {f"kept-{n}.safetensors" for n in WINDOWS} | {"base-8.safetensors", "unforced-8.safetensors"}


def test_a_difference_is_that_of_the_same_questions(bench):
    stage = in_domain(bench.setup)
    found = against(bench, stage, "routers", "base")
    rows = {row.task: row for row in bench.run(stage).rows if row.method == "routers"}
    assert found.mean == pytest.approx(np.mean([rows[task].difference for task in stage.tasks])), "tasks weigh the same"
    assert found.low <= found.mean <= found.high
    for task in stage.tasks:
        alone = against(bench, stage, "routers", "base", (task,))
        assert alone.mean == pytest.approx(rows[task].difference)
        assert alone.p == pytest.approx(rows[task].mcnemar_p, abs=0.02)
    assert against(bench, stage, "routers", "routers").is_gain is None
    assert Difference("a", "b", 0.02, 0.01, 0.03, 0.01).is_gain is True
    assert Difference("a", "b", -0.02, -0.03, -0.01, 0.01).is_gain is False
    assert Difference("a", "b", 0.02, 0.01, 0.03, 0.2).is_gain is None, "the interval alone is too narrow with few changes"
    better, worse, open_ = (Difference("a", "b", m, m - 0.01, m + 0.01, p) for m, p in ((0.02, 0.03), (-0.02, 0.03), (0.02, 0.3)))
    assert above_all([better]) is True
    assert above_all([better, better]) is None, "two looks, each at 0.03, are 0.06 by Holm"
    assert above_all([dataclasses.replace(better, p=0.01), dataclasses.replace(worse, p=0.001)]) is False
    assert above_all([dataclasses.replace(better, p=0.01), open_]) is None
    assert [Claim("x", holds).rpartition("This ")[2] for holds in (True, False, None)] == [
        "holds here.",
        "does not hold here.",
        "is neither confirmed nor refuted here.",
    ]


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
    assert float(rows[-1][1]) == pytest.approx(forwards[-1] * 0.1 / 60, abs=0.01), "minutes"
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
        assert (parsed.tasks, parsed.keep, parsed.model, parsed.reward) == ([task], n, settings["model"], "generated")
        assert (parsed.prompts, parsed.limit) == ("authors", 6 * n)
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
        (["table3", "--scale", "200"], "--scale is 200.0, expected between 0.001 and 100"),
        (["table3", "--split", "fit"], "invalid choice: 'fit'"),
        (["table3", "--outside", ","], "names no task"),
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
    assert published.published("Llama-3.2-3B") is published.MODELS["llama-3.2-3b"]
    assert published.published("someone/Llama-3.2-3B") is None
    assert published.published("smollm2-135m-q4") is None


def test_names_that_a_policy_cannot_have():
    from drllm.runs.names import check_name

    taken = "base search shuffled random-x shuffled-routers a/b .. .x -x train summary.json features"
    for name in ("", *taken.split()):
        with pytest.raises(InputError, match="--name"):
            check_name(name)
    for name in ("routers@-0.50", "routers@+0.50", "routers_2", "a.b"):
        check_name(name)


def test_printed_commands_run_where_the_reproduction_does(tmp_path):
    setup = dataclasses.replace(setup_of(tmp_path, tmp_path), resources=Resources(executor="processes", workers=3, pool_size=7))
    for job, told in (("search", ["--workers", "3", "--pool-size", "7"]), ("evaluate", ["--workers", "3"]), ("train", [])):
        words = shlex.split(setup.command(job))
        assert [word for word in words if word in ("--workers", "3", "--pool-size", "7")] == told, job
        make_parser(job, words).parse_args(words[2:])
    assert "--pool-size 7" in shlex.join(setup.flags)


def test_a_search_done_in_another_type_is_taken_as_it_is(tiny, folder, tmp_path):
    in_bfloat16 = RoutedModel.wrap(model().unwrap().to(torch.bfloat16), tokenizer=tiny.tokenizer)
    setup = setup_of(tmp_path / "run", folder)
    Bench(in_bfloat16, setup).run(Search(LEARNED[0]))
    before = folder_bytes(tmp_path / "run" / "search")
    asked = dataclasses.replace(setup, tasks=LEARNED[:1], placed=("--dtype", "float32"))
    bench = Bench(tiny, asked)
    reproduce(bench, wanted_exhibits(["table2"]))
    assert folder_bytes(tmp_path / "run" / "search") == before
    page = (bench.folder / "table2" / "report.md").read_text(encoding="utf-8")
    assert f"The searches of {LEARNED[0]} were done in bfloat16." in page
    assert re.search(rf"drllm search .*--tasks {LEARNED[0]} .*--dtype bfloat16\b", page)
    unsaid = Bench(tiny, dataclasses.replace(asked, placed=()))  # no --dtype, and the model came in another type all the same
    reproduce(unsaid, wanted_exhibits(["table2"]))
    assert f"The searches of {LEARNED[0]} were done in bfloat16." in (bench.folder / "table2" / "report.md").read_text(encoding="utf-8")
    # One that is not finished is refused, as ever: its records would be of two kinds.
    next((tmp_path / "run" / "search" / LEARNED[0]).glob("*.parquet")).unlink()
    with pytest.raises(ArtifactError, match=r"searched with dtype = 'torch.bfloat16', now it is 'torch.float32'"):
        Bench(tiny, asked).run(Search(LEARNED[0]))
    with pytest.raises(ArtifactError, match="searched with"):  # other settings are refused, whatever the type
        Bench(tiny, dataclasses.replace(asked, config=dataclasses.replace(asked.config, n_simulations=9))).run(Search(LEARNED[0]))
    as_it_is = dataclasses.replace(asked, config=dataclasses.replace(asked.config, n_simulations=9, searched=True))
    reproduce(Bench(tiny, as_it_is), wanted_exhibits(["table2"]))
    assert f"learned from {LEARNED[0]} " in (bench.folder / "table2" / "report.md").read_text(encoding="utf-8")
    with pytest.raises(ArtifactError, match=LEARNED[1]):
        reproduce(Bench(tiny, dataclasses.replace(as_it_is, tasks=LEARNED)), wanted_exhibits(["table2"]))


def test_a_claim_says_what_is_left_without_tasks_of_few_questions():
    """21 questions weigh as much as 500 in a mean over tasks, and say less."""
    mine = {"small": [1.0] * 9} | dict.fromkeys("ab", [0.0] * 10 + [1.0] * 50)
    other = {"small": [0.0] * 9} | dict.fromkeys("ab", [1.0] * 60)

    def compared(*tasks: str) -> Difference:
        return claims.compared("mine", "other", *({task: of[task] for task in tasks} for of in (mine, other)))

    found = compared("small", "a", "b")
    assert found.mean == pytest.approx((1 - 1 / 6 - 1 / 6) / 3)
    assert found.rest is not None
    assert found.rest.mean == pytest.approx(-1 / 6)
    assert found.few == "small (9)"
    claim = weighed("mine is better", [found])
    assert claim.holds is True
    assert "without small (9) -16.7 points" in claim
    assert "Without small (9) this does not hold." in claim
    assert compared("a", "b").rest is None
    assert compared("small", "a").rest is None, "one task is no mean over tasks"


def test_batch_sizes_are_judged_together():
    row = {"ratio": 1.165, "ratio_low": 1.027, "ratio_high": 1.322}
    assert p_of_ratio(row) == pytest.approx(0.024, abs=0.001), "t of eight rounds: the bound itself would be 0.05"
    half = 1.1 ** stats.t.ppf(0.975, 7)
    assert p_of_ratio({"ratio": half, "ratio_low": 1.0, "ratio_high": half**2}) == pytest.approx(0.05)


def test_mathematics_without_math_verify_is_refused_before_anything_is_searched(tiny, tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    grading.checker_of(os.getpid()).close()
    setup = Setup("tiny", ("arith-1",), tmp_path, "", ReproduceConfig(scale=SCALE, outside=("arith-2",)))
    with pytest.raises(InputError, match="math-verify does not load"):
        reproduce(Bench(tiny, setup), wanted_exhibits(["table2"]))
    assert not (tmp_path / "search").exists()


def test_fewer_passes_are_told_without_tasks_of_few_questions_too(monkeypatch):
    passes = {"small": [20] * 9, "a": [31] * 60, "b": [31] * 60}

    def rows(bench, stage, method, task):
        return [{"id": at, "n_passes": 30 if method == "base" else value} for at, value in enumerate(passes[task])]

    for module in (tables, claims):
        monkeypatch.setattr(module, "answers", rows)
    claim = tables.fewer(None, None, ", mean", tuple(passes))  # type: ignore[arg-type]
    assert claim.holds is True
    assert claim.figures.startswith("Passes a forward less the base's 30: -2.67 (-2.67 to -2.67); without small (9) +1.00 (+1.00 to +1.00)")
    assert claim.figures.endswith("Without small (9) this does not hold")


@pytest.fixture(scope="module")
def read_twice(tmp_path_factory) -> tuple[Bench, str]:
    """Tables 3 and 4 of letters and boxed answers, asked as the authors ask, and of worked answers, as lm-eval asks them."""
    folder = tmp_path_factory.mktemp("generated")
    sums = [{"id": f"s{n}", "question": f"What is {n} + 1?", "answer": str(n + 1), "level": 1} for n in range(60)]
    solved = [row | {"solution": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n, row in enumerate(sums)]
    for name, rows in (("arc_easy", questions(60)), ("math", sums), ("gsm8k", solved)):
        (folder / name).mkdir(exist_ok=True)
        for stem, part in (("train", rows[:40]), ("dev", rows[40:])):
            write_rows(folder / name / f"{stem}.jsonl", part)
    config = ReproduceConfig(
        scale=0.02, reward="generated", n_simulations=12, visits=3, outside=("gsm8k",), reader="lenient", answer_tokens=9, worked=8
    )
    setup = Setup("tiny", ("arc_easy", "dart-1"), folder / "run", str(folder), config)
    made = Bench(answering("llama"), setup)
    page = reproduce(made, wanted_exhibits(["table3", "table4", "table5", "search"])).with_suffix(".md").read_text(encoding="utf-8")
    return made, page


@pytest.mark.slow
def test_a_gain_is_told_by_both_readers_and_form_is_their_difference(read_twice):
    made, page = read_twice
    files = {(method, task): answers_of(made, "tune-first-16")[method, task] for method in ("base", "routers") for task in made.setup.tasks}
    gains = [
        np.mean(
            [np.mean(getattr(files["routers", task], reader)) - np.mean(getattr(files["base", task], reader)) for task in made.setup.tasks]
        )
        for reader in ("strict", "lenient")
    ]
    asked = np.mean([files["routers", task].form.count("asked") / len(files["routers", task].ids) for task in made.setup.tasks])
    line = next(line for line in page.splitlines() if line.startswith("| routers |") and line.count("|") == 7)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    expected = [*gains, gains[0] - gains[1]]
    assert [float(cell.split()[0]) for cell in cells[1:4]] == pytest.approx([100 * value for value in expected], abs=0.0501)
    assert float(cells[4]) == pytest.approx(100 * asked, abs=0.0501)
    assert "routers raise accuracy, mean over 2 tasks, read leniently" in page


@pytest.mark.slow
def test_rivals_and_the_search_taken_apart_are_read_twice_as_well(read_twice):
    _, page = read_twice
    rivals, parts = (section(page, EXHIBITS[name].title) for name in ("table5", "search"))
    assert any(line.startswith("| mindskip |") and line.count("|") == 7 for line in rivals.splitlines()), "strict, lenient and form"
    assert "flexidepth is not in the table: a 'flexidepth' policy spends at least 4.0 passes" in rivals, "trained, and too dear"
    solved = {line.split("|")[1].strip(): float(line.split("|")[2]) for line in parts.splitlines() if line.startswith("| the ")}
    assert solved["the lenient reader"] >= solved["the paper's"]


@pytest.mark.slow
def test_policies_beside_the_routers_are_compared_by_each_reader(read_twice):
    made, _ = read_twice
    beside = dataclasses.replace(made.setup, config=dataclasses.replace(made.setup.config, beside=("static",)))
    with pytest.raises(InputError, match=r"--beside static: .* holds no such policy, train it there first"):
        reproduce(Bench(made.routed, beside), wanted_exhibits(["table3"]))
    save_policy(RoutePolicy(Route.parse("1101")), made.routed.identity, made.setup.run.policy("static"))
    page = reproduce(Bench(made.routed, beside), wanted_exhibits(["table3"])).with_suffix(".md").read_text(encoding="utf-8")
    for said in ("", ", read leniently"):
        assert re.search(rf"more right answers by routers than by static{said}\W.* routers less static: [+-]?\d+\.\d points", page)
    assert any(line.startswith("| static |") and line.count("|") == 7 for line in page.splitlines()), "by readers"


@pytest.mark.slow
def test_layers_a_query_are_passes_times_generated_tokens(read_twice):
    made, page = read_twice
    means = []
    for method in ("base", "routers"):
        files = [answers_of(made, "tune-first-16")[method, task] for task in made.setup.tasks]
        means.append(np.mean([np.mean(np.array(found.passes) * np.array(found.n_new)) for found in files]))
        assert all(2 <= n <= 15 for found in files for n in found.n_new)
    assert f"| layers a query, over prompt and generated tokens | {means[0]:.1f} | {means[1]:.1f} |" in page
    assert "routers save layers a query, over prompt and generated tokens" in page


@pytest.mark.slow
def test_worked_answers_of_table_4_are_lm_evals(read_twice):
    made, page = read_twice
    section_4 = section(page, EXHIBITS["table4"].title)
    (folder,) = (made.setup.out / "harness" / "tune-first-8").iterdir()
    logs = {method: read_rows(next((folder / method).glob("samples_drllm_gsm8k*.jsonl"))) for method in ("base", "routers")}
    for kind in ("strict-match", "flexible-extract"):
        means = [100 * np.mean([row["exact_match"] for row in rows if row["filter"] == kind]) for rows in logs.values()]
        assert f"| gsm8k, {kind} | 8 | {means[0]:.1f} | {means[1]:.1f} |" in section_4
    ((prompt, settings),) = logs["base"][0]["arguments"]
    assert prompt.count("#### ") == 5
    assert prompt.startswith("Question: What is ")
    assert prompt.endswith("\nAnswer:")
    assert settings["max_gen_toks"] == 9
    assert "mean over 1 tasks (there over eight), flexible-extract" in section_4
    assert re.search(r"\| gsm8k, form \| +\| +\| +\| [+-]\d+\.\d \(", section_4), "the strict gain less the flexible one"


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_what_was_asked_stands_in_the_manifest_and_nothing_mixes_it(read_twice, tmp_path):
    made, _ = read_twice
    manifest = read_manifest(made.setup.run.search("arc_easy"))
    assert (manifest.prompts, manifest.reader) == ("instruct", "lenient")
    for changed, said in (({}, "prompts = 'instruct', now|config.prompts"), ({"searched": True}, "instruct and lenient, this .* ours and")):
        ours = dataclasses.replace(made.setup, config=dataclasses.replace(made.setup.config, prompts="ours", **changed))
        with pytest.raises(ArtifactError, match=f"searched with.* {said}"):
            Search("arc_easy").run(Bench(made.routed, ours))


def test_the_search_taken_apart_is_counted_from_its_records(bench, page):
    text = section(page, EXHIBITS["search"].title)
    for factor in ("the paper's", "25 simulations", "lambda 0", "segments of up to 3 run twice"):
        stages = [SearchWith(task, factor) for task in LEARNED]
        records = [record for stage in stages for record in bench.run(stage)]
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {factor} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        judged = sum(len(record.routes) for record in records) / len(records)
        assert (cells[1], cells[4]) == (f"{100 * sum(record.kept for record in records) / len(records):.1f}", f"{judged:.1f}")
    assert "the lenient reader" not in text, "log-likelihoods are not read"
    again = [record for task in LEARNED for record in bench.run(SearchWith(task, "segments of up to 3 run twice"))]
    segments = [route for record in again for route in record.routes]
    assert any(not route.is_in_place for route in segments)
