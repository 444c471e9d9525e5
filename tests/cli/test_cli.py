"""The command line as a user meets it: one line for every mistake, exit codes, what goes to which stream, and the whole retrofit."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import families
from drllm import Route, RoutedModel
from drllm.cli import main as cli
from drllm.cli.job import Job
from drllm.cli.main import main
from drllm.cli.options import CommonConfig, Namespace, Settings
from drllm.cli.terminal import TerminalReporter, quiet_other_packages
from drllm.core.progress import reporting_to
from drllm.policies.constant import RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import read_manifest
from drllm.runs.provenance import read_jobs
from drllm.runs.records import read_records
from record_factory import full_record, record, task_folder
from runs import a_job

SRC = str(Path(__file__).parents[2] / "src")
N_BLOCKS = families.N_BLOCKS


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    from byte_tokens import byte_tokenizer

    root = tmp_path_factory.mktemp("cli")
    families.build("llama", vocab_size=300, max_position_embeddings=512).save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    routed = RoutedModel.wrap(str(root / "model"))
    policy = RoutePolicy(Route.parse("1201"))
    routed.policy = policy
    routed.save_pretrained(root / "policy")
    routed.policy = Routers(RouterConfig(routed.n_layers, routed.hidden_size))
    routed.policy.prompt_format = "chat"
    routed.save_pretrained(root / "chat-policy")
    (root / "corrupt").mkdir()
    (root / "corrupt" / "drllm_config.json").write_text("{")
    for name, model in (("bloom", families.build("bloom")), ("stranger", families.build("llama", seed=5, vocab_size=300))):
        model.save_pretrained(root / name)
        byte_tokenizer().save_pretrained(root / name)
    rows = [
        {"id": f"q{n}", "question": f"Which number is {n}?", "choices": [f"{n}", f"{n + 1}", "none"], "answer": n % 3} for n in range(40)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {name: root / name for name in ("model", "policy", "corrupt", "bloom", "stranger")}
    return places | {"chat": root / "chat-policy", "data": root / "data.jsonl"}


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def stdin(monkeypatch):
    return lambda file: monkeypatch.setattr(sys, "stdin", file)


def assert_one_line(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("drllm: error: ")
    assert message in err


# What is typed ({model}, {policy}, {tmp} stand for folders) and what the one line must say.
MISTAKES = {
    "refused family": ("generate hi --model {bloom}", "model_type 'bloom' with alibi"),
    "corrupt artefact": ("generate hi --policy {corrupt}", "not readable JSON"),
    "foreign weights": ("generate hi --policy {policy} --model {stranger}", "was made for"),
    "unknown command": ("serach", "unknown command 'serach'; did you mean 'search'?"),
    "flag before the command": ("--model x", "unknown flag '--model'"),
    "unknown flag": ("search --n-simulatons 3", "unknown flag --n-simulatons; did you mean '--n-simulations'?"),
    "abbreviated flag": ("search --n-sim=3", "unknown flag --n-sim"),
    "extra argument": ("evaluate runs/x", "unexpected argument 'runs/x'"),
    "wrong type": ("search --limit many", "argument --limit: invalid int value: 'many'"),
    "not a finite number": ("train --lr nan", "argument --lr: invalid number value: 'nan'"),
    "wrong choice": ("search --reward leter", "argument --reward: invalid choice: 'leter'"),
    "out of range": ("search --model x --tasks piqa --out {tmp}/r --limit -1", "limit is -1, expected at least 0"),
    "no out": ("search --model x --tasks piqa", "--out is missing"),
    "test split, before the model": ("search --model x --tasks piqa --out {tmp}/r --splits test", "split 'test' cannot be used here"),
    "no tasks": ("search --model x --out {tmp}/r", "no questions: give a file of yours (--data) or known tasks (--tasks)"),
    "no model": ("search --tasks piqa --out {tmp}/r", "--model is missing"),
    "unknown task": ("search --model x --tasks arc_esy --out {tmp}/r", "unknown task 'arc_esy'"),
    "unknown model": ("generate hi --model nobody/nothing", "cannot load model 'nobody/nothing'"),
    "misspelt alias": ("generate hi --model smollm2-135m-q5", "did you mean 'smollm2-135m-q4'?"),
    "unknown device": ("generate hi --model {model} --device tpu9", "device 'tpu9' cannot be used here"),
    "missing data file": ("search --model {model} --tasks arc_easy --data {tmp}/no.jsonl --out {tmp}/r", "no.jsonl: no such file"),
    "wrong route length": ("generate hi --model {model} --route 11", f"route 11 leads through 2 blocks, the model has {N_BLOCKS}"),
    "not a route": ("generate hi --model {model} --route 1x", "cannot read route '1x'"),
    "route and policy": ("generate hi --policy {policy} --route 1111", "got both --route and --policy"),
    "control without policy": ("generate hi --model {model} --control 0", "--control sets how readily trained routers skip or repeat"),
    "control of a static route": ("generate hi --policy {policy} --control -0.5", "has no control"),
    "no new tokens": ("generate hi --model {model} --max-new-tokens 0", "--max-new-tokens is 0"),
    "empty prompt": ('generate "" --model {model}', "prompt 0 is empty"),
    "no prompt": ("generate --model {model}", "no prompt"),
    "prompt beyond the context": ("generate {long} --model {model}", "exceeds the context of 512 tokens"),
    "no promise, before a model loads": (
        "generate hi --policy {policy} --model no/model --epsilon 0.01",
        "epsilon=0.01 asks for a promise",
    ),
    "missing policy": ("generate hi --policy {tmp}/none", "holds no saved policy"),
    "prompt format": ("generate hi --policy {chat}", "the policy was trained on 'chat' prompts, these are 'raw'"),
    "run twice": ("report runs/a --out runs/b", "the run folder was given twice, 'runs/a' and --out 'runs/b': give one"),
    "missing run": ("report --out {tmp}/none", "no run folder"),
    "empty run": ("report --out {tmp}", "holds no search, training or evaluation"),
    "unknown method": ("evaluate --out {tmp} --tasks piqa --methods routrs", "unknown method 'routrs'; did you mean 'routers'?"),
    "missing yaml": ("search --config {tmp}/no.yaml", "--config expects an existing YAML file"),
    "wrong type in another section": ("train --config {tmp}/type.yaml", "limit is 'all', expected a whole number"),
    "out is a file": ("search --model {model} --tasks arc_easy --data {data} --out {tmp}/type.yaml", "type.yaml"),
}


@pytest.mark.parametrize(("typed", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(typed, message, folders, tmp_path: Path, capsys, stdin):
    stdin(None)
    (tmp_path / "type.yaml").write_text("search: {limit: all}\n")
    assert_one_line(run(capsys, *shlex.split(typed.format(tmp=tmp_path, long="x" * 600, **folders))), message)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: drllm {name}")
    shown = re.findall(r"^  (-.*?)(?:  |$)", out, re.M)
    assert len(shown) <= 12, "a first look is short"
    everything = run(capsys, name, "--help-all")[1]
    assert all(f"{flag.split()[0].rstrip(',')}" in everything for flag in shown)
    assert (f"`drllm {name} --help-all` shows" in out) == (len(shown) < everything.count("\n  -"))
    example = cli.help_of(name)[1]
    assert out.rstrip().endswith(example)
    # Each line of the example is one that parses.
    for line in example.splitlines():
        parsed, unknown = cli.make_parser(name).parse_known_intermixed_args(shlex.split(line)[2:])
        assert not unknown
        assert parsed is not None


@pytest.mark.parametrize("typed", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_command(typed, capsys):
    code, out, err = run(capsys, *typed)
    assert (code, err) == (0, "")
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_version_and_how_long_threads_spin(capsys, monkeypatch):
    from drllm import __version__

    for set_by_hand, spins in ({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None):
        monkeypatch.setattr(os, "environ", dict(set_by_hand))
        assert run(capsys, "--version") == (0, f"drllm {__version__}\n", "")
        assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_tasks_says_where_questions_come_from(capsys):
    from drllm.tasks import TASK_NAMES

    code, out, _ = run(capsys, "tasks")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[::2]] == list(TASK_NAMES)


def test_models_lists_aliases_and_families(capsys):
    from drllm.model.families import FAMILIES
    from drllm.model.load import ALIASES

    code, out, _ = run(capsys, "models")
    assert code == 0
    assert all(f"  {alias} " in out for alias in ALIASES)
    assert set(out.replace(",", " ").split()) >= FAMILIES
    assert "loops change the residual scale of: beam, doge (their blocks scale the states they are given)" in out


def test_generate_prints_answer_route_and_passes(folders, capsys):
    routed = RoutedModel.wrap(str(folders["model"]))
    prompts = ["What is it?", "And a longer one, to be padded for."]
    expected = routed.generate(prompts, policy=Route.parse("1201"), max_new_tokens=5, do_sample=False)
    lines = []
    for output in expected:
        lines += [(output.text or "").strip(), f"[route 1201, 4 passes of {N_BLOCKS}, {output.n_new_tokens} tokens]"]
    common = ["--max-new-tokens", "5"]
    by_route = run(capsys, "generate", *prompts, "--model", folders["model"], "--route", "1201", *common)
    assert by_route[0] == 0
    assert by_route[1] == "\n".join(lines) + "\n"
    by_policy = run(capsys, "generate", prompts[0], "--policy", folders["policy"], prompts[1], *common)
    assert by_policy[:2] == by_route[:2]


@pytest.mark.parametrize("route", ["0-2,1-3", "0-2,(1-2)*0.5,3", "0-1,0-1/4", "0-2+1-3"])
def test_generate_prints_the_path_of_a_loop_and_all_of_its_passes(route, folders, capsys):
    routed = RoutedModel.wrap(str(folders["model"]))
    (output,) = routed.generate("What is it?", policy=Route.parse(route, N_BLOCKS), max_new_tokens=5, do_sample=False)
    shown = {"0-2+1-3": "0-2,1-3"}.get(route, route)
    code, out, _ = run(capsys, "generate", "What is it?", "--model", folders["model"], "--route", route, "--max-new-tokens", "5")
    assert code == 0
    n_passes = 4 if route == "0-1,0-1/4" else 6
    assert out == f"{output.text.strip()}\n[route {shown}, {n_passes} passes of 4, {output.n_new_tokens} tokens]\n"


def test_generate_prints_the_base_s_answer_above_each(folders, capsys):
    prompts, common = ["What is it?", "And another?"], ["--model", folders["model"], "--max-new-tokens", "5"]
    base, ours = (run(capsys, "generate", *prompts, "--route", route, *common)[1].splitlines() for route in ("1111", "1201"))
    both = run(capsys, "generate", *prompts, "--route", "1201", "--beside-base", *common)[1].splitlines()
    base = [line.replace("[route 1111,", "[base,") for line in base]
    assert both == [*base[:2], *ours[:2], *base[2:], *ours[2:]]


def test_generate_reads_prompts_from_standard_input(folders, tmp_path: Path, capsys, stdin):
    given = run(capsys, "generate", "one", "two", "--model", folders["model"], "--max-new-tokens", "3")
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    with (tmp_path / "prompts.txt").open() as file:
        stdin(file)
        assert run(capsys, "generate", "--model", folders["model"], "--max-new-tokens", "3") == given
    assert given[0] == 0
    assert given[1].count("[route 1111, 4 passes") == 2


def test_a_chat_policy_answers_chat_and_anything_when_told(folders, capsys):
    common = ["--policy", folders["chat"], "--max-new-tokens", "3"]
    assert run(capsys, "generate", "hi", "--chat", *common)[0] == 0
    assert run(capsys, "generate", "hi", "--any-format", *common)[0] == 0


NOISY = """import warnings

