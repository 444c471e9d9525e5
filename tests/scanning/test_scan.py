"""A scan of a tiny model from end to end: what it writes, that it resumes to the same bytes, and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import families
import runs
from byte_tokens import byte_tokenizer
from drllm import ArtifactError, Resources, Route, RoutedModel, ScanConfig, SearchConfig, report, scan, search
from drllm.cli.main import main
from drllm.core.errors import DrllmError, InputError
from drllm.core.progress import Progress, Reporter, reporting_to
from drllm.reporting.scan import render
from drllm.runs.layout import RunFolder
from drllm.runs.merge import rows_of
from drllm.runs.provenance import read_jobs
from drllm.runs.scan_result import CLAIM_LEAD, CLAIMED, ELSEWHERE, LEAD, RANDOM, WINNER, Difference, Said, read_map, read_scan
from drllm.scanning.claims import claim, read_claims
from drllm.scanning.measure import by_chance
from drllm.scanning.questions import choose, least_sure_first
from drllm.scanning.spans import candidates
from drllm.searching.cost import block_runs
from drllm.searching.runner import read_routes
from drllm.tasks import load_task
from worker_processes import replicas

pytestmark = pytest.mark.long

SMALL = ScanConfig(questions=16, first_questions=4, fresh=10, winners=2, max_step_tokens=600, n_resamples=200)
CLAIM = Route.full(runs.L).loop(1, 2)


@pytest.fixture(scope="module")
def scanned(data, tmp_path_factory) -> Path:
    """A run folder with a finished scan."""
    out = tmp_path_factory.mktemp("scan")
    scan(runs.model(), [runs.TASK], SMALL, out, data, claimed={CLAIM: Said()})
    return out


def answers_of(run: Path) -> dict[str, dict[Route, dict]]:
    """By question id and route, what the run's store holds."""
    found: dict[str, dict[Route, dict]] = {}
    for row in rows_of(run).to_pylist():
        found.setdefault(row["id"], {})[Route.parse(row["route"], runs.L)] = row
    return found


def test_rounds_ask_all_then_the_better_ones_on_new_questions(scanned, data):
    raced, fresh = ([example.id for _, example in part] for part in choose(runs.model(), {runs.TASK: load_task(runs.TASK, data)}, SMALL))
    answers, cells = answers_of(scanned), read_map(RunFolder(scanned).scan)
    full, pool = Route.full(runs.L), [Route.parse(cell.route, runs.L) for cell in cells]
    assert {row["split"] for found in answers.values() for row in found.values()} == {"fit"}
    assert answers.keys() == {*raced, *fresh}
    assert (len(raced), len(fresh)) == (16, 10)
    order = sorted(raced, key=lambda name: abs(answers[name][full]["margin_acc_norm"]))  # those the base is least sure of come first
    assert all({full, *pool} <= answers[name].keys() for name in order[:4])
    for cell, route in zip(cells, pool, strict=True):
        assert all(route in answers[name] for name in order[: cell.questions])
    assert [sum(cell.questions >= n for cell in cells) for n in (4, 8, 16)] == [29, 15, 9]
    winners = {Route.parse(row.route, runs.L) for row in read_scan(RunFolder(scanned).scan).in_group(WINNER)}
    assert all(winners < answers[name].keys() for name in fresh)
    assert all(len(answers[name]) < 20 for name in fresh)


