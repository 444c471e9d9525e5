"""`--data FOLDER`: train.jsonl, dev.jsonl and test.jsonl of one task, or of a folder a task. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from drllm.core.errors import InputError
from drllm.tasks import SPLITS, LoadedTask, load_task


def write(path: Path, names: Iterable[str], **changes: object) -> Path:
    """A file of choice questions, one a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": name, "question": f"Question {name}?", "choices": ["x", "y"], "answer": 1, **changes} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parts_of(item: LoadedTask) -> dict[str, str]:
    """The part of each question, by id."""
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


def test_a_level_is_kept_from_every_file(tmp_path):
    for stem in ("train", "test"):
        rows = [{"id": f"{stem}{level}", "question": f"{stem} {level}?", "answer": "1", "level": level} for level in (1, 3)]
        (tmp_path / f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    item = load_task("dart-3", tmp_path)
    assert parts_of(item) == {"train3": "train", "test3": "test"}
    assert item.dropped == {"other level": 2}


def test_levels_may_lie_together_in_a_folder_of_mathematics(tmp_path):
    (tmp_path / "math").mkdir()
    for stem in ("train", "test"):
        rows = [{"id": f"{stem}{level}", "question": f"{stem} {level}?", "answer": "1", "level": level} for level in (1, 3)]
        (tmp_path / "math" / f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert parts_of(load_task("dart-1", tmp_path)) == {"train1": "train", "test1": "test"}
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
