"""TruthfulQA, AGIEval, GPQA, SQuAD v2, AIME 2024: lm-eval's prompts, letters dealt anew, upstream rows, splits of tasks only measured."""

import json
from collections import Counter
from importlib.metadata import files
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drllm.core.errors import InputError
from drllm.tasks import LETTERS, Example, get_task, load_task
from drllm.tasks.layouts import LAYOUTS
from drllm.tasks.readers import UNANSWERABLE, exact_match, f1_score
from drllm.tasks.wording import WORDINGS

DATA = Path(__file__).parents[3] / "shared" / "data"
has_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real question sets are not here")


def lm_eval_yaml(name: str) -> dict[str, Any]:
    """A task of the installed harness, its Python functions left out."""
    found = [path for path in files("lm_eval") or [] if path.as_posix() == f"lm_eval/tasks/{name}"]
    if not found:
        pytest.skip(f"lm-eval has no {name}")

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load(Path(str(found[0].locate())).read_text(), Loader)


def rendered(template: str, **fields: Any) -> str:
    return jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(template).render(**fields)


def test_truthfulqa_is_asked_as_lm_eval_asks_it():
    stock = lm_eval_yaml("truthfulqa/truthfulqa_mc1.yaml")
    example = Example("t", "Why do veins look blue?", ("Because of light", "Blue blood"), 0, "truthfulqa")
    context, continuations = get_task("truthfulqa").loglik_prompt(example)
    assert context == rendered(stock["doc_to_text"], question=example.question)
    assert continuations == [" Because of light", " Blue blood"]
    assert [metric["metric"] for metric in stock["metric_list"]] == ["acc"]  # so raw log-likelihoods are the verdict
    assert get_task("truthfulqa").only_acc


def test_gpqa_is_asked_as_lm_eval_asks_it():
    stock = lm_eval_yaml("gpqa/zeroshot/_gpqa_zeroshot_yaml")
    example = Example("g", "Which one?", ("w", "x", "y", "z"), 2, "gpqa")
    context, continuations = get_task("gpqa").loglik_prompt(example)
    choices = {f"choice{number}": text for number, text in enumerate(example.choices, 1)}
    assert context == rendered(stock["doc_to_text"], Question=example.question, **choices)
    assert continuations == [f" {text}" for text in stock["doc_to_choice"]]


def test_agieval_is_asked_as_the_rows_of_lm_eval_ask_it():
    task = get_task("agieval")
    for passage in ("", "Some passage.\n"):
        query = f"{passage}Q: How many? Answer Choices: (A)one (B)two (C)None of these\nA: Among A through C, the answer is"
        row = {"query": query, "choices": ["(A)one", "(B)two", "(C)None of these"], "gold": [1]}
        example = LAYOUTS["agieval"](task, row, "a-1", "test")
        assert (example.context, example.question, example.choices, example.answer) == (
            passage,
            "How many?",
            ("one", "two", "None of these"),
            1,
        )
        assert task.loglik_prompt(example) == (query, [f" {choice}" for choice in row["choices"]])
    with pytest.raises(ValueError, match="no exam question"):
        LAYOUTS["agieval"](task, row | {"query": "How many?"}, "a-2", "test")


def test_squadv2_is_asked_as_lm_eval_asks_it():
    row = {"id": "s", "title": "Force", "context": "F = ma.", "question": "What is F?", "answers": {"text": ["ma", "ma", "m a"]}}
    task = get_task("squadv2")
    example = LAYOUTS["squadv2"](task, row, "", "validation")
    assert task.passage_prompt(example) == "Title: Force\n\nBackground: F = ma.\n\nQuestion: What is F?\n\nAnswer:"
    assert (example.choices, example.answer) == (("ma", "m a"), "ma")
    none = LAYOUTS["squadv2"](task, row | {"answers": {"text": []}}, "", "validation")
    assert (none.choices, none.answer) == ((), UNANSWERABLE)


def test_gpqa_choices_are_cleaned_and_dealt():
    row = {
        "Question": "Q",
        "Correct Answer": " right  one ",
        "Incorrect Answer 1": "b [title]c",
        "Incorrect Answer 2": "d",
        "Incorrect Answer 3": "e",
    }
    task = get_task("gpqa")
    example = LAYOUTS["gpqa"](task, row, "g", "train")
    assert sorted(example.choices) == ["b. c", "d", "e", "right one"]
    assert example.choices[int(example.answer)] == "right one"
    places = Counter(LAYOUTS["gpqa"](task, row | {"Question": f"Q{number}"}, "g", "train").answer for number in range(200))
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) < 80


@pytest.mark.parametrize("name", ["truthfulqa", "sciq"])
def test_letters_are_dealt_where_the_right_choice_stands_still(name):
    task = get_task(name)
    always = 0 if name == "truthfulqa" else 3
    places = Counter()
    for number in range(200):
        example = Example("e", f"Question {number}?", ("a1", "b2", "c3", "d4"), always, name)
        lines = [line for line in task.letter_prompt(example, WORDINGS["ours"]).splitlines() if line[1:2] == "."]
        right = next(line[0] for line in lines if line.endswith(example.choices[always]))
        assert [letter for letter in "ABCD" if task.read(example, f"{letter}.", "letter").strict] == [right]
        places[right] += 1
    assert set(places) == set("ABCD")
    assert max(places.values()) < 80