def test_the_result_is_what_the_store_says(scanned, data):
    folder, answers, full = RunFolder(scanned).scan, answers_of(scanned), Route.full(runs.L)
    raced, fresh = ([example.id for _, example in part] for part in choose(runs.model(), {runs.TASK: load_task(runs.TASK, data)}, SMALL))
    result, cells = read_scan(folder), read_map(folder)
    assert len(cells) == 29
    assert sorted({cell.questions for cell in cells}) == result.sizes == [4, 8, 16]
    for row in result.in_group(WINNER):
        route = Route.parse(row.route, runs.L)
        for names, measured in ((raced, row.raced), (fresh, row.fresh)):
            gains = [float(answers[name][route]["acc_norm"]) - answers[name][full]["acc_norm"] for name in names]
            assert measured is not None
            assert measured.mean == pytest.approx(np.mean(gains))
            assert measured.low <= measured.mean <= measured.high
        (cell,) = [cell for cell in cells if cell.route == row.route]
        assert row.raced is not None
        assert cell.accuracy == pytest.approx(row.raced.mean)
    shape = [(row.kind, row.last - row.first) for row in result.in_group(WINNER)]
    assert sorted((row.kind, row.last - row.first) for row in result.in_group(RANDOM)) == sorted(shape)
    assert [row.group for row in result.means] == [WINNER, RANDOM, LEAD, ELSEWHERE, CLAIM_LEAD]
    (claimed,) = result.in_group("claimed")
    assert (claimed.kind, claimed.first, claimed.last, claimed.raced) == ("loop", 1, 2, None)


def test_the_best_are_the_best_of_the_map_and_can_be_searched(scanned):
    folder = RunFolder(scanned).scan
    last = sorted((cell for cell in read_map(folder) if cell.questions == 16), key=lambda cell: -cell.score)
    assert [str(route) for route in read_routes(folder.best)] == [cell.route for cell in last]
    winners = read_scan(folder).in_group(WINNER)
    assert [row.route for row in winners[:2]] == [cell.route for cell in last[:2]]
    assert {row.kind for row in winners} == {"loop", "damped", "skip"}, "the best of each kind besides"
    best = {next(cell.route for cell in last if cell.kind == kind) for kind in ("loop", "damped", "skip")}
    assert {row.route for row in winners[2:]} == best - {cell.route for cell in last[:2]}


def test_the_cost_is_the_nodes_of_the_tries(scanned):
    folder = RunFolder(scanned).scan
    cost, cells, full = read_scan(folder).cost, read_map(folder), Route.full(runs.L)
    raced = [[full, *(Route.parse(cell.route, runs.L) for cell in cells if cell.questions >= n)] for n in (4, 8, 16)]
    forwards = [block_runs(routes) / runs.L for routes in raced]
    assert cost.race == pytest.approx(16 + sum(n * part for n, part in zip((4, 4, 8), forwards, strict=True)))
    whole = [full, *(one.route for one in candidates(runs.L, SMALL.kinds, SMALL.strength))]
    assert cost.full == pytest.approx(16 * block_runs(whole) / runs.L)


def test_the_same_call_finds_everything_done_and_another_call_says_the_same(scanned, data, tmp_path):
    before = runs.folder_bytes(scanned / "scan")
    scan(runs.model(), [runs.TASK], SMALL, scanned, data, claimed={CLAIM: Said()})
    assert changed(before, runs.folder_bytes(scanned / "scan")) == []
    scan(runs.model(), [runs.TASK], SMALL, tmp_path, data, claimed={CLAIM: Said()}, resources=Resources(pool_size=4, cache_bytes=0))
    assert changed(before, runs.folder_bytes(tmp_path / "scan")) == []


def changed(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Files that differ, but for those that tell of times."""
    names = {name for name in one.keys() | other.keys() if not name.endswith("run.json")}
    return sorted(name for name in names if one.get(name) != other.get(name))


@pytest.mark.parametrize("last", [4, *(pytest.param(last, marks=pytest.mark.slow) for last in (2, 6, 8))])
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(last, scanned, data, tmp_path):
    """Killed when it has written so many files: in the race, between its rounds, and while measuring again."""
    status = _killed_after(last, tmp_path, data)
    assert status == signal.SIGKILL
    assert not RunFolder(tmp_path).scan.result.is_file()
    scan(runs.model(), [runs.TASK], SMALL, tmp_path, data, claimed={CLAIM: Said()})
    for part in ("scan", "verdicts"):
        assert changed(runs.folder_bytes(scanned / part), runs.folder_bytes(tmp_path / part)) == []


def _killed_after(last: int, out: Path, data: Path) -> int:
    """Scan in a process that kills itself when it has written so many files; the signal that ended it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) * -1
    written, replaced = [], Path.replace

    def counting(self: Path, target: Path) -> Path:
        found = replaced(self, target)
        written.append(target)
        if len(written) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Path.replace = counting  # type: ignore[method-assign]
    scan(runs.model(), [runs.TASK], SMALL, out, data, claimed={CLAIM: Said()})
    os._exit(0)


