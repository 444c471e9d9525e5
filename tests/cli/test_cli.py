"""The command line as a user meets it: one line for every mistake, exit codes, what goes to which stream, and the whole retrofit."""

from __future__ import annotations

import json
import os
import re
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
from drllm.policies.constant import RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import read_manifest
from drllm.runs.provenance import read_jobs

SRC = str(Path(__file__).parents[2] / "src")
N_BLOCKS = families.N_BLOCKS


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A tiny model in a folder, a static policy and routers for it, and a file of questions."""
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
    return {
        "model": root / "model",
        "policy": root / "policy",
        "chat": root / "chat-policy",
        "data": root / "data.jsonl",
        "corrupt": root / "corrupt",
        "bloom": root / "bloom",
        "stranger": root / "stranger",
    }


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# What is typed ({model}, {policy}, {tmp} stand for folders) and what the one line must say.
MISTAKES = {
    "refused family": (["generate", "hi", "--model", "{bloom}"], "model_type 'bloom' with alibi"),
    "corrupt artefact": (["generate", "hi", "--policy", "{corrupt}"], "not readable JSON"),
    "foreign weights": (["generate", "hi", "--policy", "{policy}", "--model", "{stranger}"], "was made for"),
    "unknown command": (["serach"], "unknown command 'serach'; did you mean 'search'?"),
    "nothing like a command": (["xyzzy"], "commands are scan, retrofit"),
    "flag before the command": (["--model", "x"], "unknown flag '--model'"),
    "unknown flag": (["search", "--n-simulatons", "3"], "unknown flag --n-simulatons; did you mean '--n-simulations'?"),
    "abbreviated flag": (["search", "--n-sim=3"], "unknown flag --n-sim"),
    "extra argument": (["evaluate", "runs/x"], "unexpected argument 'runs/x'"),
    "flag without value": (["search", "--limit"], "argument --limit: expected one argument"),
    "wrong type": (["search", "--limit", "many"], "argument --limit: invalid int value: 'many'"),
    "not a finite number": (["train", "--lr", "nan"], "argument --lr: invalid number value: 'nan'"),
    "wrong choice": (["search", "--reward", "leter"], "argument --reward: invalid choice: 'leter'"),
    "out of range": (
        ["search", "--model", "x", "--tasks", "piqa", "--out", "{tmp}/r", "--limit", "-1"],
        "limit is -1, expected at least 0",
    ),
    "no out": (["search", "--model", "x", "--tasks", "piqa"], "--out is missing"),
    "test split, before the model": (
        ["search", "--model", "x", "--tasks", "piqa", "--out", "{tmp}/r", "--splits", "test"],
        "split 'test' cannot be used here",
    ),
    "no tasks": (["search", "--model", "x", "--out", "{tmp}/r"], "no questions: give a file of yours (--data) or known tasks (--tasks)"),
    "no model": (["search", "--tasks", "piqa", "--out", "{tmp}/r"], "--model is missing"),
    "unknown task": (["search", "--model", "x", "--tasks", "arc_esy", "--out", "{tmp}/r"], "unknown task 'arc_esy'"),
    "unknown model": (["generate", "hi", "--model", "nobody/nothing"], "cannot load model 'nobody/nothing'"),
    "misspelt alias": (["generate", "hi", "--model", "smollm2-135m-q5"], "did you mean 'smollm2-135m-q4'?"),
    "unknown device": (["generate", "hi", "--model", "{model}", "--device", "tpu9"], "device 'tpu9' cannot be used here"),
    "missing data file": (
        ["search", "--model", "{model}", "--tasks", "arc_easy", "--data", "{tmp}/no.jsonl", "--out", "{tmp}/r"],
        "no.jsonl: no such file",
    ),
    "wrong route length": (
        ["generate", "hi", "--model", "{model}", "--route", "11"],
        f"route 11 leads through 2 blocks, the model has {N_BLOCKS}",
    ),
    "not a route": (["generate", "hi", "--model", "{model}", "--route", "1x"], "cannot read route '1x'"),
    "route and policy": (["generate", "hi", "--policy", "{policy}", "--route", "1111"], "got both --route and --policy"),
    "control without policy": (
        ["generate", "hi", "--model", "{model}", "--control", "0"],
        "--control sets how readily trained routers skip or repeat",
    ),
    "control of a static route": (["generate", "hi", "--policy", "{policy}", "--control", "-0.5"], "has no control"),
    "no new tokens": (["generate", "hi", "--model", "{model}", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
    "empty prompt": (["generate", "", "--model", "{model}"], "prompt 0 is empty"),
    "blank prompt": (["generate", "hi", "  ", "--model", "{model}"], "prompt 1 is empty"),
    "no prompt": (["generate", "--model", "{model}"], "no prompt"),
    "prompt beyond the context": (["generate", "x" * 600, "--model", "{model}"], "exceeds the context of 512 tokens"),
    "missing policy": (["generate", "hi", "--policy", "{tmp}/none"], "holds no saved policy"),
    "prompt format": (["generate", "hi", "--policy", "{chat}"], "the policy was trained on 'chat' prompts, these are 'raw'"),
    "run twice": (["report", "runs/a", "--out", "runs/b"], "the run folder was given twice, 'runs/a' and --out 'runs/b': give one"),
    "missing run": (["report", "--out", "{tmp}/none"], "no run folder"),
    "empty run": (["report", "--out", "{tmp}"], "holds no search, training or evaluation"),
    "train without search": (["train", "--out", "{tmp}", "--model", "{model}"], "holds no search records"),
    "train without run": (["train", "--out", "{tmp}/none"], "no run folder"),
    "evaluate without policies": (
        ["evaluate", "--out", "{tmp}", "--model", "{model}", "--tasks", "arc_easy", "--methods", "routers"],
        "holds no saved policy",
    ),
    "unknown method": (
        ["evaluate", "--out", "{tmp}", "--tasks", "piqa", "--methods", "routrs"],
        "unknown method 'routrs'; did you mean 'routers'?",
    ),
    "missing yaml": (["search", "--config", "{tmp}/no.yaml"], "--config expects an existing YAML file"),
    "bad yaml": (["search", "--config", "{tmp}/bad.yaml"], "is not YAML"),
    "unknown yaml key": (
        ["search", "--config", "{tmp}/key.yaml"],
        "unknown key 'n_simulatons' in section 'search'; did you mean 'n_simulations'?",
    ),
    "wrong yaml type": (["search", "--config", "{tmp}/type.yaml"], "limit is 'all', expected a whole number"),
    "wrong type in another section": (["train", "--config", "{tmp}/type.yaml"], "limit is 'all', expected a whole number"),
    "out is a file": (["search", "--model", "{model}", "--tasks", "arc_easy", "--data", "{data}", "--out", "{tmp}/bad.yaml"], "bad.yaml"),
}


@pytest.mark.parametrize(("typed", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(typed, message, folders, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    (tmp_path / "bad.yaml").write_text("a: [b\n")
    (tmp_path / "key.yaml").write_text("search: {n_simulatons: 3}\n")
    (tmp_path / "type.yaml").write_text("search: {limit: all}\n")
    code, out, err = run(capsys, *(argument.format(tmp=tmp_path, **folders) for argument in typed))
    assert code == 2
    assert out == ""
    assert err.startswith("drllm: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: drllm {name}")
    shown = re.findall(r"^  (-.*?)(?:  |$)", out, re.M)
    assert len(shown) <= 12, "a first look is short"
    flags = {option for action in cli.make_parser(name)._actions for option in action.option_strings}
    everything = run(capsys, name, "--help-all")[1]
    assert all(flag in everything for flag in flags)
    assert (f"`drllm {name} --help-all` shows" in out) == (len(shown) < everything.count("\n  -"))
    example = cli.help_of(name)[1]
    assert out.rstrip().endswith(example)
    # Each line of the example is one that parses.
    import shlex

    for line in example.splitlines():
        parsed, unknown = cli.make_parser(name).parse_known_intermixed_args(shlex.split(line)[2:])
        assert not unknown
        assert parsed is not None


@pytest.mark.parametrize("typed", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_command(typed, capsys):
    code, out, err = run(capsys, *typed)
    assert (code, err) == (0, "")
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_version(capsys):
    from drllm import __version__

    assert run(capsys, "--version") == (0, f"drllm {__version__}\n", "")


def test_help_and_refusals_import_no_torch():
    script = (
        "import sys; from drllm.cli.main import main\n"
        "codes = [main(a) for a in (['--help'], ['retrofit', '--help'], ['search', '--limit', 'x'], ['tasks'])]\n"
        "heavy = sorted({'torch', 'transformers', 'matplotlib'} & sys.modules.keys())\n"
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [0, 0, 2, 0] else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": SRC}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


def test_generate_refuses_a_policy_without_the_promise_asked_for_before_a_model_loads(folders, capsys, monkeypatch):
    def loads(*given, **how):
        raise AssertionError("it loads a model")

    monkeypatch.setattr(RoutedModel, "from_pretrained", loads)
    code, out, err = run(capsys, "generate", "hi", "--policy", folders["policy"], "--epsilon", "0.01")
    assert (code, out) == (2, "")
    assert err.startswith("drllm: error: epsilon=0.01 asks for a promise and this policy has none")


def test_generate_reads_prompts_from_standard_input(folders, tmp_path: Path, capsys, monkeypatch):
    given = run(capsys, "generate", "one", "two", "--model", folders["model"], "--max-new-tokens", "3")
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    with (tmp_path / "prompts.txt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run(capsys, "generate", "--model", folders["model"], "--max-new-tokens", "3") == given
    assert given[0] == 0
    assert given[1].count("[route 1111, 4 passes") == 2


def test_a_chat_policy_answers_chat_and_anything_when_told(folders, capsys):
    common = ["--policy", folders["chat"], "--max-new-tokens", "3"]
    assert run(capsys, "generate", "hi", "--chat", *common)[0] == 0
    assert run(capsys, "generate", "hi", "--any-format", *common)[0] == 0


def test_interrupt_says_that_work_is_kept(capsys, monkeypatch):
    def interrupted(job):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(cli.COMMANDS["tasks"], "run", interrupted)
    code, out, err = run(capsys, "tasks")
    assert (code, out) == (130, "")
    assert err == "drllm: interrupted; finished work is kept, the same command resumes\n"


def test_warnings_and_prints_of_libraries_stay_out_of_the_results(capsys, monkeypatch):
    import warnings

    def noisy(job):
        print("chatter")
        warnings.simplefilter("always")
        warnings.warn("two\nlines", UserWarning, stacklevel=1)
        yield "result"

    monkeypatch.setattr(cli.COMMANDS["tasks"], "run", noisy)
    assert run(capsys, "tasks") == (0, "result\n", "chatter\ndrllm: warning: two lines\n")


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
    assert "single letter" not in run(capsys, *typed)[1], "letters that stand side by side in the alphabet are a word"


def test_a_retrofit_refuses_a_bad_file_before_a_model_loads(folders, tmp_path: Path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Job, "load", lambda *_: pytest.fail("it loads a model"))
    (tmp_path / "mine.jsonl").write_text('{"question": "Why?"}\n')
    out = tmp_path / "run"
    code, _, err = run(capsys, "retrofit", "--model", folders["model"], "--data", tmp_path / "mine.jsonl", "--out", out)
    assert code == 2
    assert 'line 1: key "answer" is missing' in err
    assert not out.exists()


def test_an_export_for_peft_is_refused_before_a_model_loads_where_there_is_no_peft(folders, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("drllm.deploy.formats.adapter.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(Job, "load", lambda *_: pytest.fail("it loads a model"))
    typed = ["export", "--model", folders["model"], "--route", "1201", "--format", "peft", "--out", tmp_path / "x"]
    code, _, err = run(capsys, *typed)
    assert code == 2
    assert "run `pip install peft`" in err


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
        f"{numbers[2]} calibrate questions are too few unless a policy gains: a promise of at most 1 point lost, 95 % sure, needs 459"
    )
    less = [epsilon for epsilon, least in {0.02: 228, 0.03: 152, 0.05: 90, 0.1: 44}.items() if int(numbers[2]) >= least]
    assert promise.endswith(f"changes no answer: --promise-epsilon {less[0]:g}." if less else "questions in all.")
    code, printed, err = run(capsys, *typed, "--model", folders["model"])
    assert code == 0, err
    assert "in 10 minutes, at " in printed
    assert "questions in its last round" in printed
    assert not out.exists()


def test_a_file_without_questions_for_a_split_is_refused_before_a_model_loads(tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps({"question": "1 and 1?", "choices": ["2", "no"], "answer": 0, "part": "train"}) + "\n")
    code, _, err = run(capsys, "retrofit", "--model", "none/such", "--data", data, "--out", tmp_path / "run")
    assert code == 2
    assert re.search(r"one has no \w+ question \(fit \d, tune \d, calibrate \d\): give more questions", err), err
    assert not (tmp_path / "run").exists()


def test_the_papers_configuration_searches_and_trains_as_the_paper_does(folders, tmp_path: Path, capsys):
    """Read from what the two commands wrote: preset paper of the training, the authors' prompts and their count of simulations."""
    out, config = tmp_path / "run", Path(__file__).parents[2] / "configs" / "paper.yaml"
    asked = ["search", "--config", config, "--model", folders["model"], "--data", folders["data"], "--out", out, "--tasks", "arc_easy"]
    assert run(capsys, *asked, "--n-simulations", "4", "--limit", "8")[0] == 0
    manifest = read_manifest(RunFolder(out).search("arc_easy"))
    assert (manifest.search_config.asked, manifest.config["n_simulations"], manifest.config["counted"]) == ("authors", 4, "all")
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


@pytest.mark.long
def test_retrofit_recommends(folders, tmp_path: Path, capsys):
    """A box with what to do next ends it, whose commands run; the same call again takes the stages as they are."""
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
        ("auto", "", "AVX2", torch.float32),
        ("bfloat16", "", "AVX2", torch.bfloat16),
        ("auto", "", "AVX512", None),
        ("auto", "meta", "AVX2", None),
    ],
)
def test_a_processor_that_is_slow_in_16_bits_computes_in_float32(monkeypatch, asked, device, capability, taken):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = Job(Namespace(), Settings(), CommonConfig(dtype=asked, device=device), ["drllm", "generate"])
    assert job.placement()["dtype"] == taken
    assert job.placement("bfloat16")["dtype"] == torch.bfloat16


@pytest.mark.long
def test_own_questions_need_no_task_and_keep_their_name_everywhere(folders, tmp_path, monkeypatch, capsys):
    """The file names the task, in every later command too, also when that starts in another folder."""
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
