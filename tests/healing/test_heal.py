"""A whole healing: from prompts to a policy that everything that takes a policy takes."""

from __future__ import annotations

import json
import math
import resource
import shlex
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

import drllm
import families
import runs
from drllm import ArtifactError, EvaluateConfig, InputError, Route, RoutedModel
from drllm.cli.main import main
from drllm.core.config import PromiseConfig, Resources
from drllm.deploy.inspection import inspect
from drllm.evaluation.calibrate import calibrate
from drllm.policies.codebook import Codebook, Point, StateSelector, TextSelector
from drllm.runs.manifest import load_unseen
from drllm.tasks import load_task
from healed import CONFIG

pytestmark = pytest.mark.long

EVALUATE = EvaluateConfig(n_resamples=200, max_step_tokens=600)


def again(run, **changes):
    return drllm.heal(runs.model(), run.folder, tasks=[runs.TASK], data=run.data, config=replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("base"), runs.model()
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.gpu
def test_it_chooses_a_route_and_brings_it_nearer_to_the_base(run):
    route = Route.parse(run.healed.route)
    assert (run.healed.n_layers, run.healed.n_passes, route.n_passes) == (4, 3, 3)
    assert run.policy.route == route
    assert run.healed.kl_after < run.healed.kl_before / 2
    assert run.healed.same_after > run.healed.same_before
    assert json.loads((run.folder / "train" / "healed" / "heal.json").read_text())["kl_after"] == run.healed.kl_after
    assert set(run.healed.seconds) == {"base", "route", "training"}
    assert run.routed.policy is None
    card = (run.folder / "healed" / "README.md").read_text(encoding="utf-8")
    assert "prompts of the fit questions of arc_easy, without answers" in card
    assert f"without and with the adapter: {run.healed.kl_before:.3f}, {run.healed.kl_after:.3f}\n" in card


def test_the_same_call_finds_all_of_it_done(run):
    before, state = runs.folder_bytes(run.folder / "healed"), run.folder / "train" / "healed" / "state.safetensors"
    written = state.stat().st_mtime_ns
    policy, (found,) = again(run)
    assert state.stat().st_mtime_ns == written, "no step was taken"
    assert policy.route == run.policy.route
    assert found == run.healed
    assert runs.folder_bytes(run.folder / "healed") == before


def test_another_healing_there_is_refused(run):
    with pytest.raises(ArtifactError, match=r"holds a healing with rank 4, this one has 8: give another --out"):
        again(run, rank=8)
    with pytest.raises(ArtifactError, match=r"holds a healing with route None, this one has '1110': give another --out"):
        drllm.heal(runs.model(), run.folder, Route.parse("1110"), tasks=[runs.TASK], data=run.data, config=CONFIG)
    other = runs.model(seed=1)
    with pytest.raises(ArtifactError, match="holds a healing with model"):
        drllm.heal(other, run.folder, tasks=[runs.TASK], data=run.data, config=CONFIG)


@pytest.mark.gpu
def test_generate_and_inspect_run_it(run):
    routed = RoutedModel.from_pretrained(run.folder / "healed", base=runs.model())
    prompts = ["1: what is 20 and 30?", "hello"]
    found = routed.generate(prompts, max_new_tokens=6, do_sample=False)
    assert {output.route for output in found} == {run.policy.route}
    seen = inspect(routed, prompts[0], max_new_tokens=6)
    assert (seen.route, seen.text) == (run.policy.route, found[0].text)
    mixed = routed.generate(prompts, policy=[run.policy.route, Route.full(4)], max_new_tokens=6, do_sample=False)
    assert mixed[0].token_ids == found[0].token_ids
    assert mixed[1].token_ids == runs.model().generate(prompts[1], max_new_tokens=6, do_sample=False)[0].token_ids


def test_evaluate_compares_it(run, capsys):
    routed = runs.model()
    summary = drllm.evaluate(routed, ["healed", "random-healed"], [runs.TASK], run.folder, EVALUATE, run.data)
    rows = {row.method: row for row in summary.rows if row.task == runs.TASK}
    assert rows["healed"].mean_passes == 3
    assert run.policy.route.adapter in (run.folder / "healed" / "README.md").read_text()
    stored = {row["route"] for path in (run.folder / "verdicts").glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    assert {"1111", str(run.policy.route)} < stored
    assert {text.partition("@")[2] for text in stored} == {"", run.policy.route.adapter}
    page = drllm.report(run.folder)
    assert "healed" in page.read_text(encoding="utf-8")


def test_what_it_learned_from_judges_nothing(run, tmp_path):
    """Also where another task's test part holds it."""
    fit = {example.question for example in load_task(runs.TASK, run.data).select("fit")}
    rows = [row | {"part": "test"} for row in runs.questions(160)]
    rows += [rows[0] | {"id": "new", "question": "a new one?"}]
    found = load_unseen(run.folder, {"openbookqa": runs.write_rows(tmp_path / "other.jsonl", rows)}, "test")["openbookqa"]
    asked = {example.question for example in found.select("test")}
    assert len(fit) > 50
    assert not fit & asked
    assert "a new one?" in asked


def test_questions_in_a_file_of_prompts_judge_nothing(tmp_path):
    rows = [row | {"part": "test"} for row in runs.questions(60)]
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"Question: {row['question']}\n" for row in rows[:40]), encoding="utf-8")
    config = replace(CONFIG, steps=1, held_out=4)
    drllm.heal(runs.model(), tmp_path / "run", Route.parse("1110"), prompts=file, config=config)
    data = runs.write_rows(tmp_path / "test.jsonl", rows)
    found = load_unseen(tmp_path / "run", {runs.TASK: data}, "test")[runs.TASK]
    assert {example.id for example in found.select("test")} == {row["id"] for row in rows[40:]}
    assert found.dropped == {"test": 40}