def test_a_scan_with_other_settings_is_refused_and_other_claims_are_added(scanned, data, tmp_path):
    with pytest.raises(ArtifactError, match="was scanned with winners = 2, now it is 3: use another --out, or the same settings"):
        scan(runs.model(), [runs.TASK], replace(SMALL, winners=3), scanned, data)
    out = shutil.copytree(scanned, tmp_path / "copy")
    result = scan(runs.model(), [runs.TASK], SMALL, out, data, claimed={Route.parse("1101"): Said()})
    assert [row.route for row in result.in_group("claimed")] == [str(CLAIM), "1101"]
    assert {row.route for row in result.means if row.group == ELSEWHERE} == {str(CLAIM), "1101"}
    again = scan(runs.model(), [runs.TASK], SMALL, out, data)
    assert again.rows == result.rows, "claims of earlier calls stay"
    RunFolder(out).scan.settings.unlink()
    with pytest.raises(ArtifactError, match=r"holds a scan without settings\.json, which says of what: use another --out"):
        scan(runs.model(), [runs.TASK], SMALL, out, data)


def test_without_a_race_only_the_claim_is_measured_beside_the_same_change_elsewhere(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "drllm")
    config = replace(SMALL, questions=0)
    result = scan(runs.model(), [runs.TASK], config, tmp_path, data, claimed={CLAIM: Said()})
    assert [(row.group, row.kind, row.last - row.first) for row in result.rows] == [("claimed", "loop", 1)]
    assert [row.group for row in result.means] == [ELSEWHERE, CLAIM_LEAD]
    assert all(row.raced is None and row.fresh is not None and row.fresh.n == 10 for row in (*result.rows, *result.means))
    assert (result.sizes, result.cost.race, read_map(RunFolder(tmp_path).scan)) == ([], 0, [])
    (before,) = [line for line in caplog.messages if " as claimed and at 2 other places, on 10 questions" in line]
    (after,) = [line for line in caplog.messages if line.startswith("scan: in all")]
    assert before.split()[2] == after.split()[3] == f"{result.cost.fresh:,.0f}"
    text = (report(tmp_path).parent / "report.md").read_text(encoding="utf-8")
    assert "Against the same change at other blocks, drawn blindly, it has" in text
    assert "winners" not in text.partition("## Scan")[2].partition("## ")[0]
    ours = np.array([[float(one[route]["acc_norm"]) for route in claim(CLAIM, SMALL).routes] for one in answers_of(tmp_path).values()])
    lead = result.mean_of(CLAIM_LEAD, str(CLAIM))
    assert lead is not None
    assert lead.fresh is not None
    assert lead.fresh.mean == pytest.approx((ours[:, 0] - ours[:, 1:].mean(1)).mean()), "question by question"


def test_a_claim_of_any_form_stands_beside_the_same_change_elsewhere(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "drllm")
    claims = [Route.full(runs.L).loop(1, 2, 0.3), Route.full(runs.L).loop(1, 1, times=3), Route.full(runs.L).loop(0, 3)]
    result = scan(runs.model(), [runs.TASK], replace(SMALL, questions=0), tmp_path, data, claimed=dict.fromkeys(claims, Said()))
    others = [claim(route, SMALL).others for route in claims]
    assert [len(found) for found in others] == [2, 3, 0]
    assert [{route.n_passes for route in found} for found in others] == [{6}, {6}, set()]
    assert {span.strength for route in others[0] for span in route.spans} == {1, 0.3}
    assert [row.route for row in result.means if row.group == ELSEWHERE] == [str(route) for route in claims[:2]]
    assert "scan: 0-3,0-3 fits at no other blocks: nothing random stands beside it" in caplog.messages


