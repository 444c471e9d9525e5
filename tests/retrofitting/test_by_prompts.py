"""A retrofit from prompts alone: its parts share no prompt, the nest is one, and killed and resumed it writes the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import drllm
import runs
from drllm import ArtifactError, InputError, Route, RoutedModel
from drllm.cli.main import main
from drllm.core.config import HealConfig, PromiseConfig, PromptsConfig, Resources, RetrofitConfig
from drllm.healing.prompts import file_prompts, in_order, parted
from drllm.reporting.agreement import panel
from drllm.retrofitting.by_prompts import retrofit_prompts
from drllm.retrofitting.pace import check_parts, sizes_of_prompts
from drllm.runs.manifest import load_unseen
from drllm.runs.recommendation import Agreed
from drllm.stats.agreement import most_that_differ

pytestmark = pytest.mark.long

HEAL = HealConfig(steps=20, rank=4, lr=1e-2, held_out=16, choose_on=8, step_tokens=400, new_tokens=3)
KINDS = {"sum": "{}: what is {} and {}?", "say": "Say {}, please, {} and {}", "why": "Why {} or {} or {}?"}


def configs(differ: float = 0.0, minutes: float = 60) -> dict:
    of = {"retrofit": RetrofitConfig(minutes=minutes), "prompts": PromptsConfig(("0.5", "0.75", "0.7"), differ), "heal": HEAL}
    return of | {"promise": PromiseConfig("calibrate"), "resources": Resources()}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    rng = random.Random(0)
    texts = [(kind, form.format(n, *rng.choices(range(400), k=2))) for n in range(80) for kind, form in KINDS.items()]
    return runs.write_rows(tmp_path_factory.mktemp("prompts") / "log.jsonl", [{"request": {"prompt": t}, "kind": k} for k, t in texts])


@pytest.fixture(scope="module")
def done(file, tmp_path_factory) -> tuple[Path, Agreed, dict]:
    out = tmp_path_factory.mktemp("agreed") / "run"
    retrofit_prompts(runs.model(), file, out, configs(0.5), ["drllm", "retrofit"])
    with_seconds(out)
    return out, *retrofit_prompts(runs.model(), file, out, configs(0.5), ["drllm", "retrofit"])


def with_seconds(run: Path) -> None:
    """As if the policy's answers were faster: what is deployed depends on seconds, which a busy machine decides."""
    stages = json.loads((run / "stages.json").read_text())
    stages["seconds of answers"]["result"] = {"ratio": 0.8, "ratio_low": 0.7, "ratio_high": 0.9}
    (run / "stages.json").write_text(json.dumps(stages))


def rows_of(file: Path) -> list[dict]:
    """Test questions, of which the first 40 ask what stands in the file of prompts."""
    rows = [row | {"part": "test"} for row in runs.questions(60)]
    for row, line in zip(rows, file.read_text(encoding="utf-8").splitlines()[:40], strict=False):
        row["question"] = json.loads(line)["request"]["prompt"]
    return rows


def test_every_route_of_the_nest_leaves_out_what_the_wider_one_does(done):
    out, found, _ = done
    assert [(row.policy, row.passes) for row in found.nest] == [("healed-0.75", 3), ("healed-0.7", 2)], (
        "0.7 and 0.5 keep as many blocks: one route"
    )
    wide, narrow = (Route.parse(row.route) for row in found.nest)
    assert all(not narrow[block] for block in range(4) if not wide[block])
    assert wide.adapter != narrow.adapter
    assert all(row.kl_after < row.kl_before for row in found.nest)
    for row in found.nest:
        assert str(RoutedModel.from_pretrained(out / row.policy, base=runs.model()).policy.route) == row.route


