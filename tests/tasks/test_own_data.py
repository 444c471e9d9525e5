"""`--data`: questions of a user's own in JSON lines, CSV or Parquet, and folders with train, dev and test, of one task or several."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drllm.core.errors import InputError
from drllm.tasks import SPLITS, LoadedTask, load_task, own_name
from drllm.tasks.files import kind_of

CHOICES = ["red", "2", "blue"]


def lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(name: str, path: Path) -> dict[str, object]:
    return {row.question: row.answer for split in SPLITS for row in load_task(name, path).examples[split]}


@pytest.mark.parametrize(("answer", "index"), [(1, 1), ("blue", 2), (" blue ", 2), ("C", 2), ("b", 1), ("0", 0), ("2", 1)], ids=str)
def test_an_answer_is_an_index_a_text_or_a_letter(tmp_path, answer, index):
    """A text is first looked for among the choices: "2" is the second one here, not the third."""
    path = lines(tmp_path / "trivia.jsonl", {"question": "Which?", "choices": CHOICES, "answer": answer})
    assert answers("trivia", path) == {"Which?": index}


def test_the_file_names_the_task_and_its_first_row_the_kind(tmp_path):
    path = lines(tmp_path / "trivia.jsonl", {"question": "Which?", "options": CHOICES, "answer": "C"})
    task = load_task("trivia", path).task
    assert (task.name, task.kind, task.is_own) == ("trivia", "choice", True)
    task = load_task("sums", lines(tmp_path / "sums.jsonl", {"question": "1 + 1?", "answer": 2})).task
    assert (task.kind, task.default_reward) == ("math", "boxed")
    known = load_task("arc_easy", lines(tmp_path / "arc_easy.jsonl", {"question": "Q?", "choices": CHOICES, "answer": 0})).task
    assert not known.is_own
    with pytest.raises(InputError, match=r"unknown task 'arc_esy'; did you mean 'arc_easy'\?"):
        load_task("arc_esy", path)


def test_csv_and_parquet_hold_the_same_questions(tmp_path):
    (tmp_path / "quiz.csv").write_text('question,choices,answer\nWhich?,"[""red"", ""blue""]",blue\n', encoding="utf-8")
    (tmp_path / "lettered.csv").write_text("question,A,B,C,answer\nWhich?,red,blue,,B\n", encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist([{"question": "Which?", "choices": ["red", "blue"], "answer": 1}]), tmp_path / "table.parquet")
    for file in ("quiz.csv", "lettered.csv", "table.parquet"):
        assert answers(own_name(file), tmp_path / file) == {"Which?": 1}, file


def test_a_folder_names_a_task_too(tmp_path):
    folder = tmp_path / "my quiz"
    folder.mkdir()
    lines(folder / "train.jsonl", *({"question": f"Which is {n}?", "choices": CHOICES, "answer": 0} for n in range(20)))
    lines(folder / "test.jsonl", {"question": "Which is last?", "choices": CHOICES, "answer": 0})
    loaded = load_task("my-quiz", folder)
    assert own_name(folder) == "my-quiz"
    assert [row.question for row in loaded.examples["test"]] == ["Which is last?"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no train\.jsonl, dev\.jsonl or test\.jsonl; name the tasks"):
        load_task("empty", tmp_path / "empty")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q?", "choices": ["a", " "], "answer": 0}, r"line 1: choice 1 \(0 is the first\) is empty"),
        ({"question": "Q?", "choices": ["a", "a", "b"], "answer": "a"}, "line 1: the right choice 'a' stands there twice"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": "c d"}, "line 1: answer is 'c d', expected an index from 0 to 1, a letter"),
        ({"answer": 1}, 'line 1: key "question" is missing; a math row has question, answer'),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_one_line(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        load_task("mine", lines(tmp_path / "mine.jsonl", row))


def test_what_is_no_table_is_said_in_one_line(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not a table")
    (tmp_path / "b.csv").write_bytes(b"question,answer\n\xff,1\n")
    (tmp_path / "c.csv").write_text('question,choices,answer\nWhich?,"red, blue",0\n')
    lines(tmp_path / "d.jsonl")
    for name, message in (
        ("a.parquet", r"a\.parquet: cannot be read"),
        ("b.csv", "save it as UTF-8 text, or as Parquet"),
        ("c.csv", "choices is 'red, blue', expected two texts or more"),
        ("d.jsonl", "no questions; expected rows with question, answer"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_task(own_name(name), tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_data_set_on_the_hub_is_read_by_its_name(fake_hub, monkeypatch):
    rows = [{"question": f"Which {number}?", "options": ["a", "b"], "answer": "B"} for number in range(30)]
    parts = {"train": rows[:20], "validation": rows[20:25], "test": rows[25:], "extra": []}
    fake_hub["some/trivia", None] = parts
    fake_hub["some/trivia", "main"] = {"test": [rows[0] | {"question": "Main?"}]}
    fake_hub["some/gone", None] = ValueError("no such set\nmore")
    found = load_task(own_name("hub:some/trivia"), "hub:some/trivia")
    assert (found.task.name, found.task.kind, found.source) == ("trivia", "choice", "Hub some/trivia")
    assert {split: len(examples) for split, examples in found.examples.items() if split in ("tune", "test")} == {"tune": 5, "test": 5}
    assert {example.answer for example in found.examples["fit"]} == {1}
    assert [example.question for example in load_task("arc_easy", "hub:some/trivia/main").examples["test"]] == ["Main?"]
    with pytest.raises(InputError, match=r"--data hub:some/gone: some/gone could not be loaded: ValueError: no such set; check its name"):
        load_task("gone", "hub:some/gone")
    with pytest.raises(InputError, match="names no data set: write hub:OWNER/NAME"):
        load_task(own_name("hub:alone"), "hub:alone")
    parts["train"][3] = {"question": "Which?", "options": ["a", "b"], "answer": "c"}
    with pytest.raises(InputError, match="hub:some/trivia, train row 4: answer is 'c'"):
        load_task("trivia", "hub:some/trivia")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"the datasets library is not installed: pip install datasets; .*, or give a file"):
        load_task("trivia", "hub:some/trivia")


def test_a_broken_table_is_refused_with_its_line(tmp_path):
    path = tmp_path / "mine.csv"
    for text, message in {
        "question,A,B,answer\nWhich, if any?,x,y,A\n": "line 2: more cells than the header has columns; put quotes around",
        "question,A,B,correct\nWhich?,x,y,A\n": 'line 2: key "answer" is missing; .*, this one has question, A, B, correct',
        "question,A,B,answer\nWhich?,x,y,A\nWhat?,x,,A\n": r"line 3: choices is \['x'\], expected two texts or more: add a wrong",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_task("mine", path)


def test_a_question_asked_twice_with_two_answers_is_told_apart(tmp_path):
    rows = [{"question": f"Which of {n}?", "choices": ["x", "y"], "answer": "x", "part": "train"} for n in range(40)]
    turned = {"question": "Which of 1?", "choices": ["y", "x"], "answer": 1, "part": "train"}
    again = (rows[2], rows[3] | {"answer": "y"}, rows[4] | {"choices": ["x", "z"], "answer": "z"})
    path = lines(tmp_path / "mine.jsonl", *rows, turned, *again)
    assert load_task("mine", path).dropped == {"duplicate": 3, "duplicate with another answer": 1}


def test_a_file_of_free_answers_refuses_a_row_with_choices(tmp_path):
    rows = [{"question": "2 + 2?", "answer": "4"}, {"question": "Which?", "choices": CHOICES, "answer": 0}]
    with pytest.raises(InputError, match=r"line 2: this row has choices, the first row has none: give each kind a file of its own"):
        load_task("trivia", lines(tmp_path / "trivia.jsonl", *rows))


def test_what_other_files_call_it_is_pointed_out(tmp_path):
    row = {"prompt": "Which?", "choices": CHOICES, "label": 0}
    with pytest.raises(InputError, match=r'line 1: key "question" is missing; .*; if "prompt" is it, call it "question"'):
        load_task("mine", lines(tmp_path / "mine.jsonl", row))
    with pytest.raises(InputError, match=r'line 1: key "answer" is missing; .*; if "label" is it, call it "answer"'):
        load_task("mine", lines(tmp_path / "mine.jsonl", row | {"question": "Which?"}))


def test_choices_by_another_name_are_no_free_answers(tmp_path):
    for name, answer in (("choice", 0), ("texts", CHOICES[1])):
        path = lines(tmp_path / "mine.jsonl", {"question": "Which?", name: CHOICES, "answer": answer})
        with pytest.raises(InputError, match=f'line 1: "{name}" looks like choices: two or more are read from a list "choices"'):
            load_task("mine", path)
    lines(path, {"question": "2 + 2?", "answer": "4", "tags": ["sums", "easy"], "A": None, "B": None})
    assert answers("mine", path) == {"2 + 2?": "4"}


def test_a_table_with_other_separators_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question;choices, all;answer\nWhich?;x;y;A\n")
    with pytest.raises(InputError, match=r"mine\.csv: its columns are separated by ';', expected commas"):
        load_task("mine", path)


def test_an_empty_cell_of_choices_is_no_choices(tmp_path):
    path = lines(tmp_path / "trivia.jsonl", {"question": "2 + 2?", "answer": "4", "choices": None, "options": None})
    assert kind_of(path) == "math"
    assert answers("trivia", path) == {"2 + 2?": "4"}


def test_a_name_of_the_hub_that_is_no_file_is_pointed_there(tmp_path):
    with pytest.raises(InputError, match=r"nobody/nothing: no such file; .*; of the Hub it is hub:nobody/nothing"):
        load_task("nothing", Path("nobody/nothing"))
    with pytest.raises(InputError, match=r"one question a row$"):
        load_task("nothing", tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("header", ["question,choice0,choice1,answer", "question,Option A,Option B,answer"])
def test_columns_of_choices_by_other_names_are_no_free_answers(header, tmp_path):
    name = header.split(",")[1]
    (tmp_path / "mine.csv").write_text(header + "\nWhich?" + ",x" * header.count(",") + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf'line 2: "{name}" looks like choices: .* "choices" or from columns A, B'):
        kind_of(tmp_path / "mine.csv")


def write(path: Path, names: Iterable[str], **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return lines(path, *({"id": name, "question": f"Question {name}?", "choices": ["x", "y"], "answer": 1, **changes} for name in names))


def parts_of(item: LoadedTask) -> dict[str, str]:
    return {row.id: row.part for split in SPLITS for row in item.examples[split]}


def names(prefix: str, n: int = 40) -> list[str]:
    return [f"{prefix}{number}" for number in range(n)]


def test_the_file_is_the_part(tmp_path):
    """Whatever part a row names itself; so train is searched, dev tuned on and test tested on."""
    write(tmp_path / "train.jsonl", names("a"))
    write(tmp_path / "dev.jsonl", names("b"), part="test")
    write(tmp_path / "test.jsonl", names("c"), part="train")
    item = load_task("arc_easy", tmp_path)
    assert item.source == f"folder {tmp_path.name}"
    parts = {"a": "train", "b": "validation", "c": "test"}
    assert parts_of(item) == {name: parts[prefix] for prefix in parts for name in names(prefix)}
    assert {row.id[0] for row in item.examples["fit"] + item.examples["calibrate"]} == {"a"}
    assert {row.id[0] for row in item.examples["tune"]} == {"b"}
    assert {row.id[0] for row in item.examples["test"]} == {"c"}


@pytest.mark.parametrize("stem", ["dev", "valid", "val", "validation"])
def test_every_name_of_validation_is_understood(tmp_path, stem):
    write(tmp_path / f"{stem}.jsonl", names("b", 3))
    assert set(parts_of(load_task("arc_easy", tmp_path)).values()) == {"validation"}


def test_other_files_are_passed_over(tmp_path):
    write(tmp_path / "train.jsonl", ["a"])
    write(tmp_path / "train-old.jsonl", ["b"])
    (tmp_path / "notes.jsonl").write_text("not json", encoding="utf-8")
    (tmp_path / "test.json").write_text("{}", encoding="utf-8")
    assert parts_of(load_task("arc_easy", tmp_path)) == {"a": "train"}


def test_a_folder_of_task_folders_serves_each_task_its_own(tmp_path):
    write(tmp_path / "arc_easy" / "train.jsonl", ["easy"])
    write(tmp_path / "piqa" / "dev.jsonl", ["physical"])
    write(tmp_path / "train.jsonl", ["any"])
    assert parts_of(load_task("arc_easy", tmp_path)) == {"easy": "train"}
    assert parts_of(load_task("piqa", tmp_path)) == {"physical": "validation"}
    assert parts_of(load_task("openbookqa", tmp_path)) == {"any": "train"}, "a task without a folder of its own"
    assert load_task("arc_easy", tmp_path).source == f"folder {tmp_path.name}"


def test_rows_without_ids_are_told_apart_by_their_file(tmp_path):
    for stem in ("train", "dev", "test"):
        write(tmp_path / f"{stem}.jsonl", [stem, f"{stem} too"], id=None)
    assert set(parts_of(load_task("arc_easy", tmp_path))) == {f"{stem}-{line}" for stem in ("train", "dev", "test") for line in (1, 2)}


def test_one_id_in_two_files_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", ["a", "b"])
    write(tmp_path / "test.jsonl", ["c", "b"], question="Another one?")
    with pytest.raises(InputError, match=r"id 'b' stands in two files; give each question its own id") as caught:
        load_task("arc_easy", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_question_in_two_files_stays_where_it_is_searched(tmp_path):
    write(tmp_path / "train.jsonl", ["a"], question="Why?")
    write(tmp_path / "test.jsonl", ["b"], question=" why? ")
    item = load_task("arc_easy", tmp_path)
    assert parts_of(item) == {"a": "train"}
    assert item.dropped == {"test": 1}


def test_levels_may_lie_together_in_a_folder_of_mathematics(tmp_path):
    (tmp_path / "math").mkdir()
    for stem in ("train", "test"):
        rows = [{"id": f"{stem}{level}", "question": f"{stem} {level}?", "answer": "1", "level": level} for level in (1, 3)]
        lines(tmp_path / "math" / f"{stem}.jsonl", *rows)
    item = load_task("dart-1", tmp_path)
    assert (parts_of(item), item.dropped) == ({"train1": "train", "test1": "test"}, {"other level": 2})
    (tmp_path / "dart-1").mkdir()
    (tmp_path / "dart-1" / "train.jsonl").write_text(json.dumps({"question": "own?", "answer": "1"}) + "\n", encoding="utf-8")
    assert parts_of(load_task("dart-1", tmp_path)) == {"train-1": "train"}


@pytest.mark.parametrize("stray", [[], ["questions.jsonl"], ["README.md"]])
def test_a_folder_without_such_files_says_what_it_should_hold(tmp_path, stray):
    for name in stray:
        write(tmp_path / name, ["a"])
    with pytest.raises(InputError, match=r"no train\.jsonl, dev\.jsonl or test\.jsonl; --data expects") as caught:
        load_task("arc_easy", tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "arc_easy").mkdir()
    with pytest.raises(InputError, match=rf"{tmp_path.name}.arc_easy: no train\.jsonl"):
        load_task("arc_easy", tmp_path)


@pytest.mark.parametrize("last", ['{"question": "Q?", "choices": ["x", "y"]}', "[]", "not json", ""])
def test_a_bad_file_among_good_ones_is_named(tmp_path, last):
    write(tmp_path / "train.jsonl", ["a"])
    (tmp_path / "test.jsonl").write_text(f"{last}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"test\.jsonl(, line 1)?: "):
        load_task("arc_easy", tmp_path)


def test_a_file_of_which_nothing_is_left_says_so_for_itself(tmp_path):
    write(tmp_path / "dev.jsonl", ["a", "b"], answer=None)
    write(tmp_path / "train.jsonl", ["c"])
    with pytest.raises(InputError, match=r"dev\.jsonl: no questions for arc_easy \(left out: 2 empty answer\)"):
        load_task("arc_easy", tmp_path)
    good = write(tmp_path / "good.jsonl", ["d"]).read_text(encoding="utf-8")
    bad = (tmp_path / "dev.jsonl").read_text(encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text(bad + good, encoding="utf-8")
    write(tmp_path / "train.jsonl", ["c"], answer=None)
    with pytest.raises(InputError, match=r"train\.jsonl: no questions for arc_easy \(left out: 1 empty answer\)"):
        load_task("arc_easy", tmp_path)
