"""The search of whole tasks on a tiny model: what its records hold, what it refuses, what a list of routes gives."""

from __future__ import annotations

import collections
import itertools
import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from drllm import Resources, Route, RoutedModel, SearchConfig, search, train
from drllm.core.errors import ArtifactError, InputError
from drllm.core.progress import Progress, Reporter, reporting_to
from drllm.runs.provenance import read_jobs
from drllm.runs.records import read_records, read_shard, shard_indices, shard_path, write_shard
from drllm.scoring.scorer import askable, scorer_of
from drllm.searching.edits import random_routes
from drllm.searching.runner import question_seed, read_routes
from drllm.searching.tree import RouteTree
from drllm.tasks import load_task
from runs import SEARCH, TASK, TRAIN, L, Plain, acc_norm, copy_run, folder_bytes, matrix, model, questions, write_rows

pytestmark = pytest.mark.long

ROUTES = [Route.parse(text) for text in ("1121", "0111", "1121", "1212", "1111", "1100")]


@pytest.fixture(scope="module")
def tiny() -> RoutedModel:
    return model()


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain()


@pytest.fixture(scope="module")
def fit(data) -> dict:
    return {example.id: example for example in load_task(TASK, data).examples["fit"]}


def options(**changes) -> SearchConfig:
    return SearchConfig(**{**vars(SEARCH), **changes})


@pytest.mark.gpu
def test_search_records_every_evaluation(run, tiny, fit, plain):
    """Each record: the routes its tree asked for, each with the verdict of a plain computation, and what the tree chose."""
    records = {record.id: record for record in read_records(run / "search")}
    assert records.keys() == fit.keys()
    assert 20 <= len(fit) <= 40
    n_checked = collections.Counter()
    for name, record in records.items():
        assert record.routes[0] == Route.full(L)
        assert record.base_correct == bool(record.rewards[0])
        assert (record.task, record.reward, record.split) == (TASK, "loglik", "fit")
        assert (record.fingerprint, record.seed) == (tiny.fingerprint, 0)
        assert len(set(record.routes)) == len(record.routes) <= 20
        for route, reward in zip(record.routes, record.rewards, strict=True):
            found = record.verdicts[route]
            assert (found.acc, found.acc_norm) == plain.verdict(fit[name], route)
            assert reward == float(found.acc_norm)
            n_checked[found.acc_norm] += 1
        tree = RouteTree(L, SEARCH, question_seed(0, TASK, name))
        for route, reward, margin in zip(record.routes, record.rewards, record.margins, strict=True):
            assert tree.ask() == route
            tree.tell(route, bool(reward), margin)
        assert tree.ask() is None
        assert record.chosen == tree.chosen
    assert min(n_checked[True], n_checked[False]) >= 10
    assert any(record.improved for record in records.values())


@pytest.mark.slow
def test_the_control_is_the_same_for_every_question_and_judged_like_the_search(run, fit, plain):
    expected = tuple(random_routes(L, SEARCH.n_simulations, SEARCH, question_seed(0, TASK, "control")))
    assert len(set(expected)) == SEARCH.n_simulations
    for record in read_records(run / "search"):
        assert record.control_routes == expected
        assert [record.verdicts[route].correct for route in expected] == [plain.verdict(fit[record.id], route)[1] for route in expected]
    wrong = [record for record in read_records(run / "search") if not record.base_correct]
    assert {record.control_solved for record in wrong} == {True, False}