def test_no_part_sees_another_s_prompts(done, file, tmp_path):
    out, found, _ = done
    routed = runs.model()
    parts = parted(in_order(routed, [one.ids for one in file_prompts(routed, file)], HEAL))
    assert found.prompts == {name: len(part) for name, part in parts.items()} == {"heal": 120, "select": 60, "calibrate": 60}
    assert len(set().union(*map(set, parts.values()))) == 240
    for folder, name in (("teacher", "heal"), ("select", "select")):
        kept = [load_file(path) for path in (out / "train" / "nest" / folder).glob("*.safetensors")]
        texts = [tuple(ids.tolist()) for one in kept for ids in one["ids"].split(one["lengths"].tolist())]
        assert texts
        assert {next(ids for ids in set().union(*parts.values()) if text[: len(ids)] == ids) for text in texts} <= set(parts[name])
    left = load_unseen(out, {runs.TASK: runs.write_rows(tmp_path / "test.jsonl", rows_of(file))}, "test")[runs.TASK]
    assert {example.id for example in left.select("test")} == {f"q{n}" for n in range(40, 60)}, "what the file held judges nothing"


def test_the_points_are_beside_what_they_must_beat(done):
    _, found, _ = done
    assert [row.passes for row in found.points] == sorted((row.passes for row in found.points), reverse=True)
    for row in found.points:
        assert row.own <= row.told + 1e-12
        assert row.told <= row.one + 1e-12
        assert row.own <= row.kl + 1e-12
        assert row.own <= row.dealt
        assert 0 < row.left <= 1