MATCHES = [  # answer, accepted, exact, F1 as the script counts them
    (" the Cat!\nQuestion: more", ["cat"], True, 1.0),
    ("A black cat", ["cat", "the dog"], False, 2 / 3),
    ("cat cat", ["cat"], False, 2 / 3),
    ("Unanswerable.", [], True, 1.0),
    ("", [], True, 1.0),
    ("the", [], True, 1.0),
    ("a dog", [], False, 0.0),
    ("unanswerable", ["dog"], False, 0.0),
    ("", ["dog"], False, 0.0),
    ("", ["the", "dog"], False, 0.0),
    ("", ["!", "the"], True, 1.0),
    ("New  York City", ["new york"], False, 0.8),
]


@pytest.mark.parametrize(("text", "accepted", "exact", "f1"), MATCHES)
def test_exact_match_and_f1(text, accepted, exact, f1):
    assert exact_match(text, accepted) is exact
    assert f1_score(text, accepted) == pytest.approx(f1)
    assert get_task("squadv2").read(Example("s", "?", tuple(accepted), "", "squadv2"), text, "exact").strict is exact


@given(st.text("ab e.,tT", max_size=12), st.lists(st.text("ab e.,tT", max_size=12), max_size=3))
def test_an_exact_match_has_full_f1_and_the_other_way_round_only_up_to_order(text, accepted):
    f1 = f1_score(text, accepted)
    assert 0 <= f1 <= 1
    if exact_match(text, accepted):
        assert f1 == 1


def test_an_answer_out_of_a_passage_is_one_line():
    task = get_task("squadv2")
    assert task.settled("ma\n", "exact")
    assert not task.settled("ma", "exact")


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tasks_that_are_only_measured_have_tune_and_test_alone(tmp_path):
    rows = [
        {"id": f"q{number}", "question": "Which schedule?", "context": f"Rule {number}.", "choices": ["x", "y"], "answer": 0}
        for number in range(400)
    ]
    found = load_task("agieval", written(tmp_path / "valid.jsonl", *rows, rows[0] | {"id": "again"}))
    sizes = {split: len(examples) for split, examples in found.examples.items()}
    assert sizes["fit"] == sizes["calibrate"] == 0
    assert sizes["tune"] + sizes["test"] == 400
    assert 90 < sizes["tune"] < 150
    assert found.dropped == {"duplicate": 1}  # the same question under another passage is another
    with pytest.raises(InputError, match=r"only measured.*no split fit"):
        found.select("fit")


def test_rows_of_answers_out_of_passages(tmp_path):
    row = {"id": "1", "question": "Who?", "context": "Ann ran.", "title": "Running", "answers": ["Ann", "Ann"]}
    two = row | {"id": "2", "question": "Where?", "answers": {"text": [], "answer_start": []}, "title": None}
    found = load_task("squadv2", written(tmp_path / "mine.jsonl", row, two))
    by_id = {example.id: example for examples in found.examples.values() for example in examples}
    assert (by_id["1"].context, by_id["1"].choices) == ("Title: Running\n\nBackground: Ann ran.", ("Ann",))
    assert (by_id["2"].context, by_id["2"].choices, by_id["2"].answer) == ("Background: Ann ran.", (), UNANSWERABLE)
    for changes, message in (({"answers": "Ann"}, "answers is 'Ann', expected a list"), ({"answers": None}, "answers is None")):
        with pytest.raises(InputError, match=f"line 1: {message}"):
            load_task("squadv2", written(tmp_path / "bad.jsonl", row | changes))
    with pytest.raises(InputError, match='key "answers" is missing; a passage row has'):
        load_task("squadv2", written(tmp_path / "bad.jsonl", {"question": "?", "context": "."}))


@has_data
@pytest.mark.parametrize(("name", "rows"), [("truthfulqa", 407), ("agieval", 1170), ("squadv2", 1500), ("aime24", 30)])
def test_real_rows_are_read_whole(name, rows):
    found = load_task(name, DATA)
    kept = [example for examples in found.examples.values() for example in examples]
    assert len(kept) + sum(found.dropped.values()) == rows
    if name == "squadv2":
        assert sum(not example.choices for example in kept) == 803
        assert all(exact_match(f" {example.answer}\n", example.choices) for example in kept)
    if name == "aime24":
        assert all(str(example.answer).isdecimal() for example in kept)
    if name in ("truthfulqa", "agieval"):
        task = get_task(name)
        for example in kept:
            context, continuations = task.loglik_prompt(example)
            assert len(continuations) == len(example.choices) <= len(LETTERS)
            assert example.question.strip() in context