@pytest.mark.gpu
def test_answers_are_those_of_the_merged_model(run, tmp_path):
    """Compared and written ones."""
    from drllm.deploy.export import export
    from drllm.scoring.scorer import askable, scorer_of

    routed = runs.model()
    routed.as_source(run.policy)
    export(routed, run.policy.route, tmp_path / "merged")
    plain = RoutedModel.wrap(str(tmp_path / "merged"), device=families.DEVICE)
    loaded = load_task(runs.TASK, run.data)
    margins, texts = [], []
    for model, routes in ((routed, [run.policy.route, Route.full(4), run.policy.route.bare]), (plain, [Route.full(3)])):
        for judged in (EVALUATE, replace(EVALUATE, reward="letter", max_new_tokens=6)):
            scorer = scorer_of(model, loaded.task, judged)
            questions, _ = askable(scorer, loaded.task, loaded.select("tune"))
            by_route = list(zip(*scorer.score_all(questions, routes), strict=True))
            if judged is EVALUATE:
                margins += [torch.tensor([verdict.margin for verdict in found]) for found in by_route]
            else:
                texts += [[verdict.text for verdict in found] for found in by_route]
    healed, _, bare, merged = margins
    assert torch.allclose(healed, merged, atol=1e-4)
    assert (healed - bare).abs().max() > 1e-2
    assert texts[0] == texts[3] != texts[2]


@pytest.mark.slow
def test_workers_have_its_adapter(run, tmp_path, base):
    rows = []
    for name, resources in (("here", None), ("there", Resources(executor="processes", workers=2))):
        routed = RoutedModel.wrap(str(base))
        routed.policy = run.policy
        routed.save_pretrained(tmp_path / name / "healed")
        summary = drllm.evaluate(routed, ["healed"], [runs.TASK], tmp_path / name, EVALUATE, run.data, resources=resources)
        rows.append([(row.method, row.accuracy, row.difference) for row in summary.rows])
    assert rows[0] == rows[1]


