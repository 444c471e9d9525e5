"""The harness from both command lines on a tiny model in a folder, its offline tasks, and paired comparisons of its logs."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("lm_eval", reason="needs lm-eval (pip install '.[eval]')")

from scipy import stats

import families
from byte_tokens import byte_tokenizer
from drllm import InputError, Route, RoutedModel
from drllm.cli.main import main
from drllm.evaluation.harness import TASKS_FOLDER
from drllm.evaluation.harness.compare import compare, read_scores, render
from drllm.evaluation.harness.tasks.docs import documents
from drllm.policies.routers import RouterConfig, Routers
from drllm.stats.paired import holm
from drllm.tasks import TASK_NAMES, get_task

pytestmark = pytest.mark.long

ROUTE = Route.parse("1210")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a checkpoint (`model`), a run with a static policy (`run/static`), and questions of two tasks (`data`)."""
    root = tmp_path_factory.mktemp("harness")
    model = families.build("llama", vocab_size=300, max_position_embeddings=512)
    model.save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    routed = RoutedModel.wrap(str(root / "model"))
    routed.policy = ROUTE
    routed.save_pretrained(root / "run" / "static")
    prompts = [f"Question: What is {i} plus 3 in arc_easy?\nAnswer:" for i in range(12)]
    for seed in range(200):  # until they tell the prompts apart
        routed.policy = Routers(RouterConfig(families.N_BLOCKS, routed.hidden_size, n_windows=8, width=8), seed=seed)
        if len({out.route for out in routed.generate(prompts, max_new_tokens=1, do_sample=False)}) > 1:
            break
    routed.save_pretrained(root / "run" / "routers")
    for task, n_choices in (("arc_easy", 4), ("mmlu", 4)):
        folder = root / "data" / task
        folder.mkdir(parents=True)
        for part in ("train", "dev", "test"):
            asked = {"subject": "elementary_mathematics"}
            rows = [asked | {"id": f"{task}-{part}-{i}", "question": f"What is {i} plus {len(part)} in {task}?"} for i in range(12)]
            for i, row in enumerate(rows):
                row |= {"answer": i % n_choices, "choices": [str(i + len(part) + c) for c in range(n_choices)]}
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def cli(place: Path, *arguments: str) -> int:
    return main(
        ["evaluate", "--harness", "--out", str(place / "run"), "--model", str(place / "model"), "--data", str(place / "data"), *arguments]
    )


@pytest.fixture
def stock_cli(place, monkeypatch):
    """The stock command line, in this process; see `test_the_stock_command_line_in_a_process_of_its_own`."""
    from drllm import lm_eval

    monkeypatch.chdir(place)
    root, theirs = logging.getLogger(), logging.getLogger("lm_eval")
    before = [(logger, logger.level, [*logger.handlers], logger.propagate) for logger in (root, theirs)]

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["drllm.lm_eval", *arguments])
        return lm_eval.main()

    yield run
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:], logger.propagate = handlers, propagate


