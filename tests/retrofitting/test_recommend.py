"""`drllm retrofit` recommends: what fits into the time, the policy that tune names, the promise on calibrate, or the base."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from drllm import Route, RoutedModel, search
from drllm.core.config import SECTIONS, HealConfig, PromiseConfig, RetrofitConfig, SearchConfig
from drllm.core.errors import ArtifactError, InputError
from drllm.policies.routers import RouterConfig, Routers
from drllm.reporting.recommendation import commands, lines, panel, title
from drllm.retrofitting import sizes
from drllm.retrofitting.choice import best_on_tune, constant_accuracy, is_worth_it
from drllm.retrofitting.recommend import PROMISED, recommend
from drllm.retrofitting.sizes import TimeLeft, scan_cost, sizes_of
from drllm.runs.layout import RunFolder
from drllm.runs.load import read_summary
from drllm.runs.provenance import read_jobs
from drllm.runs.recommendation import Recommendation
from drllm.runs.summary import SummaryRow
from drllm.scoring import asking
from drllm.scoring.scorer import scorer_of
from drllm.stats.promise import Promise, find_promise
from drllm.tasks import Example, load_task
from runs import TASK, L, copy_run, model, questions, write_rows

pytestmark = pytest.mark.long

FEW = {"fit": 270, "tune": 200, "calibrate": 50, "test": 400}


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", questions(300))


def configs(**retrofit) -> dict:
    """In minutes that bear every question there is, how fast a busy machine is decides nothing."""
    return {name: kind() for name, kind in SECTIONS.items()} | {
        "search": SearchConfig(max_step_tokens=600),
        "retrofit": RetrofitConfig(**{"minutes": 30} | retrofit),
        "heal": HealConfig(step_tokens=10**9),  # no step fits
    }


def with_seconds(run: Path, low: float, ratio: float, high: float) -> None:
    """As if answers had taken so long, of the base's seconds: which a busy machine decides."""
    stages = json.loads((run / "stages.json").read_text())
    stages["seconds of answers"]["result"] = {"ratio": ratio, "ratio_low": low, "ratio_high": high}
    (run / "stages.json").write_text(json.dumps(stages))


SPEED_ASKED = configs(objective="speed") | {"promise": PromiseConfig("calibrate", epsilon=0.5)}


@pytest.fixture(scope="module")
def speed(tiny, rows, tmp_path_factory) -> tuple[Path, Recommendation, dict]:
    """Fewer passes wanted, and half of all right answers may be lost: something is promised for sure."""
    out = tmp_path_factory.mktemp("speed") / "run"  # which is not there yet
    _, result = recommend(tiny, [TASK], out, SPEED_ASKED, rows, ["drllm", "retrofit"])
    with_seconds(out, 0.7, 0.8, 0.9)
    return out, recommend(tiny, [TASK], out, SPEED_ASKED, rows, ["drllm", "retrofit"])[0], result


def test_what_is_recommended_saves_what_was_asked_for_and_is_promised(speed, tiny, rows):
    out, found, _ = speed
    assert (found.deploy, found.promised, found.objective) == (PROMISED, True, "speed")
    assert found.best in found.tried
    assert found.tune is not None
    assert found.calibrate is not None
    assert found.calibrate.mean_passes <= 0.92 * L
    assert (found.ratio_low, found.ratio, found.ratio_high) == (0.7, 0.8, 0.9)
    assert (found.tested_in, found.available) == ("float32", found.calibrate.n)
    assert (found.missed["healed"], found.out_of_time) == ("30 minutes are too short to heal a route", True)
    policy = RoutedModel.from_pretrained(out / PROMISED, base=tiny).policy
    assert policy is not None
    assert policy.promise["sentence"] == found.promise
    assert found.route == str(policy.route or "")
    assert Recommendation.read(out / "recommendation.json", "") == found
    assert "Deploy" in panel(found, str(out))
    page = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert page.index(title(found)) < page.index("## Results")
    assert all(command in page for command in commands(found, out.as_posix()))
    opening = page.partition("## Scan")[0]
    assert "no detectable gain" not in opening, "one verdict opens the page"
    assert page.index(title(found)) < page.index("## Scan") < page.index("## Results") < page.index("accuracy_tune")