def test_base_and_kept_route_are_checked_alone_under_both_metrics_and_another_template(run, fit, plain):
    flipped = 0
    for record in read_records(run / "search"):
        routes = {Route.full(L), record.chosen} - {None}
        assert {check.route for check in record.checks} == routes
        for route in routes:
            again, other = plain.verdict(fit[record.id], route), plain.verdict(fit[record.id], route, "Q: {}\nA:")
            found = record.verified(route)
            assert list(found) == ["fp32:acc", "fp32:acc_norm", "template:acc", "template:acc_norm"]
            assert tuple(found.values()) == (*again, *other)
            flipped += other != again
    assert flipped, "another template flips some verdict: the test can fail"


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "lost"), [(TASK, 0), pytest.param(TASK, 1, marks=pytest.mark.slow), ("dart-1", 0)])
def test_a_search_of_letters_or_boxes_resumes_to_the_same_bytes(name, lost, data, tmp_path):
    """Generated answers round by the batch they are decoded in: so their groups are searched one at a time, whole."""
    sums = [
        {"question": f"What is {n} + 1?", "answer": str(n + 1) if n % 9 else "}" * (n + 1), "level": 1, "part": "train"} for n in range(30)
    ]
    asked = data if name == TASK else write_rows(tmp_path / "sums.jsonl", sums)
    config = SearchConfig(n_simulations=3, limit=8, group_size=4, reward="letter" if name == TASK else "boxed", max_new_tokens=3)
    search(model(), [name], config, tmp_path / "whole", asked)
    copy_run(tmp_path / "whole", tmp_path / "torn", "search", "verdicts")
    shard_path(tmp_path / "torn" / "search" / name, lost).unlink()
    search(model(), [name], config, tmp_path / "torn", asked)
    assert folder_bytes(tmp_path / "torn" / "search") == folder_bytes(tmp_path / "whole" / "search")
    skipped = json.loads((tmp_path / "whole" / "search" / name / "_plan.json").read_text())["skipped"]
    unread = ["a question has a gold answer that math-verify cannot read"]
    assert list(dict.fromkeys(skipped.values())) == (unread if name == "dart-1" else []), "one reason, whatever the answers are"


def test_a_question_with_one_choice_is_left_out_with_its_reason(tiny, data, tmp_path):
    """As rows of the Hub may be; a file with such a row is refused."""
    loaded = load_task(TASK, data)
    fit = [replace(one, choices=one.choices[:1], answer=0) for one in loaded.examples["fit"][:2]] + loaded.examples["fit"][2:8]
    search(tiny, [replace(loaded, examples=loaded.examples | {"fit": fit})], options(n_simulations=2), tmp_path, data)
    manifest = json.loads((tmp_path / "search" / TASK / "_plan.json").read_text())
    assert manifest["skipped"] == {one.id: "one choice only, which is always right" for one in fit[:2]}
    assert len(read_records(tmp_path / "search")) == 6


def test_control_and_checks_can_be_left_out_and_change_nothing_else(run, data, tmp_path):
    search(model(), [TASK], options(control=False, verify=False), tmp_path, data)
    with_both = {record.id: record for record in read_records(run / "search")}
    for record in read_records(tmp_path / "search"):
        both = with_both[record.id]
        assert (record.control_routes, record.checks, record.control_solved) == ((), (), None)
        assert (record.routes, record.margins, record.chosen) == (both.routes, both.margins, both.chosen)