def test_chance_is_of_no_use_where_the_best_is_the_same_on_every_question():
    """Two candidates, one always right where the base is wrong: whichever sign a question has, it counts as much for as against."""
    verdicts = np.array([[False, True, False]] * 200)
    found = by_chance(verdicts, np.full(verdicts.shape, np.nan), ["loop", "loop"], replace(SMALL, winners=1, n_resamples=2000))
    # The best of two: the always-right one where coins favour it, the base's like where they do not.
    assert found.mean == pytest.approx(0.5 * np.sqrt(2 / np.pi / 200), rel=0.1)
    assert found.low == 0


def test_generated_answers_race_by_their_verdicts_alone(data, tmp_path):
    routed = RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=512), byte_tokenizer())
    config = ScanConfig(kinds=("skip",), questions=4, first_questions=2, fresh=2, winners=1, reward="letter", n_resamples=100)
    result = scan(routed, [runs.TASK], config, tmp_path, data)
    assert result.sizes == [2, 4]
    assert {cell.kind for cell in read_map(RunFolder(tmp_path).scan)} == {"skip"}


def test_the_least_sure_questions_come_first_and_tasks_take_turns():
    margins = np.array([3.0, -0.5, np.nan, 1.0, -9.0, 0.1, np.nan])
    tasks = ["a", "a", "a", "a", "b", "b", "b"]
    assert least_sure_first(tasks, margins) == [1, 5, 3, 4, 0, 6, 2]
    assert least_sure_first(tasks, np.full(7, np.nan)) == [0, 4, 1, 5, 2, 6, 3]


def test_tasks_share_the_questions_evenly_and_what_another_task_raced_on_is_not_new(data, tmp_path):
    other = runs.write_rows(tmp_path / "more.jsonl", [row | {"question": "more " + row["question"]} for row in runs.questions(60)])
    loaded = {"arc_easy": load_task("arc_easy", data), "openbookqa": load_task("openbookqa", other)}
    raced, fresh = choose(runs.model(), loaded, replace(SMALL, questions=9, fresh=5))
    assert [task for task, _ in raced] == ["arc_easy", "openbookqa"] * 4 + ["arc_easy"]
    assert [task for task, _ in fresh].count("arc_easy") == 3
    assert not {example.id for task, example in raced if task == "arc_easy"} & {example.id for task, example in fresh if task == "arc_easy"}

    loaded = {"arc_easy": load_task("arc_easy", data), "openbookqa": load_task("openbookqa", data)}
    raced, fresh = choose(runs.model(), loaded, replace(SMALL, questions=8, fresh=8))
    assert not {example.question for _, example in raced} & {example.question for _, example in fresh}


def test_what_a_reader_of_the_map_should_know_of_the_family_is_noted(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "drllm")
    mixed, scaled = (
        RoutedModel.wrap(families.build(name, vocab_size=300, max_position_embeddings=256), byte_tokenizer())
        for name in ("mixtral", "doge")
    )
    config = replace(SMALL, kinds=("loop", "skip"), questions=4, first_questions=2, fresh=2, winners=1)
    assert scan(mixed, [runs.TASK], config, tmp_path / "mixed", data).in_group(WINNER)
    assert sum("a mixture of experts rounds by what else is in a step" in line for line in caplog.messages) == 1
    assert "Note: a mixture of experts rounds" in (report(tmp_path / "mixed").parent / "report.md").read_text(encoding="utf-8")
    looped = {Route.full(scaled.n_layers).loop(0, 1): Said()}
    result = scan(scaled, [runs.TASK], replace(SMALL, questions=0, fresh=2), tmp_path / "scaled", data, claimed=looped)
    assert "blocks of doge scale the states they are given, so a loop scales them once more" in result.notes