def test_the_named_policy_is_the_best_on_tune_within_the_budget(speed):
    out, found, result = speed
    rows = {row.method: row for row in result["summary"].pooled}
    within = [rows[name] for name in found.tried if rows[name].mean_passes <= 0.92 * L and rows[name].difference >= -0.5]
    assert within
    assert rows[found.best].mean_passes == min(row.mean_passes for row in within), "the fewest passes at no loss that is not allowed"
    assert {"base", "shuffled-routers"} < rows.keys()
    assert "looped" not in {*found.tried, *found.missed}, "a loop runs more blocks than nine tenths"
    [calibrated] = (out / "evaluate").glob("calibrate-*/summary.json")
    after = read_summary(calibrated)
    assert {row.method for row in after.rows} == {"base", PROMISED}
    jobs = [job["job"] for job in read_jobs(out)]
    assert jobs.index("calibrate") > jobs.index("evaluate"), "the policy is named before a calibrate question is read"


def test_again_every_stage_is_done(speed, tiny, rows):
    out, found, _ = speed
    before, jobs = (out / "recommendation.json").read_bytes(), read_jobs(out)
    again, result = recommend(tiny, [TASK], out, SPEED_ASKED, rows, ["drllm", "retrofit"])
    assert again.to_json() == found.to_json()
    assert (out / "recommendation.json").read_bytes() == before
    assert read_jobs(out) == jobs, "nothing ran again"
    assert len(result["skipped"]) >= 12
    assert "report" in result["skipped"]


def test_what_takes_longer_is_not_deployed_for_speed(speed, tiny, rows, tmp_path):
    out = copy_run(speed[0], tmp_path, *(path.name for path in speed[0].iterdir()))
    with_seconds(out, 0.9, 1.0, 1.1)
    found, _ = recommend(tiny, [TASK], out, SPEED_ASKED, rows)
    assert (found.deploy, found.promised) == ("", True)
    assert "does not save time for sure" in panel(found, str(out)).replace("\n", " ").replace("│", "").replace("  ", " ")


@pytest.mark.slow
def test_accuracy_first_tries_loops_and_names_the_most_right_answers(tiny, rows, tmp_path):
    found, result = recommend(tiny, [TASK], tmp_path, configs(), rows, ["drllm", "retrofit"])
    assert {"static", "codebook", "routers"} <= {*found.tried, *found.missed}
    assert "looped" in {*found.tried, *found.missed}
    by_name = {row.method: row for row in result["summary"].pooled}
    if found.best:
        assert by_name[found.best].difference == max(by_name[name].difference for name in found.tried)
    assert found.deploy in ("", found.best)
    if found.deploy:
        assert found.promised
        assert by_name[found.deploy].difference > 0
    else:
        assert title(found) == "Keep the base"


def test_a_folder_is_for_one_question(speed, tiny, rows, tmp_path):
    """Another objective, other data or a search of before are refused at once, and what is there stays as it was."""
    out, _, _ = speed
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.json"))}
    for changes, what in (({"minutes": 1}, "minutes 30, now it is 1"), ({"objective": "accuracy"}, "objective")):
        with pytest.raises(ArtifactError, match=f"was asked for with {what}"):
            recommend(tiny, [TASK], out, configs(**{"objective": "speed"} | changes), rows)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.json"))} == before
    search(tiny, [TASK], SearchConfig(n_simulations=0, limit=2, verify=False), tmp_path, rows)
    with pytest.raises(ArtifactError, match="holds a search"):
        recommend(tiny, [TASK], tmp_path, configs(), rows)


@pytest.mark.slow
def test_another_model_or_another_promise(speed, tiny, rows, tmp_path):
    """Another model is refused; a stricter promise is tested anew, and what kept the old one is gone."""
    out = copy_run(speed[0], tmp_path, *(path.name for path in speed[0].iterdir()))
    of = SPEED_ASKED | {"promise": PromiseConfig("calibrate", epsilon=1e-4, delta=1e-6)}
    with pytest.raises(ArtifactError, match="with model"):
        recommend(model(seed=1), [TASK], out, of, rows)
    found, result = recommend(tiny, [TASK], out, of, rows)
    assert (found.deploy, found.promised) == ("", False)
    assert title(found) == "Keep the base"
    assert "What could change this" in panel(found, str(out))
    assert not (out / PROMISED).exists()
    assert "scan" in result["skipped"]