def test_it_can_be_calibrated_on_the_tasks_it_was_healed_on(run):
    policy, found = calibrate(runs.model(), run.folder, run.policy, PromiseConfig("calibrate", epsilon=0.5), as_it_is=True)
    asked = {example.id for example in load_task(runs.TASK, run.data).select("calibrate")}
    assert (found.point, found.tasks, found.judged) == (0, {runs.TASK: len(asked)}, "loglik, acc_norm")
    assert (policy.route, policy.promise) == (run.policy.route, found.to_json())
    summary = drllm.evaluate(runs.model(), ["healed"], [runs.TASK], run.folder, replace(EVALUATE, split="calibrate"), run.data)
    assert found.tested[0]["difference"] == next(row.difference for row in summary.rows if row.method == "healed")


def test_a_promise_by_the_command_line(run, tmp_path, base, capsys):
    """It stands in the saved policy where its test passes; where it fails, the policy is saved and promises nothing."""
    how = "--budget 0.75 --steps 2 --held-out 8 --new-tokens 0 --choose-on 2 --calibrate calibrate"
    command = ["heal", "--model", str(base), "--data", str(run.data), *how.split(), "--out", str(tmp_path / "out")]
    for epsilon, said in (("0.5", "promise: with 95 % confidence less than 50 points below the base"), ("0.01", "are too few")):
        assert main([*command, "--epsilon", epsilon]) == 0
        out = capsys.readouterr().out
        assert said in out
        saved = json.loads((tmp_path / "out" / "healed" / "drllm_config.json").read_text())
        assert saved["policy"] == "healed"
        assert ("promise" in saved) == (epsilon == "0.5")
    assert "The policy promises nothing." in out
    assert main(["report", str(tmp_path / "out")]) == 0
    kls = [json.loads((tmp_path / "out" / "train" / "healed" / "heal.json").read_text())[name] for name in ("kl_before", "kl_after")]
    page = (tmp_path / "out" / "report" / "report.md").read_text()
    assert f"| KL to the base, nats a token | {kls[0]:.3f} | {kls[1]:.3f} |" in page
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    assert main(["heal", "--model", "x", "--prompts", str(tmp_path / "lines.txt"), "--calibrate", "calibrate", "--out", "y"]) == 2
    assert "--calibrate counts right answers, and prompts have none: give --tasks" in capsys.readouterr().err


@pytest.mark.long
def test_the_harness_takes_it(run):
    pytest.importorskip("lm_eval")
    from drllm.evaluation.harness.model import RoutedLM

    routed = RoutedModel.from_pretrained(run.folder / "healed", base=runs.model())
    from lm_eval.api.instance import Instance

    pairs = [("1: what is 20 and 30?", " 50"), ("1: what is 20 and 30?", " 51"), ("hello", " you")]
    asked = [Instance("loglikelihood", {}, pair, index, metadata=("t", index, 1)) for index, pair in enumerate(pairs)]
    got = [value for value, _ in RoutedLM(routed, batch_size=2).loglikelihood(asked)]
    for pair, value in zip(pairs, got, strict=True):
        head, tail = (routed.tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair)
        logs = routed(torch.tensor([[*head, *tail]]), routes=run.policy.route).logits[0].log_softmax(-1)
        wanted = sum(float(logs[len(head) - 1 + at, token].detach()) for at, token in enumerate(tail))
        assert value == pytest.approx(wanted, abs=1e-3)