@pytest.mark.slow
def test_two_workers_one_of_them_killed_write_the_bytes_of_one_process(data, tmp_path):
    """Two tasks, which the workers take from one queue."""
    runs.model().unwrap().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    routed = RoutedModel.wrap(str(tmp_path / "model"), dtype=torch.float32)
    lines, both = data.read_text().splitlines(), tmp_path / "both"
    for task, half in ((runs.TASK, lines[::2]), ("arc_challenge", lines[1::2])):
        (both / task).mkdir(parents=True)
        (both / task / "train.jsonl").write_text("\n".join(half) + "\n")
    tasks, data = [runs.TASK, "arc_challenge"], both
    scan(routed, tasks, SMALL, tmp_path / "one", data)
    killed = threading.Thread(target=_kill_a_worker, args=(tmp_path / "two",))
    killed.start()
    scan(routed, tasks, SMALL, tmp_path / "two", data, resources=Resources(executor="processes", workers=2))
    assert not killed.is_alive(), "a worker was killed amid the scan"
    for part in ("scan", "verdicts"):
        assert changed(runs.folder_bytes(tmp_path / "one" / part), runs.folder_bytes(tmp_path / "two" / part)) == []


def _kill_a_worker(folder: Path) -> None:
    """One of the two, when the first shard is written."""
    while len(found := replicas()) < 2 or not list(folder.rglob("*.parquet")):
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)


def test_fewer_questions_than_the_race_needs_is_one_line_and_its_advice_works(data, tmp_path):
    with pytest.raises(InputError, match=r"arc_easy has \d+ questions in split fit that this model can be asked, the race needs 500"):
        scan(runs.model(), [runs.TASK], replace(SMALL, questions=500), tmp_path, data)
    fewer = replace(SMALL, questions=4, kinds=("skip",), fresh=0)
    assert scan(runs.model(), [runs.TASK], fewer, tmp_path, data).sizes == [4]
    n_fit = len(load_task(runs.TASK, data).examples["fit"])
    with pytest.raises(InputError, match="no question of split fit is left to measure the winners again"):
        scan(runs.model(), [runs.TASK], replace(SMALL, questions=n_fit), tmp_path / "b", data)


def test_routes_of_another_model_and_empty_jobs_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="route 11111 leads through 5 blocks, the model has 4"):
        scan(runs.model(), [runs.TASK], SMALL, tmp_path, data, claimed={Route.full(5): Said()})
    with pytest.raises(InputError, match="--questions 0 races nothing"):
        scan(runs.model(), [runs.TASK], replace(SMALL, questions=0), tmp_path, data)
    scan(runs.model(), [runs.TASK], replace(SMALL, questions=4, fresh=0, kinds=("skip",)), tmp_path / "one", data)
    other = RoutedModel.wrap(families.build("gpt2", vocab_size=300), byte_tokenizer())
    with pytest.raises(ArtifactError, match=r"was scanned with model = '\w+', now it is '\w+': use another --out"):
        scan(other, [runs.TASK], replace(SMALL, questions=4, fresh=0, kinds=("skip",)), tmp_path / "one", data)
    with pytest.raises(InputError, match="--claimed needs questions to measure the route on"):
        scan(runs.model(), [runs.TASK], replace(SMALL, fresh=0), tmp_path, data, claimed={CLAIM: Said()})