def test_missing_splits_are_refused_before_anything_runs(tiny, tmp_path):
    parts = [row | {"part": "train"} for row in questions(60)]
    with pytest.raises(InputError, match=r"has no (calibrate|tune) question"):
        recommend(tiny, [TASK], tmp_path / "run", configs(), write_rows(tmp_path / "few.jsonl", parts[:3]))
    assert not (tmp_path / "run" / "scan").exists()


def test_a_policys_decisions_are_made_once(tiny, tmp_path):
    """Also where a copy of it is asked again, as the promised policy is."""
    loaded, config = load_task(TASK, write_rows(tmp_path / "mine.jsonl", questions(60))), SearchConfig(max_step_tokens=600)
    scorer = scorer_of(tiny, loaded.task, config)
    asked = [scorer.question(loaded.task, example) for example in loaded.examples["fit"][:8]]

    def answers(policy, order=1):
        ask = asking.Ask(scorer, loaded.task, config, "fit", asked[::order], ())
        found = asking.asking_here(tiny, tmp_path).answers(ask, [None, policy], "answers")[1]
        return found, sorted(path.name for path in (tmp_path / "decided").iterdir())

    first, decided = answers(Routers(RouterConfig(L, tiny.hidden_size), seed=3))
    copy = Routers(RouterConfig(L, tiny.hidden_size), seed=3)
    copy.promise, copy.prompt_format = {"sentence": "it holds"}, "raw"
    again, still = answers(copy, -1)
    assert [part[::-1] for part in again] == list(first)
    assert (len(decided), still) == (1, decided)
    next(iter(copy.tensors.values())).add_(1.0)
    assert len(answers(copy)[1]) == 2, "another policy decides anew"


def test_a_refused_retrofit_leaves_its_folder_to_other_minutes(tmp_path):
    slow, data = model(), write_rows(tmp_path / "mine.jsonl", questions(240))
    slow.model.get_input_embeddings().register_forward_pre_hook(lambda *_: time.sleep(0.5))
    for minutes in (0.1, 0.2):
        with pytest.raises(InputError, match="is too short here"):
            recommend(slow, [TASK], tmp_path / "run", configs(minutes=minutes), data)
        assert not RunFolder(tmp_path / "run").asked.exists()


def row(n: int = 100, better: int = 12, worse: int = 8, passes: float = 28.5) -> SummaryRow:
    difference = (better - worse) / n
    return SummaryRow("codebook", "all", n, 0.5, 0.4, 0.6, passes, 30, 3, 0.5, difference, -0.05, 0.13, 0.5, better, worse)


def kept(**changes) -> Recommendation:
    given = {"model": "m", "deploy": "", "best": "codebook", "objective": "accuracy", "tried": ["static", "codebook"]}
    return Recommendation(**given | {"tune": row(), "asked_minutes": 10, "minutes": 3.0} | changes)


def test_how_many_questions_would_make_a_gain_sure():
    """By hand: 4 points, a variance of 0.2 - 0.0016 a question: (2.8 / 0.04)^2 x 0.1984 = 972.2."""
    assert kept().needed == 973
    assert kept(tune=row(better=8, worse=12)).needed == 0
    assert kept(tune=None).needed == 0
    assert kept(calibrate=row(better=40, worse=2)).needed == 0, "it is sure already"
    text = " ".join(lines(kept()))
    assert "on about 973 tune questions: 4,865 rows of a file without parts" in text
    assert "on 100 tune questions, which chose it" in text
    assert "calibrate questions" in " ".join(lines(kept(calibrate=row(60, 5, 3))))
    assert "no answer changed on 9 calibrate questions" in " ".join(lines(kept(calibrate=row(9, 0, 0)))), "no interval of width 0"
    assert "The base is right on all" in " ".join(lines(kept(calibrate=dataclasses.replace(row(9, 0, 1), accuracy=8 / 9))))


def test_a_box_says_what_was_not_made_and_why():
    found = kept(best="", tune=None, tried=["static"], missed={"healed": "1 minutes are too short to heal a route"}, objective="speed")
    text = " ".join(lines(found))
    assert "None of them gained right answers or saved passes on tune." in text
    assert "healed (1 minutes are too short to heal a route)" in text
    assert "--objective accuracy" in text
    assert "Trying took 3.0 of 10 minutes. Compared: static." in text
    assert commands(found, "runs/x") == ["drllm report runs/x"]