@pytest.mark.slow
def test_both_command_lines_give_the_same_numbers(place, stock_cli, capsys):
    tasks = "drllm_arc_easy,drllm_mmlu"
    assert cli(place, "--methods", "static,routers", "--tasks", tasks, "--batch-size", "4") == 0
    printed = capsys.readouterr().out
    assert "drllm_arc_easy" in printed
    assert "static" in printed
    assert Path(printed.splitlines()[-1].removeprefix("summary: ")).is_file()
    summary = json.loads((place / "run/harness/tune/drllm_arc_easy+drllm_mmlu/summary.json").read_text())
    metadata = json.dumps({"data": str(place / "data"), "split": "tune"})
    for name, pretrained in (("base", "model"), ("static", "run/static"), ("routers", "run/routers")):
        arguments = ["--model_args", f"pretrained={pretrained}", "--tasks", tasks, "--batch_size", "4", "--metadata", metadata]
        assert stock_cli(*arguments, "--output_path", f"stock/{name}", "--log_samples") == 0
        results = json.loads(next((place / "stock" / name).rglob("results_*.json")).read_text())
        for task in tasks.split(","):
            theirs, ours = results["results"][task], summary["metrics"][name][task]
            assert {key: theirs[key] for key in ("acc,none", "acc_norm,none")} == {key: ours[key] for key in ("acc,none", "acc_norm,none")}
            routing = results["config"]["drllm"]["tasks"][task]
            if name == "routers":
                assert task != "drllm_arc_easy" or routing["distinct_routes"] > 1, "routers that tell prompts apart"
                assert routing["mean_passes"] == summary["routing"][name][task]["mean_passes"]
            else:
                assert routing["mean_passes"] == (families.N_BLOCKS if name == "base" else ROUTE.n_passes)
            assert routing["prompts"] == 12
    assert read_scores(place / "stock/routers") == read_scores(place / "run/harness/tune/drllm_arc_easy+drllm_mmlu/routers")
    assert read_scores(place / "stock/static") == read_scores(place / "run/harness/tune/drllm_arc_easy+drllm_mmlu/static")
    assert "Holm" in render(compare({name: read_scores(place / "stock" / name) for name in ("base", "static")}), "base")


def results_of(place: Path, label: str, method: str = "static", split: str = "tune") -> Path:
    return place / "run" / "harness" / split / label / method / "results.json"


@pytest.mark.slow
def test_a_finished_method_is_read_back_and_other_options_have_a_folder_of_their_own(place):
    arguments = ["--methods", "static", "--tasks", "drllm_arc_easy", "--limit", "5"]
    assert cli(place, *arguments) == 0
    results = results_of(place, "drllm_arc_easy", split="tune-first-5")
    first = results.stat().st_mtime_ns
    assert cli(place, *arguments) == 0
    assert results.stat().st_mtime_ns == first
    assert cli(place, *arguments, "--harness-args=--num_fewshot 2") == 0
    assert results.stat().st_mtime_ns == first
    (other,) = [path for path in results.parents[2].iterdir() if path.name != "drllm_arc_easy"]
    sample = json.loads((other / "static" / "samples_drllm_arc_easy.jsonl").read_text().splitlines()[0])
    assert sample["arguments"][0][0].count("Question:") == 3


def test_shots_are_never_questions_that_are_asked(place):
    assert cli(place, "--methods", "base", "--tasks", "drllm_arc_easy", "--split", "fit", "--harness-args=--num_fewshot 1") == 0
    (folder,) = (place / "run" / "harness" / "fit").iterdir()
    for line in (folder / "base" / "samples_drllm_arc_easy.jsonl").read_text().splitlines():
        sample = json.loads(line)
        assert sample["arguments"][0][0].count(sample["doc"]["question"]) == 1