def test_the_command_refuses_in_one_line_before_a_model_loads(capsys, tmp_path):
    common = ["scan", "--model", "none/such", "--tasks", "arc_easy", "--out", str(tmp_path)]
    for extra, message in (
        (["--claimed", "0-3,9x"], "cannot read route"),
        (["--questions", "0"], "--questions 0 races nothing"),
        (["--kinds", "loop,lop"], "--kinds holds 'lop'"),
        (["--strength", "2"], "--strength is 2.0"),
        (["--strength", "0"], "--strength is 0.0"),
        (["--questions", "4", "--first-questions", "8"], "fewer than the 8 of the first round"),
        (["--winner", "2"], "unknown flag --winner; did you mean '--winners'?"),
    ):
        assert main([*common, *extra]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_claims_as_people_write_them(tmp_path):
    file = tmp_path / "claims.jsonl"
    lines = [{"claim": "blocks 1 to 2 twice", "gain": 3, "source": "https://example.org/card"}, {"claim": "1-2 skipped"}]
    full = Route.full(4)
    expected = {full.loop(1, 2): Said(3, "https://example.org/card"), full.edit(1, 0, 0): Said()}
    assert read_claims([str(runs.write_rows(file, lines))], 4) == expected
    assert read_claims(["3 twice", "0-2,1-3"], 4) == {full.loop(3, 3): Said(), CLAIM: Said()}


@pytest.mark.parametrize(
    ("claim", "content", "message"),
    [
        ("2-4 twice", None, "'2-4 twice' names blocks 2 to 4, the model has 4, 0 to 3"),
        ("2-1 skipped", None, "names blocks 2 to 1"),
        ("1-2 thrice", None, "cannot read route '1-2 thrice'"),
        ("none.jsonl", None, "none.jsonl is not readable JSON lines .*: a line has claim"),
        ("bad.jsonl", b"- claim: 1 twice", "bad.jsonl is not readable JSON lines, line 1"),
        ("bad.jsonl", b"\xff", "bad.jsonl is not readable JSON lines"),
        ("bad.jsonl", b'{"route": "1211"}', "line 1: got {'route': '1211'}, expected claim"),
        ("bad.jsonl", b'{"claim": "1 twice", "gain": "much"}', r"'gain': 'much'}, expected claim .*gain \(points, a number\)"),
    ],
)
def test_claims_that_cannot_be_read_are_one_line(claim, content, message, tmp_path):
    if content is not None:
        (tmp_path / claim).write_bytes(content)
    with pytest.raises(DrllmError, match=message) as error:
        read_claims([str(tmp_path / claim) if claim.endswith("jsonl") else claim], 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        (20, "The claimed +20 points lie above that interval: the claim does not hold on these questions."),
        (-5, "The claimed -5 points lie below that interval: it does better than claimed on these questions."),
        (8, "The claimed +8 points lie inside that interval, and so does no change at all: about 204 questions would tell them apart."),
        (None, "Measured: no sure difference, +4.0 (-4.0 to +12.0) points on 100 questions."),
    ],
)
def test_the_verdict_on_a_claimed_gain(gain, says, scanned):
    fresh = Difference(n=100, mean=0.04, low=-0.04, high=0.12, better=6, worse=2, p=0.3)
    result = read_scan(RunFolder(scanned).scan)
    (row,) = result.in_group(CLAIMED)
    told = render(result.changed(rows=[row.changed(gain=gain, source="a card", fresh=fresh)]))
    assert says in told
    assert "Claimed: loop 1-2, route 0-2,1-3 (a card)." in told