def test_a_box_names_the_routes_that_were_compared():
    routes = {"static": "10111", "looped": "0-2,1-2,3-4"}
    *_, text = lines(kept(tried=["static", "looped", "codebook"], routes=routes, tuned=1200))
    assert text == (
        "Trying took 3.0 of 10 minutes. Compared on 1,200 tune questions: static (skips 1), looped (runs 1-2 again after 2), codebook."
    )
    assert list(lines(kept(tried=[])))[-1].endswith("of 10 minutes. No policy could be compared.")


def test_a_promise_without_a_gain_is_not_deployed_and_says_why():
    found = kept(calibrate=row(passes=30.0), promise="with 95 % confidence ...", promised=True)
    text = " ".join(lines(found))
    assert "Promise: with 95 %" in text
    assert "Not deployed: its gain is not sure" in text


def test_only_one_route_for_all_is_exported_and_commands_can_be_pasted():
    static, damped, codebook = (commands(kept(deploy=PROMISED, route=route), "my runs/x") for route in ("11011", "0-2,(1-2)*0.5,3-4", ""))
    assert "drllm export --policy 'my runs/x/promised' --out 'my runs/x/exported'" in static
    assert not any("drllm export" in line for line in (*damped, *codebook)), "no format holds a strength"
    assert commands(kept(deploy=PROMISED, is_chat=True), "x")[0] == 'drllm generate --policy x/promised --chat --beside-base "a prompt"'


ACCURACY, SPEED = RetrofitConfig(), RetrofitConfig(objective="speed")


def asked(minutes: float, of: RetrofitConfig = ACCURACY) -> RetrofitConfig:
    return dataclasses.replace(of, minutes=minutes)


@pytest.mark.parametrize("minutes", [1, 3, 10, 60, 1000])
@pytest.mark.parametrize("plain_ms", [3, 30, 300])
@pytest.mark.parametrize("of", [ACCURACY, SPEED, RetrofitConfig(budget=0.7)], ids=["accuracy", "speed", "0.7"])
def test_stages_fit_into_the_time(minutes, plain_ms, of):
    available, forwards = {"a": FEW, "b": FEW}, 60_000 * minutes / plain_ms
    try:
        found = sizes_of(30, plain_ms, asked(minutes, of), available)
    except InputError as error:
        advised = float(str(error).partition("give at least ")[2].partition(",")[0])
        assert advised > minutes
        assert sizes_of(30, plain_ms, asked(advised, of), available).scanned >= 8
        return
    assert scan_cost(30, found.max_span, found.scanned, of.kinds) <= sizes.SCAN * forwards
    assert found.max_span == 0 or of.kept > 1 or 30 - found.max_span <= of.kept * 30, "some candidate keeps to the budget"
    assert found.tuned == 12 or (found.tuned * 2 * sizes.ON_TUNE <= sizes.TUNE * forwards and found.tuned <= 200)
    assert found.calibrated == 12 or (found.calibrated * 2 * sizes.ON_CALIBRATE <= sizes.CALIBRATE * forwards and found.calibrated <= 50)
    assert found.listed == 12 or found.listed * 2 * 2 * 16 * 0.6 <= sizes.LIST * forwards


def test_more_time_asks_more():
    found = [sizes_of(30, 30, asked(minutes), {"a": FEW, "b": FEW}) for minutes in (2, 5, 20, 100)]
    assert [one.tuned for one in found] == sorted(one.tuned for one in found)
    assert (found[-1].scanned, found[-1].max_span) == (128, 0)