def run(job):
    print("chatter")
    warnings.simplefilter("always")
    warnings.warn("two\\nlines", UserWarning, stacklevel=1)
    yield "result"
    raise KeyboardInterrupt
"""


def test_interrupts_warnings_and_prints_of_libraries_stay_out_of_the_results(capsys, monkeypatch, tmp_path: Path):
    (tmp_path / "others-1.dist-info").mkdir()
    (tmp_path / "others-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1\n")
    (tmp_path / "others-1.dist-info" / "entry_points.txt").write_text("[drllm.commands]\nnoisy = noisy_command\n")
    (tmp_path / "noisy_command.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    said = "chatter\ndrllm: warning: two lines\ndrllm: interrupted; finished work is kept, the same command resumes\n"
    assert run(capsys, "noisy") == (130, "result\n", said)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_writing_to_a_closed_pipe_exits_141():
    script = (
        "import os, sys; from drllm.cli.main import main\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1); os.close(write)\n"
        "sys.exit(main(['tasks']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": SRC}, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_dry_run_says_what_rows_are_taken_for(folders, tmp_path: Path, capsys):
    rows = "\n".join(f"What is {n}?,{'ABC'[n % 3]}" for n in range(100))
    (tmp_path / "mine.csv").write_text(f"question,answer\n{rows}\n")
    typed = ["retrofit", "--model", "none/such", "--data", tmp_path / "mine.csv", "--out", tmp_path / "run", "--dry-run"]
    _, printed, _ = run(capsys, *typed)
    assert "mine: 100 questions with free answers, judged by " in printed
    assert "mine: every answer is a single letter: are the choices missing?" in printed
    (tmp_path / "mine.csv").write_text("question,answer\n" + "\n".join(f"What is {n}?,NO" for n in range(100)) + "\n")
    printed = run(capsys, *typed)[1]
    assert "single letter" not in printed, "letters that stand side by side in the alphabet are a word"
    assert "mine: every answer is 'NO': is that the answer key?" in printed
    choices = "\n".join(f"What is {n}?,{n},{n + 1},B" for n in range(100))
    (tmp_path / "mine.csv").write_text(f"question,A,B,answer\n{choices}\n")
    assert "mine: every answer is B: is that the answer key?" in run(capsys, *typed[:-1])[1], "in the retrofit itself, too"


def test_an_export_for_peft_is_refused_before_a_model_loads_where_there_is_no_peft(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    typed = ["export", "--model", "no/model", "--route", "1201", "--format", "peft", "--out", tmp_path / "x"]
    assert_one_line(run(capsys, *typed), "run `pip install peft`")


def test_a_dry_run_of_a_retrofit_counts_before_a_model_loads(folders, tmp_path: Path, capsys):
    out = tmp_path / "run"
    typed = ["retrofit", "--tasks", "arc_easy", "--data", folders["data"], "--out", out, "--dry-run"]
    code, printed, err = run(capsys, *typed, "--model", "none/such")
    assert code == 2, "the model is looked for, behind the questions"
    read, _, header, _, counts, promise = printed.strip().splitlines()
    assert re.fullmatch(r"arc_easy: \d+ questions with [\d to]+ choices, judged by loglik", read)
    assert header.split() == ["task", "fit", "tune", "calibrate", "test"]
    name, *numbers = counts.split()
    assert (name, len(numbers)) == ("arc_easy", 4)
    assert promise.startswith(
        f"{numbers[2]} calibrate questions are too few unless a policy gains much: a promise of at most 1 point lost, 95 % sure, needs 459"
    )
    less = [epsilon for epsilon, least in {0.02: 228, 0.03: 152, 0.05: 90, 0.1: 44}.items() if int(numbers[2]) >= least]
    assert promise.endswith(f"changes no answer: --promise-epsilon {less[0]:g}." if less else "in a file without parts.")
    code, printed, err = run(capsys, *typed, "--model", folders["model"])
    assert code == 0, err
    assert "in 10 minutes, at " in printed
    assert "questions in its last round" in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, 'line 1: key "answer" is missing'),
        ({"choices": ["2", "no"], "answer": 0, "part": "train"}, r"one has no \w+ question \(fit \d, tune \d, calibrate \d\): give more"),
    ],
)
def test_a_retrofit_refuses_a_bad_file_before_a_model_loads(more, said, tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps({"question": "1 and 1?", **more}) + "\n")
    code, _, err = run(capsys, "retrofit", "--model", "none/such", "--data", data, "--out", tmp_path / "run")
    assert code == 2
    assert re.search(said, err), err
    assert not (tmp_path / "run").exists()


def test_the_papers_configuration_searches_and_trains_as_the_paper_does(folders, tmp_path: Path, capsys):
    """Read from what the two commands wrote: preset paper of the training, letters in the authors' words, their count of simulations."""
    out, config = tmp_path / "run", Path(__file__).parents[2] / "configs" / "paper.yaml"
    asked = ["search", "--config", config, "--model", folders["model"], "--data", folders["data"], "--out", out, "--tasks", "arc_easy"]
    assert run(capsys, *asked, "--n-simulations", "4", "--limit", "8")[0] == 0
    manifest = read_manifest(RunFolder(out).search("arc_easy"))
    assert (manifest.search_config.asked, manifest.config["n_simulations"], manifest.config["counted"]) == ("instruct", 4, "all")
    asked[asked.index(out)] = out = tmp_path / "learned"  # this random model says no letter, and some choices are likelier
    assert run(capsys, *asked, "--n-simulations", "4", "--limit", "8", "--reward", "auto")[0] == 0
    code, _, err = run(capsys, "train", "--config", config, "--model", folders["model"], "--out", out)
    assert code == 0, err
    (trained,) = [job for job in read_jobs(out) if job["job"].startswith("train")]
    assert (trained["config"]["preset"], trained["config"]["epochs"]) == ("paper", 25)