def test_the_promise_is_of_the_policy_s_own_answers(done, file):
    """Asked one by one by a fresh model, on the prompts that chose nothing."""
    out, found, _ = done
    routed = RoutedModel.from_pretrained(out / "promised", base=runs.model())
    calibrate = parted(in_order(routed, [one.ids for one in file_prompts(routed, file)], HEAL))["calibrate"]
    differ, passes = 0, []
    for ids in calibrate:
        given = {"input_ids": torch.tensor([ids]), "max_new_tokens": 3, "do_sample": False}
        [ours], [base] = routed.generate(**given), routed.generate(policy=Route.full(4), **given)
        differ += ours.token_ids != base.token_ids
        passes.append(ours.route.n_passes)
    assert most_that_differ(60, differ, 0.05) <= 0.5
    assert f"it did on {differ} of 60 calibrate prompts" in found.promise
    assert found.passes == pytest.approx(np.mean(passes))
    assert routed.policy.promise["sentence"] == found.promise
    assert (found.deploy, found.differ, found.point >= 0) == ("promised", 0.5, True)
    assert routed.policy.prompt_format == "raw"
    longest = HEAL.step_tokens if HEAL.step_tokens < 256 else 256
    assert routed.policy.selector.longest == longest - HEAL.new_tokens
    left = next(ids for ids, route in zip(calibrate, routed.policy.routes_for(calibrate), strict=True) if not route.is_full)
    times = [longest // len(left) - 1, longest // len(left) + 1]
    assert [route.is_full for route in routed.policy.routes_for([left * n for n in times])] == [False, True], "one too long to be tested"
    assert f"Prompts of more than {longest - 3} tokens were not tested: they keep every block" in found.promise
    with pytest.raises(InputError, match=r"asks for more than the 0\.5 this policy is promised"):
        routed.generate("hello", epsilon=0.1)


def test_the_page_and_the_box_say_it(done):
    out, found, result = done
    assert Agreed.read(out / "agreement.json", "") == found
    page = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert result["report"].name == "report.html"
    for text in (page, " ".join(panel(found, str(out)).replace("│", " ").split())):
        assert found.promise in text
        assert "told the kind" in text
        assert "Deploy the policy promised" in text
    assert drllm.report(out).read_bytes() == result["report"].read_bytes()
    assert found.promise in (out / "promised" / "README.md").read_text(encoding="utf-8")


def test_the_same_call_again_computes_nothing(done, file):
    out, found, _ = done
    before = runs.folder_bytes(out)
    again, result = retrofit_prompts(runs.model(), file, out, configs(0.5), ["drllm", "retrofit"])
    assert again == found
    assert len(result["skipped"]) == 8
    assert {name for name, part in runs.folder_bytes(out).items() if part != before.get(name)} == {"run.json"}


class Killed(BaseException):
    pass


@pytest.mark.long
def test_killed_anywhere_it_writes_the_same_bytes(done, file, tmp_path, monkeypatch):
    out, found, _ = done
    import os

    fsync, left = os.fsync, 0

    def dying(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", dying)
    kills = 0
    while True:
        left = 6 + 2 * kills
        try:
            again, _ = retrofit_prompts(runs.model(), file, tmp_path / "run", configs(0.5), ["drllm", "retrofit"])
            break
        except Killed:
            kills += 1
            assert kills < 60
    assert kills >= 5
    timed = {"minutes": 0.0, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "deploy": ""}
    assert again.changed(**timed) == found.changed(**timed)
    for name in ("healed-0.75", "healed-0.5", "selector", "promised"):
        whole, ours = (runs.folder_bytes(place / name) for place in (out, tmp_path / "run"))
        assert {key: part for key, part in whole.items() if key != "README.md"} == {key: p for key, p in ours.items() if key != "README.md"}


def test_without_a_share_the_prompts_say_what_they_bear(file, done, tmp_path):
    out, _, _ = done
    runs.copy_run(out, tmp_path, "train")
    found, _ = retrofit_prompts(runs.model(), file, tmp_path, configs(), ["drllm"])
    assert found.point == 0
    assert 0 < found.differ < 0.5
    if found.differ > 0.05:
        assert found.deploy == ""
        assert "where no --differ is given, answers may differ on at most 5 % of prompts" in panel(found, "x")


def test_a_folder_of_something_else_is_refused(done, file, tmp_path):
    out, _, _ = done
    with pytest.raises(ArtifactError, match=r"was asked for with differ 0\.5, now it is 0\.1: give another --out"):
        retrofit_prompts(runs.model(), file, out, configs(0.1))
    with pytest.raises(ArtifactError, match="was asked for with model"):
        retrofit_prompts(runs.model(seed=1), file, out, configs(0.5))


def test_too_little_is_one_line(file, tmp_path):
    few = runs.write_rows(tmp_path / "few.jsonl", [{"prompt": f"number {n}"} for n in range(30)])
    with pytest.raises(InputError, match=r"^got 30 different prompts that are short enough: give 80 at least"):
        retrofit_prompts(runs.model(), few, tmp_path / "run", configs())
    with pytest.raises(
        InputError, match=r"^0\.1 minutes are too short to heal 2 routes here: give --minutes \d+(\.\d)?, or fewer --budgets$"
    ):
        sizes_of_prompts({name: [range(50)] * 100 for name in ("heal", "select", "calibrate")}, 5.0, 0.1, HEAL, [0.9, 0.8], 30)
    check_parts({"heal": range(40), "select": range(20), "calibrate": range(20)})
    with pytest.raises(InputError, match=r"budgets is 0\.9,1\.2, expected shares from 0\.1 to below 1"):
        PromptsConfig(("0.9", "1.2"))


@pytest.mark.parametrize("minutes", [6, 20, 60])
def test_more_minutes_do_more(minutes):
    parts = {name: [range(50)] * 5000 for name in ("heal", "select", "calibrate")}
    config = HealConfig(steps=10**6)
    less, more = (sizes_of_prompts(parts, 0.5, time, config, [0.9, 0.8, 0.7], 30) for time in (minutes, 2 * minutes))
    assert less.steps < more.steps
    assert less.select <= more.select
    assert less.calibrate <= more.calibrate


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompts", "x", "--tasks", "arc_easy"], "got both --prompts and --tasks"),
        (["--prompts", "x", "--data", "x.jsonl"], "got both --prompts and --data"),
        (["--prompts", "x", "--objective", "speed"], "--objective is for questions with an answer key"),
        (["--prompts", "x", "--promise-epsilon", "0.1"], "--promise-epsilon is for questions with an answer key"),
        (["--prompts", "x", "--dry-run"], "--dry-run counts questions"),
        (["--prompts", "x", "--budgets", "2"], "--budgets is 2, expected shares"),
        (["--tasks", "arc_easy", "--differ", "0.1"], "--differ is for prompts without an answer key"),
    ],
)
def test_flags_that_do_not_belong_together(flags, said, tmp_path, capsys):
    assert main(["retrofit", "--model", "x", "--out", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