def test_every_route_of_a_codebook_is_healed_as_it_would_be_alone(run, tmp_path):
    routed, config = runs.model(), replace(CONFIG, steps=10)
    routes, grams = [Route.full(4), Route.parse("1110"), Route.parse("1211")], [tuple(routed.tokenizer(x)["input_ids"]) for x in "ab"]
    selector = TextSelector(grams, torch.eye(2), torch.zeros(2), math.inf)
    codebook = Codebook(routes, selector, [Point(0.5)])
    policy, healed = drllm.heal(routed, tmp_path / "all", codebook, tasks=[runs.TASK], data=run.data, config=config)
    assert [Route.parse(one.route).bare for one in healed] == routes[1:]
    alone, _ = drllm.heal(runs.model(), tmp_path / "one", routes[1], tasks=[runs.TASK], data=run.data, config=config)
    outs = RoutedModel.from_pretrained(tmp_path / "all" / "healed", base=runs.model()).generate(["a", "b", "c"], max_new_tokens=3)
    assert [out.route for out in outs] == [alone.route, policy.routes[2], Route.full(4)]
    assert (tmp_path / "all" / "healed" / "README.md").read_text(encoding="utf-8").count(" prompts of the fit questions of arc_easy") == 2
    assert main(["report", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "report" / "report.md").read_text(encoding="utf-8").count("KL to the base, nats a token") == 2
    codebook = Codebook(routes[:2], StateSelector(0, *torch.ones(2, 2), torch.ones(2, 1), torch.zeros(1)), [Point(0.0)])
    with pytest.raises(InputError, match=r"a 'codebook' policy decides in the model: give one of its routes"):
        drllm.heal(routed, tmp_path / "states", codebook, tasks=[runs.TASK], data=run.data, config=config)


@pytest.mark.parametrize(
    ("route", "said"),
    [("111", "leads through 3 blocks, the model has 4"), ("0000", "runs no block"), ("0-2,(1-2)*0.5,3", "has a strength")],
)
def test_routes_that_cannot_be_healed(tmp_path, route, said):
    with pytest.raises(InputError, match=said):
        drllm.heal(runs.model(), tmp_path, Route.parse(route), prompts="none.txt")


def test_without_prompts_or_peft_it_says_so_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^no prompts to learn from: give tasks"):
        drllm.heal(runs.model(), tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"^healing needs the package peft, which is not installed: run `pip install peft`$"):
        drllm.heal(runs.model(), tmp_path, prompts="none.txt")


def test_the_command_line_goes_on_after_a_full_disk(tmp_path, base, capsys):
    """Really: no file may grow beyond 16 KiB."""
    (tmp_path / "lines.txt").write_text("\n".join(f"{number}: what is it?" for number in range(60)))
    how = "--steps 8 --held-out 8 --step-tokens 300 --new-tokens 0 --choose-on 4 --budget 0.75 --lr 0.01"
    command = ["heal", "--model", str(base), "--prompts", str(tmp_path / "lines.txt"), *how.split()]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    out = capsys.readouterr().out
    assert "KL to the base, nats a token" in out
    assert f"drllm export --policy {tmp_path / 'whole' / 'healed'}" in out
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, hard))
    try:
        assert main([*command, "--out", str(tmp_path / "full")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.strip().endswith("make room and run the same command, which resumes")
    assert main([*command, "--out", str(tmp_path / "full")]) == 0
    whole, full = (runs.folder_bytes(tmp_path / name / "healed") for name in ("whole", "full"))
    assert shlex.join(["drllm", *command, "--out", str(tmp_path / "full")]) in full.pop("README.md").decode()
    assert {name: part for name, part in whole.items() if name != "README.md"} == full


def test_two_at_work_in_one_folder_are_refused(run, tmp_path):
    from drllm.runs.provenance import alone_in

    with alone_in(run.folder, "heal"), pytest.raises(ArtifactError, match="another heal is at work"):
        again(run)


def test_the_command_line_refuses_what_is_no_healing(run, tmp_path, capsys):
    base = ["heal", "--out", str(tmp_path / "out")]
    for arguments, said in (
        (["--route", "1011", "--policy", "x"], "got both --route and --policy"),
        (["--prompts", "x"], "--model is missing"),
        (["--policy", str(tmp_path)], "holds no saved policy"),
        (["--model", "x", "--rank", "0"], "--rank is 0, expected at least 1"),
    ):
        assert main([*base, *arguments]) == 2
        assert said in capsys.readouterr().err
