"""What the comparison of methods asks, pairs and prints, on made verdicts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from drllm import search
from drllm.core.route import Route
from drllm.methods.matrix import Matrix
from drllm.reporting.drawing import draw, write_charts
from drllm.scoring.asking import asking_here
from drllm.tasks import Example, LoadedTask, get_task
from drllm_research.comparison import asked as asked_questions
from drllm_research.comparison import pages, table
from drllm_research.comparison.__main__ import best_longer, fit, read_before
from drllm_research.comparison.candidates import combine
from drllm_research.comparison.rows import ROWS, SETTINGS, wanted_rows
from drllm_research.comparison.stored import Results
from drllm_research.comparison.told import routes_by_task
from runs import SEARCH, model, questions, write_rows

SPLITS = {"fit": 5, "tune": 6, "calibrate": 3, "test": 4}


def loaded(name: str = "arc_easy", **counts: int) -> LoadedTask:
    examples = {
        split: [Example(f"{split}{n}", f"{split} {n}?", ("no", "yes"), int(n % 3 == 0), name) for n in range(count)]
        for split, count in (SPLITS | counts).items()
    }
    return LoadedTask(get_task(name), "nowhere", examples, {})


def ids(examples) -> list[str]:
    return [example.id for example in examples]


def test_another_policy_does_not_read_test_again():
    assert not read_before(None, "mine", ("codebook", 0))
    assert read_before("mine", "mine", ("codebook", 0))
    with pytest.raises(SystemExit, match=r"codebook\.0 has test answers of another policy"):
        read_before("mine", "a better one", ("codebook", 0))


def test_tune_asks_the_matrix_and_test_what_nothing_was_chosen_by():
    seen = {"tune0", "tune3"}
    assert ids(asked_questions.select(loaded(), "tune", seen)) == ["tune0", "tune3"]
    assert ids(asked_questions.select(loaded(), "tune", set())) == [f"tune{n}" for n in range(6)]
    assert ids(asked_questions.select(loaded(), "test", seen)) == [f"test{n}" for n in range(4)]
    assert ids(asked_questions.select(loaded(test=0), "test", seen)) == ["tune1", "tune2", "tune4", "tune5"]
    assert ids(asked_questions.select(loaded(), "calibrate", seen, 2)) == ["calibrate0", "calibrate1"]
    unlearned = ids(asked_questions.select(loaded("sciq", test=0), "test", set()))
    assert unlearned == [f"fit{n}" for n in range(5)] + [f"calibrate{n}" for n in range(3)]
    assert len(asked_questions.select(loaded("boolq", test=0, tune=900), "test", seen)) == 400
    without = ids(asked_questions.select(loaded("mmlu", test=0), "test", set(), scanned={"fit1", "calibrate0", "tune0"}))
    assert without == ["fit0", "fit2", "fit3", "fit4", "calibrate1", "calibrate2"]


def test_a_limit_ends_test_questions_early():
    seen = {"tune0"}
    assert ids(asked_questions.select(loaded(), "test", seen, limit=3)) == ["test0", "test1", "test2"]
    assert ids(asked_questions.select(loaded(test=0), "test", seen, limit=2)) == ["tune1", "tune2"]
    assert ids(asked_questions.select(loaded(), "tune", seen, limit=3)) == ["tune0"]
    assert len(asked_questions.select(loaded(test=900), "test", seen)) == 900
    assert len(asked_questions.select(loaded(test=900), "test", seen, limit=asked_questions.LIMIT)) == asked_questions.LIMIT


def test_answers_come_from_the_store_of_the_run(tmp_path):
    (tmp_path / "piqa").mkdir()
    write_rows(tmp_path / "piqa" / "valid.jsonl", questions(8))
    bench = asking_here(model(), tmp_path / "run")
    answered = {}
    for reward, n_shards in (("letter", 1), ("auto", 2), ("auto", 2)):
        of = SimpleNamespace(apart=[], asked=["piqa"], reward=reward)
        asked = asked_questions.SettingQuestions(bench, of, "test", str(tmp_path))
        full, short = [[route] * len(asked.ids) for route in (Route.full(4), Route.parse("1011"))]
        answered[reward] = asked.answers({"base": full} if reward == "letter" else {"base": full, "short": short})
        assert len(list((tmp_path / "run" / "verdicts").glob("*.parquet"))) == n_shards
    assert {len(right) for right in answered["auto"].values()} == {len(asked.ids)}
    (ask,) = asked.asks
    wanted = ask.scorer.score_all(ask.questions, [full[0], short[0]])
    assert answered["auto"] == {name: [one[place].correct for one in wanted] for place, name in enumerate(("base", "short"))}


def test_other_tune_questions_than_those_of_the_matrix_are_refused(tmp_path):
    out, places = tmp_path / "run", {name: tmp_path / name for name in ("then", "other", "fewer")}
    rows = [row | {"part": "train"} for row in questions(24)]
    changed = [row | {"choices": [f"{choice} pears" for choice in row["choices"]]} for row in rows]
    for name, given in {"then": rows, "other": changed, "fewer": rows[:16]}.items():
        (places[name] / "piqa").mkdir(parents=True)
        write_rows(places[name] / "piqa" / "train.jsonl", given)
    tiny = model()
    search(tiny, ["piqa"], replace(SEARCH, splits=("fit", "tune")), out, str(places["then"]), routes=[Route.parse("1011")])
    of = SimpleNamespace(apart=[], asked=["piqa"], reward="auto")
    assert asked_questions.SettingQuestions(asking_here(tiny, out), of, "tune", str(places["then"])).ids
    for name, problem in (("other", "made of another question"), ("fewer", r"lacks \d+ tune questions of the matrix")):
        with pytest.raises(SystemExit, match=problem):
            asked_questions.SettingQuestions(asking_here(tiny, out), of, "tune", str(places[name]))


def test_rows_of_a_setting():
    narrow = [name for name, _, _ in wanted_rows("piqa", "", 3)]
    assert narrow.count("codebook") == 1
    assert {"static", "static_tuned", "codebook", "polar"} <= set(narrow)
    assert "paper" not in narrow
    mixed, whole, outside = ({name for name, _, _ in wanted_rows(setting, "", 1)} for setting in ("mixed", "in-domain", "ood"))
    letters, kinds = ({name for name, _, _ in wanted_rows(setting, "", 1)} for setting in ("letters", "kinds"))
    assert whole == outside
    assert whole | letters == set(ROWS)
    assert whole & letters == {name for name, row in ROWS.items() if not row.only or {"in-domain", "letters"} <= {*row.only}}
    assert whole - mixed == {name for name, row in ROWS.items() if "in-domain" in row.only}
    assert kinds - mixed == {name for name, row in ROWS.items() if "kinds" in row.only}
    assert {"static_tuned@0.75", "codebook@0.85", "codebook_by_task@0.95"} <= kinds - whole, "the frontier's"
    assert [seed for _, _, seed in wanted_rows("in-domain", "codebook", 3)] == [0, 1, 2]
    for setting, asked in {"in-domain": 64, "letters": 30}.items():
        ((_, row, _),) = wanted_rows(setting, "tale@0.9", 1)
        assert (row.options, row.fit) == ({"budget": 0.9, "questions": asked}, asked)


def test_a_row_that_learns_from_a_search_names_what_is_missing(tmp_path):
    asked = SimpleNamespace(methods="paper", seeds=1, run=tmp_path, searched=None, out=tmp_path)
    with pytest.raises(SystemExit, match="paper learns from a tree search: give its run folder, with --searched"):
        fit(None, asked, "in-domain")


def verdicts(right: list[int], tasks: list[str]) -> table.Verdicts:
    return {
        "correct": np.array(right, dtype=float),
        "passes": np.full(len(right), 30.0),
        "task": np.array(tasks),
        "id": np.array([f"q{n}" for n in range(len(right))]),
    }


def test_the_best_longer_route_is_of_those_that_spend_so_much():
    routes = [Route.parse(text, 4) for text in ("1111", "1110", "1112", "1122", "0-3,2-3,2-3")]
    chances = np.array([0.5, 1.0, 0.4, 0.9, 0.6])  # the best is shorter than the base
    right = (np.arange(40)[:, None] < 40 * chances).astype(float)
    part = SimpleNamespace(
        routes=routes, passes=lambda: np.array([route.n_passes for route in routes]), mixed_gains=lambda w: right - right[:, :1]
    )
    data = SimpleNamespace(fit_and_tune=lambda: (part, part))
    assert best_longer(data, 1.0) == routes[3]
    assert best_longer(data, 1.25) == routes[3]
    assert best_longer(data, 2.0) == routes[4]
    with pytest.raises(SystemExit, match=r"no route of the matrix spends 2\.5 of the base's passes"):
        best_longer(data, 2.5)


def test_the_mean_over_tasks_weighs_tasks_alike():
    tasks = ["a"] * 8 + ["b"] * 2
    ours, base = verdicts([1] * 8 + [0, 0], tasks), verdicts([0] * 8 + [1, 1], tasks)
    assert table.compared(ours, base).points == pytest.approx(60)
    assert str(table.compared(ours, base, even=True)) == "+0.0 (+0.0 to +0.0)"
    with pytest.raises(ValueError, match="different questions"):
        table.gain(ours, base | {"id": base["id"][::-1]})


def test_contrasts_average_seeds_and_count_what_knowing_the_task_gains():
    tasks = ["arc_easy"] * 10 + ["boolq"] * 10
    nothing, first = [0] * 20, [1] * 10 + [0] * 10
    found = {
        "base": [verdicts(nothing, tasks)],
        "static": [verdicts(nothing, tasks)],
        "static-per-task": [verdicts([1] * 20, tasks)],
        "codebook": [verdicts([1] * 20, tasks), verdicts(first, tasks)],
    }
    rows = {row.label: row for row in table.contrasts(found, {}, ["arc_easy", "boolq"])}

    def points(label: str) -> list[float]:
        row = rows[label]
        return [round(one.points, 1) for one in (row.pooled, row.even, *row.parts.values())]

    assert points("codebook less base") == [75, 75, 100]
    assert points("static-per-task less static") == [100] * 3
    label = "codebook less static, less 70% of what static-per-task gains over it"
    assert points(label) == [5, 5, 30]
    assert rows["codebook less base"].seeds_agree
    assert not rows[label].seeds_agree, "one seed gains 30 points on it, the other loses 20"


def test_a_policy_stands_beside_the_best_mixture_of_single_routes_of_its_passes():
    """By hand: 26 passes by routes of 28, 24 and 20. On tune half 28 and half 24 answer 0.7, a quarter 20 and the rest 28 0.75; on test the
    two of that pair answer 0.9 and 0.1."""
    tasks = ["a"] * 10

    def row(n_right: int, passes: float) -> table.Verdicts:
        return verdicts([1] * n_right + [0] * (10 - n_right), tasks) | {"passes": np.full(10, passes)}

    tuned = {"base": [row(8, 28)], "static_tuned@0.9": [row(6, 24)], "static_tuned@0.7": [row(6, 20)], "codebook@0.9": [row(9, 26)]}
    found = {"base": [row(9, 28)], "static_tuned@0.9": [row(9, 24)], "static_tuned@0.7": [row(1, 20)], "codebook@0.9": [row(8, 26)]}
    rows = {row.label: row.pooled.points for row in table.contrasts(found, tuned, ["a"])}
    assert rows["codebook@0.9 less base dealt to 75% of the prompts, else static_tuned@0.7"] == pytest.approx(10)
    assert not any("dealt" in label for label in (row.label for row in table.contrasts(found, {}, ["a"])))
    longer_than_any = tuned | {"base": [row(8, 25)]}
    assert not any("dealt" in row.label for row in table.contrasts(found, longer_than_any, ["a"]))


def contrast(pooled: tuple[float, float], even: tuple[float, float] | None, agree: bool = True) -> table.Contrast:
    lie = [table.Difference((low + high) / 2, low, high) for low, high in (pooled, even or pooled)]
    return table.Contrast("ours less base", lie[0], lie[1] if even else None, {}, agree)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (contrast((0.1, 2.0), (0.1, 1.0)), "above"),
        (contrast((0.1, 2.0), None), "above"),
        (contrast((-2.0, -0.1), (-1.0, -0.1)), "below"),
        (contrast((0.1, 2.0), (-0.1, 1.0)), "open"),
        (contrast((-0.1, 2.0), (0.1, 1.0)), "open"),
        (contrast((0.1, 2.0), (0.1, 1.0), agree=False), "open"),
    ],
)
def test_a_conclusion_needs_both_means_and_every_seed(given, verdict):
    assert pages.judged(given).endswith(f": **{verdict}**")
    assert pages.judged(None) == "", "what was not compared"


def stored(folder, setting, split, rows, asked, blocks=30):
    """Answers of several rows to the same questions, (task, id); of each row the route, and whether each answer is right."""
    results = Results(folder)
    results.tell("m" if "model" not in results.about else results.told("model"), "model")
    results.tell(blocks, "blocks")
    answered = {}
    for named, (route, right) in rows.items():
        n_passes = [float(Route.parse(route).n_passes)] * len(asked)
        columns = {"task": [task for task, _ in asked], "id": [name for _, name in asked]}
        answered[named] = columns | {"route": [route] * len(asked), "n_passes": n_passes, "correct": right}
    results.add(setting, split, answered, dict.fromkeys(rows, "digest"))
    return Results(folder)


def test_answers_are_read_as_they_were_written_and_to_other_questions_refused(tmp_path):
    asked = [("arc_easy", "a"), ("arc_easy", "b")]
    stored(tmp_path, "arc", "tune", {("base", 0): ("1111", [True, False])}, asked)
    stored(tmp_path, "mixed", "tune", {("base", 0): ("1111", [True])}, [("piqa", "a")])
    results = stored(tmp_path, "arc", "tune", {("static@0.9", 1): ("1110", [False, True])}, asked)
    found = {named: table.read(answered, ["arc_easy"]) for named, answered in results.of("arc", "tune").items()}
    shown = {named: (one["id"].tolist(), one["correct"].tolist(), one["passes"].tolist()) for named, one in found.items()}
    assert shown == {("base", 0): (["a", "b"], [1.0, 0.0], [4.0, 4.0]), ("static@0.9", 1): (["a", "b"], [0.0, 1.0], [3.0, 3.0])}
    assert results.policies("arc", "tune")["static@0.9", 1] == "digest"
    results = stored(tmp_path, "arc", "tune", {("base", 0): ("1111", [True, True])}, asked)
    assert results.of("arc", "tune")["base", 0]["correct"].tolist() == [True, True], "a row's later answers take its place"
    with pytest.raises(SystemExit, match="answers to other questions of arc"):
        stored(tmp_path, "arc", "tune", {("told", 0): ("1111", [True])}, asked[:1])


def gap_of(found: table.Found) -> str:
    ((name, gap),) = table.gaps_closed(found)
    return gap.sentence(name)


def test_the_words_of_the_page_take_their_figures_from_the_contrasts():
    less = table.Difference(1.25, 0.0, 2.5)
    rows = [
        table.Contrast("a@0.9 less base", less, less, {"pooled without numbers": table.Difference(-0.04, -1.0, 1.0)}, True),
        table.Contrast("a@0.9 less b@0.95 dealt to 89% of the prompts, else c@0.7", less, less, {}, True),
    ]
    section = table.Section("kinds", "test", "", "", (), (), rows)
    said = pages.figures({Results(Path("policies-m-1b")): [section]})
    assert said["m kinds: a@0.9 less base"] == said["m kinds: a@0.9 less mixture"] == "+1.2 (+0.0 to +2.5)"
    assert said["m kinds: a@0.9 less base, pooled without numbers"] == "+0.0 (-1.0 to +1.0)"
    assert said["m kinds: z less base"] == "(not stored)"


def test_passes_are_means_over_seeds_as_verdicts_are():
    one, other = verdicts([1, 0], ["a", "b"]), verdicts([1, 1], ["a", "b"])
    mean = table.mean_of([one, other | {"passes": one["passes"] - 2}])
    assert mean["correct"].tolist() == [1.0, 0.5]
    assert mean["passes"].tolist() == (one["passes"] - 1).tolist()


def test_told_the_task_each_task_has_its_best_route_within_the_budget():
    routes = tuple(Route.parse(text) for text in ("1111", "1101", "1001"))
    tasks = ("a",) * 40 + ("b",) * 40
    right = np.zeros((80, 3), dtype=bool)
    right[:20, 0] = right[:36, 1] = right[:30, 2] = True  # of "a" skips mend
    right[40:76, 0] = right[40:60, 1] = right[40:50, 2] = True  # of "b" they break
    ids, margins = tuple(map(str, range(80))), np.where(right, 1.0, -1.0).astype(np.float32)
    matrix = Matrix(routes, tasks, ids, tuple((n,) for n in range(80)), right, margins, "raw", "made")
    data = SimpleNamespace(fit_and_tune=lambda: (matrix, matrix))
    assert {task: str(route) for task, route in routes_by_task(data, 1.0).items()} == {"a": "1101", "b": "1111"}
    assert {task: str(route) for task, route in routes_by_task(data, 0.75).items()} == {"a": "1001", "b": "1111"}
    with pytest.raises(SystemExit, match=r"no routes of the matrix keep 0.4"):
        routes_by_task(data, 0.4)


def test_the_share_of_the_oracles_gap_is_beyond_what_blind_routes_close():
    """By hand: of 10 questions the oracle gains 5, ours 4, blind routes 1. One question of each task: nothing to draw."""
    tasks = [f"t{n}" for n in range(10)]
    ours, blind, oracle, base = (verdicts([1] * n + [0] * (10 - n), tasks) for n in (6, 3, 7, 2))
    assert table.gap_share(ours, blind, oracle, base) == "60 % (60 to 60)"
    found = {"codebook": [ours], "random_codebook": [blind], "base": [base], "oracle": [oracle], "routers": [ours]}
    told = [gap.sentence(name) for name, gap in table.gaps_closed(found)]
    assert [note.split("`")[1:4:2] for note in told] == [["codebook", "random_codebook"], ["routers", "random_codebook"]]
    assert not dict(table.gaps_closed({"codebook": [ours], "base": [base], "random_codebook": [blind]}))
    short = {"codebook_by_task@0.9": [ours], "random_codebook_by_task": [ours], "base": [base], "oracle": [oracle]}
    assert not dict(table.gaps_closed(short))  # a budget has a blind codebook of its own
    told = gap_of(short | {"random_codebook_by_task@0.9": [blind]})
    assert "closes 80 % and `random_codebook_by_task@0.9` 20 %; the difference is 60 % (60 to 60)" in told
    losing = short | {"random_codebook_by_task@0.9": [base | {"correct": np.zeros(len(base["correct"]))}]}
    told = gap_of(losing)
    assert "closes 80 % and `random_codebook_by_task@0.9` -40 %; the difference is 120 % (120 to 120)" in told
    assert told.split("`")[1:4:2] == ["codebook_by_task@0.9", "random_codebook_by_task@0.9"]
    wide = table.gap_share(*(one | {"task": np.array(["a"] * 10)} for one in (ours, blind, oracle, base)))
    low, high = map(int, wide.split("(")[1].removesuffix(")").split(" to "))
    assert low < 60 < high


@pytest.mark.slow
def test_a_policy_below_the_base_closes_none_of_the_gap_however_far_below_blind_routes_are():
    tasks = [f"t{n}" for n in range(10)]
    blind, ours, base, oracle, above = (verdicts([1] * n + [0] * (10 - n), tasks) for n in (1, 3, 4, 6, 5))
    found = {"random_codebook": [blind], "base": [base], "oracle": [oracle]}
    cells = [dict(table.gaps_closed(found | {"codebook": [one]}))["codebook"].cell() for one in (ours, base, above)]
    assert cells == ["none: -50, blind routes -150", "none: 0, blind routes -150", "50, blind routes -150"]
    found["random_codebook"] = [base]
    cells = [dict(table.gaps_closed(found | {"codebook": [one]}))["codebook"].cell() for one in (ours, base, above)]
    assert cells == ["none: -50, blind routes 0", "0 (0 to 0)", "50 (50 to 50)"]


def test_the_frontier_has_a_mark_a_budget(tmp_path):
    tasks = ["arc_easy"] * 4
    base = verdicts([1, 0, 0, 0], tasks)
    found = {"base": [base], "codebook": [verdicts([1, 1, 0, 0], tasks), verdicts([1, 1, 1, 1], tasks)]}
    assert table.frontier(found, "f", 30) is None
    for budget in ("", "@0.95", "@0.9", "@0.8"):
        found[f"static_tuned{budget}"] = [verdicts([1, 1, 0, 0], tasks) | {"passes": np.full(4, 24.0)}]
        found[f"codebook_by_task{budget}"] = [base]
    chart = table.frontier(found, "f", 30)
    assert chart is not None
    rows = {row[0]: row for row in chart.rows}
    assert set(rows) == set(found) - {"base"}
    assert (rows["static_tuned@0.8"][2], rows["static_tuned@0.8"][3]) == ("0.8", "25")
    assert rows["codebook"][3] == "50", "the mean over seeds: a quarter and three quarters"
    write_charts([chart], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"f.png", "f.csv"}
    (axes,) = draw(chart).axes
    low, high = axes.get_ylim()
    assert low < min(float(row[4]) for row in chart.rows)
    assert high > max(float(row[5]) for row in chart.rows), "intervals that are drawn aside are inside the picture"


def test_routes_combine_where_no_block_is_edited_by_both():
    assert combine(Route.parse("1121"), Route.parse("1011")) == Route.parse("1021")
    assert combine(Route.parse("1121"), Route.parse("1101")) is None
    assert combine(Route.parse("1121"), Route.full(4)) is None
    full, swapped = Route.full(8), Route.parse("0-2,4,3,5-7")
    assert combine(full.loop(1, 3, 0.5), full.loop(5, 6)) == full.loop(1, 3, 0.5).loop(5, 6)
    assert combine(full.loop(1, 3), full.edit(2, 2)) is None, "block 2 is looped"
    assert combine(full.edit(2, 0), full.loop(1, 3)) is None
    assert combine(swapped, full.edit(3, 2)) is None, "each block runs once, but not at its own place"
    assert combine(swapped, full.edit(6, 0)) == Route.parse("0-2,4,3,5,7")


def test_what_is_learned_from_is_apart_from_what_is_asked_elsewhere():
    for name, setting in SETTINGS.items():
        assert set(setting.learned) <= set(setting.apart), name
        assert not setting.policies or SETTINGS[setting.policies].learned == setting.learned
    for name, reward in {"letters-ood": "letter", "letters-ood-likelihood": "auto"}.items():
        assert (SETTINGS[name].reward, set(SETTINGS[name].asked) & set(SETTINGS[name].apart)) == (reward, set())


def test_a_table_is_made_of_stored_verdicts_alone(tmp_path):
    rng = np.random.default_rng(0)
    asked = [(task, f"{task}{n}") for task in SETTINGS["arc"].asked for n in range(50)]
    shares = {("base", 0): 0.4, ("static", 0): 0.5, ("codebook", 0): 0.6}
    rows = {named: ("1" * 29 + "0", (rng.random(100) < share).tolist()) for named, share in shares.items()}
    results = stored(tmp_path, "arc", "tune", rows, asked)
    results.tell({"most_common": {}, "without_test_part": ["arc_easy"], "scans": ["scan-a"]}, "asked", "arc", "tune")
    lines = list(pages.whole(table.section(results, "arc", "tune", SETTINGS, ())))
    command = "`python -m drllm_research.comparison run --model m --run RUN --out OUT --data DATA --settings arc --methods ROWS"
    scan = Path("results", "scan-a")
    assert f"{command} --scan {scan}`" in lines
    assert "Without a test part, so development questions by which nothing was chosen: arc_easy. " in lines
    (codebook,) = [line for line in lines if line.startswith("| codebook * ")]
    assert codebook.split("|")[2].split()[0] == f"{np.mean(rows['codebook', 0][1]) * 100:.1f}"
    assert codebook.split("|")[8].strip() == "29.00"
    assert any(line.startswith("| codebook less static |") for line in lines)


def test_what_runs_the_base_for_every_prompt_is_named_and_has_no_row(tmp_path):
    """A method that leaves the base with one seed keeps its row; every row stands beside `static_tuned` of its budget."""
    asked = [(task, f"{task}{n}") for task in SETTINGS["arc"].asked for n in range(10)]
    full, other = "1" * 30, "0" + "1" * 29
    rows = {
        ("base", 0): (full, 10),
        ("static_tuned", 0): (other, 12),
        ("static", 0): (full, 10),
        ("codebook", 0): (full, 10),
        ("codebook", 1): (other, 12),
        ("static_tuned@0.9", 0): (other, 6),
        ("told@0.9", 0): (other, 8),
        ("tale@0.85", 0): (other, 8),
    }
    made = {named: (route, [n < right for n in range(20)]) for named, (route, right) in rows.items()}
    results = stored(tmp_path, "arc", "test", made, asked)
    section = table.section(results, "arc", "test", SETTINGS, ())
    assert {row["method"]: row["vs static_tuned of the budget, points"].partition(" ")[0] for row in section.rows} == {
        "base": "",
        "static": "-10.0",
        "static_tuned": "",
        "codebook": "-10.0",
        "static_tuned@0.9": "",
        "best route of each task @0.9 (told the task)": "+10.0",
        "tale@0.85": "",
    }
    text = pages.tested(results, section)
    assert "The base for every prompt, with every seed, so without a row: `static`." in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")] == [
        "method",
        "base",
        "static_tuned",
        "codebook",
        "static_tuned@0.9",
        "best route of each task @0.9 (told the task)",
    ]


def test_each_model_has_its_page_and_its_part_of_the_results(tmp_path):
    outs = []
    for name, blocks in (("one", 30), ("two", 18)):
        Results(tmp_path / "stored" / name).tell(name, "model")
        for split in ("test", "tune"):
            base = {("base", 0): ("1" * blocks, [True])}
            results = stored(tmp_path / "stored" / name, "openbookqa", split, base, [("openbookqa", name)], blocks)
        outs.append(results)
    page = tmp_path / "results" / "paper-x" / "page" / "report.md"
    page.parent.mkdir(parents=True)
    page.write_text("| here | claim |\n| --- | --- |\n| holds | one |\n| does not hold | two |\n| holds | three |\n")
    pages.write_pages(tmp_path, pages.Stored(outs, [Path(__file__).parents[2] / "results" / "scan-smollm2-135m-q4"], [page]), SETTINGS, ())
    text = (tmp_path / "docs" / "results.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## one") or line.startswith("## two")] == [
        f"## {name}: one task: OpenBookQA" for name in ("one, 30 blocks", "two, 18 blocks")
    ]
    assert "| winners minus random |  | +6.8 (+3.9 to +9.8), n 128 | +2.2 (+0.6 to +3.7), n 448 |" in text
    assert "holds: 2, does not hold: 1, open: 0" in text
    assert "tune split" not in text.partition("## one")[2]
    given = (tmp_path, pages.Stored(outs), SETTINGS, ["openbookqa"])
    pages.write_pages(*given)
    assert "## one" not in (tmp_path / "docs" / "results.md").read_text(), "settings of one task have their tables elsewhere"
    for out in outs:
        tables = (tmp_path / "results" / out.name / "tables.md").read_text().splitlines()
        assert [line.partition(" (")[0] for line in tables if line.startswith("### ")] == [
            f"### one task: OpenBookQA, {split} split" for split in ("test", "tune")
        ]
        assert sum(line.startswith("| base |") for line in tables) == 2


def test_the_short_page_leaves_other_budgets_and_tables_out_of_domain_to_the_others(tmp_path):
    shown = [name for name in ("base", "told@0.9", "codebook@0.9", "codebook@0.85", "shuffled-polar") if not pages.is_elsewhere(name)]
    assert shown == ["base", "told@0.9", "codebook@0.9"]
    for setting in ("kinds", "letters-ood", "piqa"):
        results = stored(tmp_path, setting, "test", {("base", 0): ("1" * 30, [True])}, [(SETTINGS[setting].asked[0], "a")])
    asked_of_one = {name: replace(of, asked=of.asked[:1]) for name, of in SETTINGS.items()}
    pages.write_pages(tmp_path, pages.Stored([results]), asked_of_one, ["piqa"])
    heads = [line for line in (tmp_path / "docs/results.md").read_text().splitlines() if line.startswith("## m, 30 blocks")]
    assert heads == [f"## m, 30 blocks: {table.ABOUT['kinds']}"]