def test_shots_are_of_the_questions_own_subject_first(place, tmp_path):
    """Two subjects, asked through the harness: each question stands behind shots of its own, which the other's would crowd out."""
    same = {"choices": ["a", "b"], "answer": 0}
    rows = [
        same | {"id": f"{part}{number}", "part": part, "question": f"{part} {number}?", "subject": ("law", "anatomy")[number % 2]}
        for part in ("train", "dev")
        for number in range(40)
    ]
    (tmp_path / "mmlu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--methods", "base", "--tasks", "drllm_mmlu", "--data", f"{tmp_path}/mmlu.jsonl", "--harness-args=--num_fewshot 2"]
    assert cli(place, *arguments) == 0
    samples = max((place / "run" / "harness").rglob("base/samples_drllm_mmlu.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    asked = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(asked) == 40
    for sample in asked:
        context = sample["arguments"][0][0]
        number = int(sample["doc"]["id"].removeprefix("dev"))
        shots = [int(found) for found in re.findall(r"train (\d+)\?", context)]
        assert len(shots) == 2
        assert all(shot % 2 == number % 2 for shot in shots), context


def test_changed_questions_and_a_changed_policy_are_asked_again(place, tmp_path):
    """With the harness's own cache on: it knows requests, not models."""
    import shutil

    here = tmp_path / "here"
    shutil.copytree(place, here, ignore=shutil.ignore_patterns("harness", "stock"))
    arguments = ["--methods", "static", "--tasks", "drllm_arc_easy", f"--harness-args=--use_cache {tmp_path}/cache"]

    def answers() -> tuple[dict, dict]:
        assert cli(here, *arguments) == 0
        (folder,) = (here / "run" / "harness" / "tune").iterdir()
        summary = json.loads((folder / "summary.json").read_text())
        return read_scores(folder / "static"), summary

    first, summary = answers()
    assert summary["routing"]["static"]["drllm_arc_easy"]["prompts"] == 12
    routed = RoutedModel.wrap(str(here / "model"))
    routed.policy = Route.parse("2222")
    routed.save_pretrained(here / "run" / "static")
    second, summary = answers()
    assert summary["routing"]["static"]["drllm_arc_easy"]["mean_passes"] == 8
    path = here / "data" / "arc_easy" / "dev.jsonl"
    path.write_text(path.read_text().replace("What is 3 plus", "How much is 3 plus"))
    third, _ = answers()
    documents = [set(scores["drllm_arc_easy", "none", "acc"]) for scores in (first, second, third)]
    assert documents[0] == documents[1] != documents[2]


def test_reading_test_is_recorded(place):
    for split in ("tune", "test"):
        assert cli(place, "--tasks", "drllm_arc_easy", "--methods", "base", "--split", split) == 0
        job = json.loads((place / "run/run.json").read_text())[-1]
        assert (job["job"], job["read_test_split"]) == ("evaluate --harness", split == "test")
        results = json.loads(results_of(place, "drllm_arc_easy", "base", split).read_text())
        assert results["config"]["drllm"]["splits_read"]["drllm_arc_easy"] == split


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--tasks", "drllm_arc_easyy"], "Tasks not found"),
        (["--tasks", "arc_easy"], "need the Hub"),
        (["--tasks", "drllm_arc_easy", "--methods", "shuffled"], "baseline 'shuffled'"),
        (["--tasks", "drllm_arc_easy", "--methods", "no-such"], "holds no saved policy"),
        (["--tasks", "drllm_arc_easy", "--harness-args=--no_such"], "does not understand"),
        (["--tasks", "drllm_arc_easy", "--harness-args=--model hf"], "--model cannot be given to the harness here"),
        (["--tasks", "drllm_arc_easy", "--harness-args=-t drllm_mmlu"], "--tasks cannot be given to the harness here"),
        (["--tasks", "drllm_arc_easy", "--harness-args=--tas drllm_mmlu"], "does not understand"),
        (["--tasks", "drllm_arc_easy", "--harness-args=--limit 0.5"], "use --limit of `drllm evaluate`"),
        (["--tasks", "drllm_arc_easy", "--harness-args=-o x -s"], "cannot be given to the harness here"),
        (["--tasks", "drllm_arc_easy", "--harness-args=--metadata split=test"], "metadata 'split' cannot be given"),
        (["--tasks", "drllm_arc_easy", "--harness-args=--num_fewshot 40"], "to take 40 shots from"),
        (["--tasks", "drllm_arc_easy", "--harness-args='"], "cannot be split"),
        ([], "--tasks is missing"),
    ],
)
def test_mistakes_are_one_line(place, capsys, arguments, wanted):
    assert cli(place, "--methods", "base", *arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("drllm: error: ")
    assert wanted in last


def test_the_stock_command_line_refuses_in_one_line(stock_cli, capsys):
    assert stock_cli("--model_args", "pretrained=no/such", "--tasks", "drllm_arc_easy") == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("drllm: error: cannot load model 'no/such'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "last"),
    [
        (["--config", "no-such.yaml"], 2, "drllm: error: cannot read 'no-such.yaml'"),
        (["--model_args", "pretrained=model", "--tasks", "drllm_arc_easy", "--limit", "2"], 0, "|"),
    ],
)
def test_the_stock_command_line_in_a_process_of_its_own(place, arguments, code, last):
    metadata = json.dumps({"data": str(place / "data"), "split": "tune"})
    command = [sys.executable, "-m", "drllm.lm_eval", *arguments, "--metadata", metadata]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
    assert done.returncode == code, done.stderr
    assert (done.stderr if code else done.stdout).strip().splitlines()[-1].startswith(last)


def test_offline_prompts_are_the_stock_ones():
    """Rendered by the harness from its own task files, on documents in the Hub's layout."""
    import lm_eval.tasks
    from jinja2 import Environment

    stock_tasks = Path(lm_eval.tasks.__file__).parent
    environment = Environment(keep_trailing_newline=True)
    question, choices = "  What is it? ", ["one", "two", "three", "four"]
    docs = {
        "arc_easy": {"question": question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": "B"},
        "arc_challenge": {"question": question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": "B"},
        "piqa": {"goal": question, "sol1": "one", "sol2": "two", "label": 1},
        "sciq": {"question": question, "support": "", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d"},
        "commonsense_qa": {"question": question, "choices": {"text": [*choices, "five"], "label": list("ABCDE")}, "answerKey": "B"},
        "boolq": {"question": "is it so", "passage": "It is so.", "answer": True, "label": 1},
        "mmlu_anatomy": {"question": question, "choices": choices, "answer": 1, "subject": "anatomy"},
    }
    from drllm.tasks.layouts import LAYOUTS

    names = {"commonsense_qa": "commonsenseqa", "mmlu_anatomy": "mmlu"}
    files = {"arc_easy": "arc/arc_easy", "arc_challenge": "arc/arc_challenge", "piqa": "piqa/piqa", "sciq": "sciq/sciq"}
    files |= {"commonsense_qa": "commonsense_qa/default", "boolq": "super_glue/boolq/default", "mmlu_anatomy": "mmlu/default/mmlu_anatomy"}

    def read(path: Path) -> dict:
        found = yaml.safe_load(path.read_text().replace("!function", ""))
        return (read(path.parent / found["include"]) if "include" in found else {}) | found

    for stock, doc in docs.items():
        task = get_task(names.get(stock, stock))
        config = read(stock_tasks / f"{files[stock]}.yaml")
        context, continuations = task.loglik_prompt(LAYOUTS[task.name](task, doc | {"id": "1"}, "1", ""))
        prompt = environment.from_string(config.get("description", "") + config["doc_to_text"]).render(**doc)
        assert context == prompt, stock
        wanted = config["doc_to_choice"]
        if isinstance(wanted, str):
            wanted = eval(environment.from_string(wanted).render(**doc))
        assert continuations == [f" {choice}" for choice in wanted], stock


def test_every_choice_task_has_an_offline_task():
    # The harness has tasks of its own for those that are only measured; AIME's needs the Hub.
    asked = [name for name in TASK_NAMES if not name.startswith(("dart-", "arith-")) and not get_task(name).only_measured]
    assert {path.stem for path in TASKS_FOLDER.glob("*.yaml")} == {f"drllm_{name}" for name in (*asked, "aime24")}


@pytest.mark.parametrize(("ours", "stock"), [("gsm8k", "gsm8k/gsm8k.yaml"), ("aime24", "aime/aime24.yaml")])
def test_worked_answers_are_asked_and_graded_as_by_the_stock_task(ours, stock, tmp_path):
    """Shots, what ends an answer, its limit, filters and metrics; what says where questions come from is ours."""
    import lm_eval.tasks

    texts = [(TASKS_FOLDER / f"drllm_{ours}.yaml").read_text(), (Path(lm_eval.tasks.__file__).parent / stock).read_text()]
    mine, theirs = (yaml.safe_load(text.replace("!function", "")) for text in texts)
    for name in ("output_type", "generation_kwargs", "filter_list", "metric_list", "num_fewshot"):
        assert mine.get(name) == theirs.get(name), name
    (tmp_path / "row.jsonl").write_text('{"id": "q", "question": "How many?", "answer": "3", "solution": "1 + 2 = 3", "part": "test"}\n')
    [document], shots = map(documents(ours, str(tmp_path / "row.jsonl"), "test").get, ("eval", mine["fewshot_split"]))
    asked = theirs["doc_to_text"].replace("{{question}}", "How many?").replace("{{Problem}}", "How many?")
    assert (document["prompt"], document["target"]) == (asked, "1 + 2 = 3")
    assert list(shots) == [], "with test questions alone there are no shots, and the task loads all the same"


def logs(folder: Path, values: dict[str, list[float]], metric: str = "acc") -> Path:
    folder.mkdir(parents=True)
    for task, row in values.items():
        lines = [{"doc_id": i, "doc_hash": f"h{i}", "filter": "none", "metrics": [metric], metric: value} for i, value in enumerate(row)]
        (folder / f"samples_{task}_2026-01-01T00-00-00.000001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_compare_against_known_statistics(tmp_path):
    rng = np.random.default_rng(0)
    base = {f"t{k}": rng.integers(0, 2, 60).tolist() for k in range(3)}
    ours = {task: [1.0 if rng.random() < 0.2 * k else value for value in row] for k, (task, row) in enumerate(base.items())}
    found = {name: read_scores(logs(tmp_path / name, values)) for name, values in (("base", base), ("ours", ours))}
    rows = compare(found, n_resamples=2000)
    assert [row["task"] for row in rows] == ["t0", "t1", "t2", "all"]
    p_values = []
    for row in rows[:3]:
        a, b = np.array(ours[row["task"]]), np.array(base[row["task"]])
        assert row["difference"] == pytest.approx((a - b).mean())
        n = int((a != b).sum())
        p_values.append(stats.binomtest(int((a > b).sum()), n, 0.5).pvalue if n else 1.0)
        assert row["mcnemar_p"] == pytest.approx(p_values[-1])
    assert [row["holm_p"] for row in rows[:3]] == pytest.approx(holm(p_values))
    assert rows[3]["n"] == 180
    assert rows[3]["difference_low"] <= rows[3]["difference"] <= rows[3]["difference_high"]


def test_metrics_that_are_no_shares_are_shown_as_they_are(tmp_path):
    found = {name: read_scores(logs(tmp_path / name, {"t": values}, "bleu")) for name, values in (("a", [30.0, 41.5]), ("b", [31.0, 42.5]))}
    printed = render(compare(found), "a")
    assert "35.75" in printed
    assert "+1 (+1 to +1)" in printed
    # The latest log of a task counts.
    folder = logs(tmp_path / "c", {"t": [0.0, 0.0]})
    newer = (folder / "samples_t_2026-01-01T00-00-00.000001.jsonl").read_text().replace('"acc": 0.0', '"acc": 1.0')
    (folder / "samples_t_2026-01-02T00-00-00.000001.jsonl").write_text(newer)
    assert set(read_scores(folder)["t", "none", "acc"].values()) == {1.0}


def test_compare_refuses_what_cannot_be_paired(tmp_path):
    one = read_scores(logs(tmp_path / "one", {"t": [0, 1, 1]}))
    with pytest.raises(InputError, match="did not answer the same documents of t"):
        compare({"one": one, "two": read_scores(logs(tmp_path / "two", {"t": [0, 1]}))})
    with pytest.raises(InputError, match="has acc of t"):
        compare({"one": one, "three": read_scores(logs(tmp_path / "three", {"s": [0, 1, 1]}))})
    with pytest.raises(InputError, match="at least two"):
        compare({"one": one})
    with pytest.raises(InputError, match="holds no sample logs"):
        read_scores(tmp_path / "none")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "samples_t.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1: not a sample"):
        read_scores(broken)
    with pytest.raises(InputError, match="expected at least 1"):
        compare({"one": one, "same": one}, n_resamples=0)