def test_an_audit_is_a_page_of_its_own_and_what_was_said_stays(data, tmp_path):
    config = replace(SMALL, questions=0)
    scan(runs.model(), [runs.TASK], config, tmp_path, data, claimed={CLAIM: Said(30, "a card")})
    result = scan(runs.model(), [runs.TASK], config, tmp_path, data, claimed={Route.parse("1101"): Said()})
    assert [(row.gain, row.source) for row in result.in_group(CLAIMED)] == [(30, "a card"), (None, "")]
    text = (report(tmp_path).parent / "report.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Audit of a model in memory", "## Audit", "## Provenance"]
    assert result.fingerprint in text
    assert text.index("The claimed +30 points") < text.index("loop 1-2: the same change at other blocks, mean")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The tiny model as a folder, for commands."""
    folder = tmp_path_factory.mktemp("model")
    runs.model().unwrap().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--questions", "8", "--first-questions", "4", "--fresh", "4", "--winners", "1", "--max-step-tokens", "600"]
    return ["scan", "--model", str(model), "--tasks", "arc_easy", "--data", str(data), "--out", str(out), "--kinds", "skip", *sizes, *more]


def test_a_model_that_cannot_be_routed_and_a_span_outside_of_it_are_one_line(saved, data, tmp_path, capsys):
    families.build(min(families.REFUSED)).save_pretrained(tmp_path / "refused")
    byte_tokenizer().save_pretrained(tmp_path / "refused")
    for model, more, message in (
        (tmp_path / "refused", (), "drllm: error: "),
        (saved, ("--claimed", "0-3,2-9"), "got block 9 in a path through 4 blocks, 0 to 3"),
    ):
        capsys.readouterr()
        assert main(command(model, data, tmp_path / "out", *more)) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert message in line
        assert not (tmp_path / "out" / "scan").exists()


def test_a_dry_run_says_what_the_scan_will_cost_and_leaves_nothing(saved, data, tmp_path, capsys):
    typed = command(saved, data, tmp_path / "out")
    assert main([*typed, "--dry-run"]) == 0
    header, *stages, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["plain", "forwards", "minutes", "stage"], "hours where it is an hour or more"
    assert not (tmp_path / "out").exists()
    told = [float(line.split()[0].replace(",", "")) for line in (*stages, total)]
    assert "the race: candidates on questions by round: 9 on 4, 5 on 8" in stages[0]
    assert "winners and random spans on 4 new questions" in stages[1]
    assert sum(told[:-1]) == pytest.approx(told[-1], abs=2)
    assert main(typed) == 0
    cost = json.loads((tmp_path / "out" / "scan" / "scan.json").read_text("utf-8"))["cost"]
    assert told[0] == pytest.approx(cost["race"], rel=0.1)
    assert told[1] == pytest.approx(cost["random"] + cost["fresh"], rel=0.5)
    assert main([*typed, "--questions", "0", "--claimed", "0-2,1-3", "--dry-run"]) == 0
    assert "0-2,1-3 as claimed and at 2 other places, on 4 questions" in capsys.readouterr().out
    assert main([*typed, "--questions", "0", "--claimed", "0-1,1-2"]) == 2
    assert "route '0-1,1-2' ends before the last of 4 blocks: write 0-1,1-2/4 if it skips the last ones" in capsys.readouterr().err


class Interrupting(Reporter):
    """Ctrl-C when the second job begins: the first round."""

    n_begun = 0

    def start(self, job: Progress) -> None:
        self.n_begun += 1
        if self.n_begun == 2:
            raise KeyboardInterrupt


def test_interrupted_it_goes_on(data, tmp_path):
    small = replace(SMALL, kinds=("skip",), questions=8, fresh=4, winners=1)
    with reporting_to(Interrupting()), pytest.raises(KeyboardInterrupt):
        scan(runs.model(), [runs.TASK], small, tmp_path / "a", data)
    assert read_jobs(tmp_path / "a")[-1]["status"] == "interrupted"
    with pytest.raises(ArtifactError, match="no search, training or evaluation, and no finished scan"):
        report(tmp_path / "a")
    search(runs.model(), [runs.TASK], SearchConfig(n_simulations=0, limit=2, verify=False), tmp_path / "a", data)
    assert "The scan is unfinished: run the same `drllm scan` again" in (report(tmp_path / "a").parent / "report.md").read_text("utf-8")
    for name in "ab":
        scan(runs.model(), [runs.TASK], small, tmp_path / name, data)
    assert changed(runs.folder_bytes(tmp_path / "a" / "scan"), runs.folder_bytes(tmp_path / "b" / "scan")) == []


def test_the_report_shows_the_maps_the_comparison_and_what_chance_alone_would_show(scanned):
    """The mean over all coins lies above 0, since the best are named."""
    chance = read_scan(RunFolder(scanned).scan).chance
    assert chance is not None
    assert chance.n == 16
    assert chance.low < chance.mean < chance.high
    page = report(scanned)
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert all(part in text for part in ("## Scan", "mean of the random spans", "plain forwards", "turned by a coin"))
    for kind in ("loop", "damped", "skip"):
        assert (page.parent / f"scan_{kind}.png").stat().st_size > 10_000
        rows = (page.parent / f"scan_{kind}.csv").read_text(encoding="utf-8").splitlines()
        assert rows[0] == "kind,first,last,route,questions,score,accuracy"
        assert len(rows) == 1 + (9 if kind == "skip" else 10)