def test_a_dry_run_of_a_search_counts_and_searches_nothing(folders, tmp_path: Path, capsys):
    listed = tmp_path / "routes.txt"
    listed.write_text("0111\n1011\n")
    typed = ["search", "--model", folders["model"], "--tasks", "arc_easy", "--data", folders["data"], "--limit", "3", "--dry-run"]
    code, printed, err = run(capsys, *typed, "--out", tmp_path / "run")
    assert code == 0, err
    assert "arc_easy: fit 3 questions, 50 simulations, " in printed
    code, printed, err = run(capsys, *typed, "--out", tmp_path / "run", "--paths", listed, "--splits", "fit,tune")
    assert code == 0, err
    # Behind the base's four blocks: three without the first, two without the second.
    assert "arc_easy: fit 3, tune 3 questions, 2 routes, 2.2 a question" in printed
    code, printed, err = run(capsys, *typed, "--out", tmp_path / "run", "--paths", listed, "--reward", "letter")
    assert code == 0, err
    assert "arc_easy: fit 3 questions, 2 routes, 2.7 a question" in printed, "the prompt as above; three answers are decoded"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_retrofit_recommends(folders, tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    typed = ["retrofit", "--model", folders["model"], "--tasks", "arc_easy", "--data", folders["data"], "--out", out]
    for section, key in (("routers", "epochs"), ("search", "seed"), ("evaluate", "limit")):
        (tmp_path / "idle.yaml").write_text(f"{section}: {{{key}: 3}}\n")
        code, _, err = run(capsys, *typed, "--config", tmp_path / "idle.yaml")
        assert code == 2
        assert f"section '{section}' sets {key}, which `drllm retrofit` does not read: leave it out" in err
    typed += ["--minutes", "0.3", "--objective", "speed", "--promise-epsilon", "0.5", "--threads", "1"]
    code, first, err = run(capsys, *typed)
    assert code == 0, err
    assert "done already" not in err
    box = first[first.index("╭") :]
    assert box.rstrip().endswith("╯")
    assert "Deploy the policy" in box or "Keep the base" in box
    assert "drllm report" in box
    assert f"report: {out / 'report' / 'report.html'}" in first
    code, second, err = run(capsys, *typed)
    assert (code, second) == (0, first)
    assert "[1 of 7] what fits into the time: done already" in err
    assert "[2 of 7] scan: done already" in err
    assert "[7 of 7] report: done already" in err
    code, _, err = run(capsys, *typed[:-8], "--promise-epsilon", "0.5", "--threads", "1", "--minutes", "0.0001")
    assert code == 2
    assert "--minutes is 0.0001, expected" in err


@pytest.mark.parametrize(
    ("asked", "device", "capability", "taken"),
    [
        ("auto", "cpu", "AVX2", torch.float32),
        ("bfloat16", "cpu", "AVX2", torch.bfloat16),
        ("auto", "cpu", "AVX512", None),
        ("auto", "meta", "AVX2", None),
    ],
)
def test_a_processor_that_is_slow_in_16_bits_computes_in_float32(monkeypatch, asked, device, capability, taken):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    job = Job(Namespace(), Settings(), CommonConfig(dtype=asked, device=device), ["drllm", "generate"])
    assert job.placement()["dtype"] == taken
    assert job.placement("bfloat16")["dtype"] == torch.bfloat16


@pytest.mark.long
def test_own_questions_need_no_task_and_keep_their_name_everywhere(folders, tmp_path, monkeypatch, capsys):
    own, run_folder = tmp_path / "own", tmp_path / "own" / "run"
    own.mkdir()
    (own / "trivia.jsonl").write_text(folders["data"].read_text().replace('"choices"', '"options"'))
    monkeypatch.chdir(own)
    search = ["--model", folders["model"], "--data", "trivia.jsonl", "--out", "run", "--n-simulations", 4]
    code, _, err = run(capsys, "search", *search, "--no-verify")
    assert code == 0, err
    assert [path.name for path in (run_folder / "search").iterdir() if path.is_dir()] == ["trivia"]
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "train", "--out", run_folder, "--method", "static")
    assert code == 0, err
    code, out, err = run(capsys, "evaluate", "--out", run_folder, "--methods", "base,static")
    assert code == 0, err
    assert "on trivia, tune split" in out
    assert run(capsys, "report", run_folder)[0] == 0
    page = (run_folder / "report" / "report.md").read_text()
    card = (run_folder / "static" / "README.md").read_text()
    assert "trivia" in page
    assert "trivia" in card
    assert "arc" not in (page + card).lower().replace("search", "")
    code, _, err = run(capsys, "search", "--model", folders["model"], "--data", own / "gone.jsonl", "--out", tmp_path / "no")
    assert (code, "gone.jsonl: no such file" in err) == (2, True)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    for name, ids in (("a", ("q1", "q2")), ("b", ("q2", "q3"))):
        task_folder(tmp_path / name / "search" / "arc_easy", [full_record(one) for one in ids], questions=name)
    task_folder(tmp_path / "other" / "search" / "arc_easy", [record(name="q4", fingerprint="beef")], 1)
    task_folder(tmp_path / "broken" / "search" / "arc_easy", [record()], 1)
    (tmp_path / "broken" / "verdicts" / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    return {"tmp": tmp_path, **{name: tmp_path / name for name in ("a", "b", "other", "broken", "empty")}}


RECORD_MISTAKES = {
    "no action": ("", "the following arguments are required: ACTION"),
    "unknown action": ("inof {a}", "unknown action 'inof'; did you mean 'info'?"),
    "nothing like an action": ("xyzzy {a}", "choose from info, merge, export"),
    "no folder": ("info", "no folder: write `drllm records info FOLDER`"),
    "unknown flag": ("info {a} --outt x", "unknown flag --outt; did you mean '--out'?"),
    "filtered merge": ("merge {a} --out {tmp}/x --task piqa", "--task picks rows to show or export: leave it"),
    "info with out": ("info {a} --out {tmp}/x", "info only prints: leave --out out of it"),
    "export of two": ("export {a} {b} --out {tmp}/x.csv", "export takes one folder, got 2: merge them first"),
    "merge without out": ("merge {a} {b}", "--out is missing"),
    "export without out": ("export {a}", "--out is missing"),
    "missing folder": ("info {tmp}/none", "none does not exist: give a run folder"),
    "second folder missing": ("merge {a} {tmp}/none --out {tmp}/x", "none does not exist"),
    "no verdicts": ("info {empty}", "empty holds no verdicts: give a run folder"),
    "no such rows": ("export {a} --out {tmp}/x.csv --task piqa", "holds no such rows: name another task"),
    "a text file": ("export {tmp}/file.txt --out {tmp}/x.csv", "file.txt is not a readable shard"),
    "a corrupt shard": ("info {broken}", "is not a readable shard"),
    "merge of a corrupt shard": ("merge {a} {broken} --out {tmp}/x", "is not a readable shard"),
    "merge into verdicts": ("merge {a} --out {b}", "holds verdicts already: merge into a new folder"),
    "merge into a file": ("merge {a} --out {tmp}/file.txt", "file.txt"),
    "unknown format": ("export {a} --out {tmp}/x.xlsx", "expected a name that ends in .parquet, .csv, .jsonl"),
    "export into a store": ("export {a} --out {b}/verdicts/x.parquet", "would stand in a store of verdicts"),
    "export below a file": ("export {a} --out {tmp}/file.txt/x.csv", "file.txt"),
}


@pytest.mark.parametrize(("typed", "message"), RECORD_MISTAKES.values(), ids=RECORD_MISTAKES)
def test_a_mistake_with_records_is_one_line_and_changes_nothing(typed, message, runs, capsys):
    before = {path: path.read_bytes() for path in runs["tmp"].rglob("*") if path.is_file()}
    assert_one_line(run(capsys, "records", *shlex.split(typed.format(**runs))), message)
    assert {path: path.read_bytes() for path in runs["tmp"].rglob("*") if path.is_file()} == before


def test_exporting_onto_a_folder_is_one_line(runs, capsys):
    (runs["tmp"] / "x.csv").mkdir()
    assert_one_line(run(capsys, "records", "export", runs["a"], "--out", runs["tmp"] / "x.csv"), "x.csv")
    assert list((runs["tmp"] / "x.csv").iterdir()) == []


def test_exporting_again_replaces_the_file_and_a_merge_wants_a_folder(runs, capsys):
    out = runs["tmp"] / "rows.csv"
    out.write_text("of before\n", encoding="utf-8")
    assert run(capsys, "records", "export", runs["a"], "--out", out)[0] == 0
    assert "of before" not in out.read_text(encoding="utf-8")
    assert run(capsys, "records", "merge", runs["a"], runs["b"], "--out", out)[2] == f"drllm: error: --out {out} is a file: give a folder\n"


def test_info_counts_the_store_and_describes_the_search(runs, capsys):
    code, out, err = run(capsys, "records", "info", runs["a"], runs["other"])
    assert (code, err) == (0, "")
    assert out.count("weights") == 2
    assert ["f00d", "torch.float32", "arc_easy", "fit", "loglik", "2", "4", "8", *["50.0"] * 2] in [
        line.split() for line in out.splitlines()
    ]
    first = out[: out.index(str(runs["other"]))]
    assert first.count("less blind: ") == 1
    assert ["arc_easy", "2", "2", "2"] in [line.split()[:4] for line in first.splitlines()]
    (shard, *_) = (runs["a"] / "verdicts").iterdir()
    assert "less blind" not in run(capsys, "records", "info", shard)[1]
    assert "1001" not in run(capsys, "records", "info", runs["a"], "--route", "0111;1111")[1]


def test_merge_then_info_and_export_say_how_many(runs, capsys):
    out = runs["tmp"] / "merged"
    code, text, err = run(capsys, "records", "merge", runs["a"], runs["b"], "--out", out)
    assert (code, err) == (0, "")
    assert text.splitlines() == [
        f"{out}/verdicts: 12 rows, from 2 runs; 4 were given again",
        f"{out}/search/arc_easy: not made, several runs have it: the same search in {out} looks its verdicts up",
    ]
    assert run(capsys, "records", "merge", runs["a"], "--out", f"{out}-alone")[1].splitlines()[1] == f"{out}-alone/search/arc_easy: copied"
    assert [one.id for one in read_records(Path(f"{out}-alone") / "search")] == ["q1", "q2"]
    for name, more, rows in (("x.parquet", (), 12), ("x.csv", (), 12), ("x.jsonl", ("--route", "1111;0111"), 6)):
        file = runs["tmp"] / "deep" / name
        assert run(capsys, "records", "export", out, "--out", file, *more) == (0, f"{file}: {rows} rows\n", "")
    assert len((runs["tmp"] / "deep" / "x.csv").read_text().splitlines()) == 13
    rows = [json.loads(line) for line in (runs["tmp"] / "deep" / "x.jsonl").read_text().splitlines()]
    assert {row["route"] for row in rows} == {"1111", "0111"}
    assert run(capsys, "records", "info", runs["tmp"] / "deep" / "x.parquet")[0] == 0


LIGHT = """
import sys

def found(*names):
    return sorted(set(names) & sys.modules.keys())

import drllm
from drllm import Route, SearchConfig
heavy = found("torch", "transformers", "pyarrow")
import drllm.tasks
heavy += found("torch", "pyarrow", "datasets", "math_verify", "sympy", "olmo_eval")
from drllm.cli.options import section_class, section_names
list(map(section_class, section_names()))  # every method's
from drllm.cli.main import main
codes = [main(words.split()) for words in sys.argv[1:]]
heavy += found("torch", "transformers", "matplotlib")
sys.exit(f"{codes} {heavy}" if heavy or codes != [0, 0, 2, 0, 0, 0, 0] else 0)
"""


def test_importing_help_refusals_and_records_load_nothing_heavy(runs):
    a, b, tmp = (runs[name] for name in ("a", "b", "tmp"))
    typed = ["--help", "retrofit --help", "search --limit x", "tasks", f"records info {a}", f"records merge {a} {b} --out {tmp}/m"]
    command = [sys.executable, "-c", LIGHT, *typed, f"records export {a} --out {tmp}/x.csv"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": SRC}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bars_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with reporting_to(TerminalReporter()):
        a_job()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("drllm: a stage ...\n")
    assert all(part in err for part in ("kept", "\x1b[", "4/4"))
    assert "work: " not in err


def test_lines_in_a_log(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    with reporting_to(TerminalReporter()):
        a_job()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == ["drllm: a stage ...", "work: 1 of 4 were done before", "kept"]
    assert lines[3].startswith("work: 4/4, ")
    assert len(lines) == 4


@pytest.mark.parametrize("name", ["torchao", "torch.utils._pytree"])
def test_warnings_of_packages_below_are_not_shown(name):
    logger = logging.getLogger(name)
    before = logger.level
    try:
        for quieten in (quiet_other_packages, lambda: main(["--version"])):
            logger.setLevel(logging.NOTSET)
            quieten()
            assert not logger.isEnabledFor(logging.WARNING)
            assert logger.isEnabledFor(logging.ERROR)
    finally:
        logger.setLevel(before)