def test_a_small_task_beside_a_large_one_takes_part_and_does_not_starve_it():
    few, many = FEW | {"fit": 10, "tune": 6, "calibrate": 5}, FEW | {"fit": 1000, "tune": 800, "calibrate": 600}
    found = sizes_of(30, 3, asked(60), {"a": few, "b": many})
    assert -(-found.scanned // 2) <= 10
    assert found.tuned > 200
    assert found.calibrated > 100


def test_too_little_time_or_too_few_questions_is_one_line():
    with pytest.raises(InputError, match=r"--minutes 0\.5 is too short here, where the base takes 2 s a question: give at least [\d.]+,"):
        sizes_of(28, 2000, asked(0.5), {"a": FEW})
    with pytest.raises(InputError, match=r"^5 questions to learn from are too few, a scan needs 8: bring 100 or more in all"):
        sizes_of(28, 2, asked(10), {"a": FEW | {"fit": 5}})
    with pytest.raises(InputError, match="a has no calibrate question"):
        sizes_of(28, 2, asked(10), {"a": FEW | {"calibrate": 0}})


def test_the_promise_takes_the_questions_that_the_time_left_bears():
    sizes = sizes_of(30, 30, asked(10), {"a": FEW})

    def most(seconds: float, pace: float = 0.1, decides: bool = False) -> int:
        left = TimeLeft(SimpleNamespace(seconds=600 - seconds), 10, sizes, RunFolder(Path("x")), 16, 1)
        left.pace = pace
        return left.calibrate_questions(decides)

    assert most(0) == 12 < most(39) < most(45) < most(10_000) == sizes.calibrated
    assert most(45, decides=True) < most(45), "a policy that reads prompts asks fewer"
    assert most(45, 0.2) < most(45), "a slower machine, fewer questions"


def made(method: str, difference: float, passes: float, **others) -> SummaryRow:
    about = {"task": "all", "method": method, "n": 100, "accuracy": 0.5, "wilson_low": 0.4, "wilson_high": 0.6}
    about |= {"difference": difference, "difference_low": difference - 0.1, "difference_high": difference + 0.1, "better": 5, "worse": 5}
    return SummaryRow(**about | {"mcnemar_p": 1.0, "mean_passes": passes, "n_layers": 30} | others)


@pytest.mark.parametrize(
    ("objective", "limit", "best"),
    [("accuracy", 60, "more"), ("accuracy", 29.5, "less"), ("speed", 60, "less"), ("speed", 26, "least"), ("speed", 20, None)],
)
def test_the_named_policy_by_objective_and_budget(objective, limit, best):
    rows = [made("same", 0.0, 30), made("more", 0.2, 32), made("less", 0.1, 28), made("least", -0.1, 25), made("worse", -0.2, 31)]
    found = best_on_tune(rows, objective, limit, epsilon=0.01)
    assert (found and found.method) == best


def test_what_is_worth_deploying_saves_time_or_gains_for_sure():
    sure = {"difference_low": 0.1, "difference_high": 0.3, "better": 30, "worse": 10, "mcnemar_p": 0.002}
    assert is_worth_it(made("gain", 0.2, 32, **sure), "accuracy", 60, 1.2)
    assert not is_worth_it(made("gain", 0.2, 32, **sure), "speed", 60, 1.2)
    assert not is_worth_it(made("gain", 0.2, 32, **sure), "accuracy", 31, 1.2), "above the budget"
    assert is_worth_it(made("saves", 0.0, 28), "speed", 60, 0.98)
    assert not is_worth_it(made("saves", 0.0, 28), "speed", 60, 1.01)
    assert not is_worth_it(made("maybe", 0.2, 30), "accuracy", 60, 0.9), "neither a sure gain nor fewer passes"


def test_a_gain_that_a_constant_answer_has_too_is_said():
    yes_no = [Example(str(n), f"q{n}", ("no", "yes"), int(n % 3 > 0), "a") for n in range(30)]
    other = [Example(str(n), f"q{n}", (f"{n}", "x"), 0, "a") for n in range(30)]
    assert constant_accuracy({"a": yes_no}) == 20 / 30
    assert constant_accuracy({"a": yes_no, "b": yes_no[:3]}) == 22 / 33
    assert math.isnan(constant_accuracy({"a": other}))
    assert math.isnan(constant_accuracy({"a": [dataclasses.replace(one, choices=()) for one in yes_no]})), "free answers"
    about = {"model": "m", "objective": "accuracy", "tried": ["static"], "best": "static", "deploy": PROMISED, "tune": row()}
    for constant, said in ((0.49, True), (0.3, False), (math.nan, False)):
        text = "\n".join(lines(Recommendation(**about, calibrate=row(), constant=constant)))
        assert ("Beware" in text) == said


def test_a_policy_to_deploy_names_the_float_type_that_it_was_tested_in():
    about = {"best": "static", "deploy": PROMISED, "calibrate": row(), "tested_in": "bfloat16"}
    assert "All this was tested in bfloat16: serve it in that type." in list(lines(kept(**about)))
    assert "All this was tested in bfloat16: serve or export it in that type." in list(lines(kept(**about, route="1" * 30)))
    assert "tested in" not in " ".join(lines(kept(**about | {"deploy": ""})))


def test_what_the_box_says_against_its_own_policy():
    few = kept(calibrate=row(12, better=1, worse=0))
    assert few.needed == 0, "one changed verdict says nothing of how large a gain is"
    assert "would be sure on" not in " ".join(lines(few))
    loses = " ".join(lines(kept(calibrate=dataclasses.replace(row(better=5, worse=30), difference_high=-0.1))))
    assert "It loses for sure: more questions would not change that." in loses
    assert "What could change this" not in loses
    asked = kept(calibrate=row(), available=100, promise="too few", epsilon=0.01)
    assert "change this: more questions" in " ".join(lines(asked)), "time is not what was short"
    for n, better, worse, least in ((100, 12, 8, 0.1), (100, 2, 0, 0.05), (100, 2, 6, None), (40, 0, 0, None), (400, 2, 2, 0.02)):
        told = " ".join(lines(dataclasses.replace(asked, calibrate=row(n, better, worse))))
        assert ("smaller promise" in told) == (least is not None), "advice that cannot work"
        if least is not None:
            ours = [1] * better + [0] * worse + [1] * (n - better - worse)
            base = [0] * better + [1] * worse + [1] * (n - better - worse)
            assert f"These {n} answers bear a smaller promise: the same command with --promise-epsilon {least:g}," in told
            assert find_promise(Promise(least, 0.05, n, {"mine": n}, "calibrate"), base, [ours], [29.0], 30).point == 0, "it works"
    assert "smaller promise" not in " ".join(lines(dataclasses.replace(asked, objective="speed", calibrate=row(400, 2, 2))))
    short = kept(calibrate=row(), available=100, missed={"healed": "7 minutes are too short to heal a route"}, out_of_time=True)
    assert "change this: more time and questions" in " ".join(lines(short))
    unsure = kept(promised=True, calibrate=dataclasses.replace(row(), difference_low=0.01, mcnemar_p=0.062))
    assert "its gain is not sure (McNemar p 0.062; sure is below 0.05)" in " ".join(lines(unsure))
    for available, said in ((100, False), (310, True)):
        text = " ".join(lines(kept(calibrate=row(), available=available)))
        assert ("(310 are there; more minutes, in another --out, ask more)" in text) == said
    for dealt, said in ((0.5, True), (0.49, False), (math.nan, False)):
        assert ("its own routes, dealt to other prompts, did as well (50.0 %, it 50.0 %)" in " ".join(lines(kept(dealt=dealt)))) == said
    assert "the fewest passes among those that lose at most 10 points there" in " ".join(lines(kept(objective="speed", epsilon=0.1)))
    assert "Every policy that was tried stands in runs/x/: static, codebook." in " ".join(panel(kept(), "runs/x").split())


def test_where_nothing_keeps_to_the_budget_the_best_beyond_it_is_shown():
    beyond = dataclasses.replace(row(better=40, worse=2), method="routers", mean_passes=28.5)
    text = " ".join(lines(kept(best="", tune=None, beyond=beyond)))
    assert "None of them gained right answers or saved passes on tune and kept to the budget." in text
    assert "Beyond the budget the best was routers: " in text
    assert "28.5 passes a prompt (--budget 0.95 lets it in)." in text


@pytest.mark.slow
def test_where_passes_are_limited_a_route_is_healed_within_the_time(tiny, tmp_path, monkeypatch):
    """From fit questions alone; without peft the rest goes on."""
    out, rows = tmp_path / "run", write_rows(tmp_path / "few.jsonl", questions(100))
    of = configs(budget=0.75) | {"promise": PromiseConfig("calibrate", epsilon=0.5)}
    of |= {"heal": HealConfig(steps=15, rank=2, lr=1e-2, choose_on=4, step_tokens=400, new_tokens=2)}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        found, _ = recommend(tiny, [TASK], out, of, rows, ["drllm", "retrofit"])
    assert found.missed["healed"].startswith("healing needs the package peft")
    found, result = recommend(tiny, [TASK], out, of, rows, ["drllm", "retrofit"])
    assert "healed" in found.tried
    assert Route.parse(found.routes["healed"]).n_passes == 3
    row = next(row for row in result["summary"].pooled if row.method == "healed")
    assert row.mean_passes == 3
    report, asked = (json.loads((out / "train" / "healed" / f"{name}.json").read_text()) for name in ("heal", "settings"))
    assert report["kl_after"] < report["kl_before"]
    assert (report["steps"], asked["tasks"], asked["budget"]) == (15, [TASK], 0.75)