def test_groups_are_filled_by_length_and_the_last_is_short(run):
    n, folder = len(read_records(run / "search")), run / "search" / TASK
    assert shard_indices(folder) == list(range(-(-n // 8)))
    sizes = [pq.ParquetFile(shard_path(folder, index)).metadata.num_rows for index in shard_indices(folder)]
    assert sizes == [8] * (n // 8) + ([n % 8] if n % 8 else [])


@pytest.mark.parametrize(
    "resources",
    [
        Resources(pool_size=20, cache_bytes=0),
        *(pytest.param(slow, marks=pytest.mark.slow) for slow in (Resources(), Resources(pool_size=1), Resources(cache_bytes=20_000))),
    ],
)
def test_searching_twice_writes_the_same_bytes_whatever_pool_and_memory(resources, run, tiny, data, tmp_path):
    search(tiny, [TASK], SEARCH, tmp_path, data, resources=resources)
    assert folder_bytes(tmp_path / "search") == folder_bytes(run / "search")


@pytest.mark.slow
def test_neither_pool_nor_memory_changes_a_byte_in_bfloat16(data, tmp_path):
    """Where another batch could round otherwise."""
    routed = RoutedModel.wrap(model().unwrap().bfloat16(), model().tokenizer)
    config = options(max_step_tokens=300, limit=10, n_simulations=5)  # many processors are slow in this type
    for name, resources in {"wide": Resources(), "narrow": Resources(pool_size=1, cache_bytes=10_000)}.items():
        search(routed, [TASK], config, tmp_path / name, data, resources=resources)
    assert folder_bytes(tmp_path / "wide" / "search") == folder_bytes(tmp_path / "narrow" / "search")


def test_no_more_paths_of_a_matrix_are_under_way_than_fit_in_memory(tiny, data):
    """What is under way cannot be evicted."""
    task, config, routes = (
        load_task(TASK, data),
        SearchConfig(max_step_tokens=600),
        list(map(Route, itertools.product((0, 1, 2), repeat=L))),
    )
    scorer = scorer_of(tiny, task.task, config, 1)
    questions, _ = askable(scorer, task.task, task.examples["fit"])
    scorer.score_all(questions, routes)
    a_state = 4 * tiny.hidden_size * min(question.n_tokens for question in questions)
    assert 0 < scorer.runner.peak_bytes < len(questions) * len(routes) * a_state / 4


class Notes(Reporter):
    """Keeps what is said of the units under way."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def advance(self, job: Progress) -> None:
        self.found.append(job.note)


def test_a_search_says_how_far_the_questions_under_way_are(tiny, data, tmp_path):
    config = replace(SEARCH, limit=4, group_size=4, n_simulations=5, verify=False)
    with reporting_to(notes := Notes()):
        search(tiny, [TASK], config, tmp_path, data)
    told = [re.fullmatch(r"\((\d+) of at most (\d+) routes judged on the questions under way\)", note) for note in notes.found if note]
    judged = [(int(match[1]), int(match[2])) for match in told if match]
    assert len(judged) == len(told) > 1
    assert judged == sorted(judged)
    assert {most for _, most in judged} == {4 * (1 + 5 + 5)}, "the base, five simulations, five blind routes"
    records = read_records(tmp_path / "search")
    assert judged[-1][0] == sum(len({*record.routes, *record.control_routes}) for record in records)


@pytest.mark.slow
def test_another_seed_searches_elsewhere_and_other_groups_ask_the_same(run, tiny, data, tmp_path):
    before = {record.id: record for record in read_records(run / "search")}
    search(tiny, [TASK], options(seed=1, limit=8), tmp_path / "seed", data)
    assert any(record.routes != before[record.id].routes for record in read_records(tmp_path / "seed" / "search"))
    search(tiny, [TASK], options(group_size=5), tmp_path / "groups", data)
    for record in read_records(tmp_path / "groups" / "search"):
        assert (record.routes, record.chosen) == (before[record.id].routes, before[record.id].chosen)


def test_resuming_scores_only_what_is_missing(run, tiny, data, tmp_path):
    copy_run(run, tmp_path, "search", "verdicts")
    folder = tmp_path / "search" / TASK
    shard_path(folder, 1).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with reporting_to(notes := Notes()):
        search(tiny, [TASK], SEARCH, tmp_path, data)
        assert folder_bytes(tmp_path / "search") == folder_bytes(run / "search")
        assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
        (job,) = read_jobs(tmp_path)
        assert job["tasks"][TASK]["resumed_groups"] == len(before) - 1
        n_told = len(notes.found)
        search(tiny, [TASK], SEARCH, tmp_path, data)
    assert len(notes.found) == n_told > 0, "a finished search asks nothing"


@pytest.mark.slow
def test_a_search_with_loops_records_plain_verdicts_checks_and_a_blind_baseline_and_resumes(tiny, data, fit, plain, tmp_path):
    config = options(max_loop_span=2, limit=16, n_simulations=30, early_stop=False)
    whole = search(tiny, [TASK], config, tmp_path / "whole", data)
    records = read_records(whole / "search")
    n_looped = collections.Counter()
    for record in records:
        for route, right in zip(record.routes, acc_norm(record), strict=True):
            assert right == plain.verdict(fit[record.id], route)[1], str(route)
            n_looped[right] += not route.is_in_place
        for route in record.control_routes:
            assert record.verdicts[route].correct == plain.verdict(fit[record.id], route)[1], str(route)
        for route in {record.routes[0], record.chosen} - {None}:
            found = record.verified(route)
            assert (found["fp32:acc"], found["fp32:acc_norm"]) == plain.verdict(fit[record.id], route)
    assert min(n_looped[True], n_looped[False]) >= 5
    assert any(not route.is_in_place for route in records[0].control_routes), "blind routes have loops, too"
    copy_run(whole, tmp_path / "torn", "search", "verdicts")
    shard_path(tmp_path / "torn" / "search" / TASK, 0).unlink()
    search(tiny, [TASK], config, tmp_path / "torn", data)
    assert folder_bytes(tmp_path / "torn" / "search") == folder_bytes(whole / "search")


def test_a_list_of_loops_gives_a_dense_matrix(tiny, data, fit, plain, tmp_path):
    (tmp_path / "loops.txt").write_text("# candidates\n1111\n0-2,1-3\n\n 0-2,(1-2)*0.5,3  # damped\n0-1,0-1/4\n0+1,1+1-3\n")
    routes = read_routes(tmp_path / "loops.txt")
    search(tiny, [TASK], options(limit=9), tmp_path, data, routes=routes)
    for record in matrix(tmp_path):
        assert list(map(str, record.routes)) == ["1111", "0-2,1-3", "0-2,(1-2)*0.5,3", "0-1,0-1/4", "0-1,1,1-3"]
        assert acc_norm(record) == tuple(plain.verdict(fit[record.id], route)[1] for route in routes)


def test_generated_answers_along_loops_do_not_depend_on_the_order_of_a_list(tiny, data, tmp_path):
    config = SearchConfig(limit=4, group_size=4, reward="letter", max_new_tokens=3)
    routes = [Route.parse(text, L) for text in ("1111", "0-2,1-3", "0-2,(1-2)*0.5,3", "0-1,0-1/4", "0-1,1,1-3")]
    search(tiny, [TASK], config, tmp_path / "a", data, routes=routes)
    search(tiny, [TASK], config, tmp_path / "b", data, routes=routes[::-1])
    together, reverse = (matrix(tmp_path / name) for name in "ab")
    for one, other in zip(together, reverse, strict=True):
        assert len(one.routes) == len(routes)
        assert dict(zip(one.routes, one.rewards, strict=True)) == dict(zip(other.routes, other.rewards, strict=True))


def test_a_list_of_routes_gives_a_dense_matrix(tiny, data, plain, tmp_path):
    config = options(splits=("fit", "calibrate", "tune"), limit=9)
    search(tiny, [TASK], config, tmp_path, data, routes=ROUTES)
    records = matrix(tmp_path)
    loaded = load_task(TASK, data)
    expected = {example.id: (split, example) for split in config.splits for example in loaded.select(split, 9)}
    assert {record.id: record.split for record in records} == {name: split for name, (split, _) in expected.items()}
    assert len({record.split for record in records}) == 3
    for record in records:
        assert list(map(str, record.routes)) == ["1111", "1121", "0111", "1212", "1100"]
        assert acc_norm(record) == tuple(plain.verdict(expected[record.id][1], route)[1] for route in record.routes)
        assert (record.control_routes, record.checks) == ((), ())
        right = [route for route, reward in zip(record.routes, record.rewards, strict=True) if reward]
        assert (record.chosen.n_passes if record.chosen else None) == min((route.n_passes for route in right), default=None)
    assert not (tmp_path / "search").exists()
    search(tiny, [TASK], config, tmp_path, data, routes=[Route.parse("2111"), *ROUTES[:1]])
    more = matrix(tmp_path)
    assert [list(map(str, record.routes)) for record in more] == [["1111", "1121", "0111", "1212", "1100", "2111"]] * len(records)
    assert [record.margins[:5] for record in more] == [record.margins for record in records]
    with pytest.raises(ArtifactError, match=r"config.metric = 'acc_norm', now it is 'acc'"):
        search(tiny, [TASK], replace(config, metric="acc"), tmp_path, data, routes=ROUTES[:1])


@pytest.mark.parametrize(
    ("splits", "routes", "message"),
    [
        (("tune",), None, "split 'tune' cannot be used here: only fit may be searched"),
        (("fit", "calibrate"), None, "split 'calibrate' cannot be used here"),
        (("test",), ROUTES, "split 'test' cannot be used here: choose from fit, tune, calibrate"),
        (("validation",), ROUTES, "split 'validation' cannot be used here"),
        ((), ROUTES, "no split given"),
        (("fit",), [Route.full(5)], r"got routes of other lengths: 11111 has 5 blocks, the model 4"),
    ],
)
def test_splits_and_routes_that_may_not_be_used(splits, routes, message, tiny, data, tmp_path):
    with pytest.raises(InputError, match=message):
        search(tiny, [TASK], options(splits=splits), tmp_path, data, routes=routes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1111\n1131\n", "line 2: "),
        ("1111\n111\n", "line 2: the route has 3 blocks, the ones before it have 4"),
        ("1111\n0-2,1-2\n", "line 2: the route has 3 blocks, the ones before it have 4: write 0-2,1-2/4 if it skips the last ones"),
        ("1111\n0-3,(1-2)*2\n", "line 2: got strength 2 for 1-2"),
        ("# nothing\n\n", "holds no route: write one a line"),
        ("1111\n1 1 1 1\n", "line 2: "),
        (b"\xff\xfe1111", "cannot read"),
        (None, "cannot read"),
    ],
)
def test_an_unusable_file_of_routes_is_named_with_its_line(text, message, tmp_path):
    path = tmp_path / "routes.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as refusal:
        read_routes(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n_simulations": 21}, "config.n_simulations = 20, now it is 21"), ({"limit": 3}, "config.limit = 0, now it is 3")],
)
def test_records_of_other_settings_are_not_mixed(run, tiny, data, change, message):
    before = folder_bytes(run / "search")
    with pytest.raises(ArtifactError, match=message) as refusal:
        search(tiny, [TASK], options(**change), run, data)
    assert "\n" not in str(refusal.value)
    assert folder_bytes(run / "search") == before


def test_records_of_other_weights_or_questions_are_not_mixed(run, tiny, data, tmp_path):
    with pytest.raises(ArtifactError, match="fingerprint"):
        search(model(seed=1), [TASK], SEARCH, run, data)
    copy_run(run, tmp_path, "search", "verdicts")
    rows = questions()
    fit = load_task(TASK, data).examples["fit"][0].id
    next(row for row in rows if row["id"] == fit)["choices"][1] = "17 or 18"
    edited = write_rows(tmp_path / data.name, rows)  # the same ids, another text
    manifest = tmp_path / "search" / TASK / "_plan.json"
    manifest.write_text(manifest.read_text().replace(json.dumps(str(data)), json.dumps(str(edited))))
    with pytest.raises(ArtifactError, match="questions"):
        search(tiny, [TASK], SEARCH, tmp_path, edited)
    with pytest.raises(ArtifactError, match="not those that were searched"):
        train(tiny, tmp_path, TRAIN)


@pytest.mark.parametrize("change", [{"seed": 9}, {"checks": ()}, {"control_routes": ()}], ids=lambda change: next(iter(change)))
def test_a_shard_made_with_other_settings_is_refused_under_a_plan_that_fits(change, run, tiny, data, tmp_path):
    """As one of an earlier drllm, which had no control and no checks, would be."""
    copy_run(run, tmp_path, "search", "verdicts")
    path = shard_path(tmp_path / "search" / TASK, 0)
    records = read_shard(path)
    path.unlink()
    write_shard(tmp_path / "search" / TASK, 0, [replace(record, **change) for record in records])
    shard_path(tmp_path / "search" / TASK, 1).unlink()
    with pytest.raises(ArtifactError, match=r"shard-00000.parquet holds records made with other settings, or by an earlier drllm"):
        search(tiny, [TASK], SEARCH, tmp_path, data)


def test_a_search_that_cannot_start_is_recorded_as_failed(tiny, data, tmp_path):
    with pytest.raises(InputError, match="cannot judge"):
        search(tiny, [TASK], SearchConfig(reward="boxed"), tmp_path, data)
    (job,) = read_jobs(tmp_path)
    assert (job["job"], job["status"]) == ("search", "failed")
