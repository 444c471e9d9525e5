"""How answers are asked for, and the two readers of what comes."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm.core.errors import InputError
from drllm.tasks import Example, get_task
from drllm.tasks.grading import answer_equals, box_content, is_parsed
from drllm.tasks.readers import Reading, letter_is_read, read_boxed, read_letter
from drllm.tasks.wording import WORDINGS, wording_of

ARC = Example("a", "Which melts?", ("ice", "sand {x}"), 0, "arc_easy")
SUM = Example("s", "What is $\\frac{1}{2}+1$?", (), "\\frac{3}{2}", "dart-1")
SHARED = Path(__file__).parents[3] / "shared" / "data"

# Made once by formatting prompts.py of the authors' repository at commit 14e8837 with the fields below.
AUTHORS = {
    ("instruct", "letter"): "c690803697929257",
    ("base", "letter"): "008d2c9865e824b2",
    ("instruct", "boxed"): "ab9ed24f75aec4db",
    ("qwen", "boxed"): "af8047d1303df50b",
    ("base", "boxed"): "ed919c0179a66ab3",
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(("name", "reward"), AUTHORS)
def test_the_authors_wordings_are_theirs_character_for_character(name, reward):
    wording = WORDINGS[name]
    asked = wording.asked_for_letter("Which?", {"A": "one", "B": "two"}) if reward == "letter" else wording.asked_for_box("Which?")
    assert digest(asked) == AUTHORS[name, reward]


def test_the_qwen_wording_differs_from_the_instruct_one_in_mathematics_alone():
    qwen, instruct = WORDINGS["qwen"], WORDINGS["instruct"]
    assert all(getattr(qwen, name) == getattr(instruct, name) for name in ("letter", "choice", "new_tokens", "reader"))
    assert qwen.boxed != instruct.boxed


@pytest.mark.parametrize("wording", WORDINGS.values(), ids=WORDINGS)
def test_every_wording_holds_the_question_and_all_choices_and_names_its_source_and_licence(wording):
    letters, boxed = get_task("arc_easy").letter_prompt(ARC, wording), get_task("dart-1").boxed_prompt(SUM, wording)
    assert ARC.question in letters
    assert letters.index("A") < letters.index("ice") < letters.index("sand {x}")
    assert SUM.question in boxed
    assert not any(field in letters + boxed for field in ("{question}", "{choices}", "{passage}", "{letter}", "{text}"))
    assert wording.source.startswith(("MIT, (c) 2025 Parameter Lab; https://", "Apache-2.0; drllm"))
    assert boxed.endswith("\\boxed{") is wording.opens_box


def test_a_question_that_looks_like_a_field_is_left_as_it_is():
    example = Example("a", "Is {choices} or {passage} a field?", ("{question}", "x"), 0, "arc_easy", "A {letter}.")
    for wording in WORDINGS.values():
        asked = get_task("arc_easy").letter_prompt(example, wording)
        assert asked.startswith("A {letter}.\n\n")
        assert "Is {choices} or {passage} a field?" in asked
        assert "{question}" in asked


@pytest.mark.parametrize(
    ("name", "family", "has_template", "expected"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", "llama", True, "instruct"),
        ("meta-llama/Llama-3.2-3B", "llama", False, "base"),
        ("Qwen/Qwen2.5-3B-Instruct", "qwen2", True, "qwen"),
        ("Qwen/Qwen3-4B", "qwen3", True, "qwen"),
        ("Qwen/Qwen3-4B-Base", "qwen3", True, "base"),
        ("/models/database/chat", "llama", True, "instruct"),
    ],
)
def test_authors_stands_for_one_of_their_wordings(name, family, has_template, expected):
    assert wording_of("authors", name, family, has_template) is WORDINGS[expected]
    assert wording_of("ours", name, family, has_template) is WORDINGS["ours"]


LETTERS = {  # strict, lenient, form: answers to a question of four choices, the second right
    (True, True, "asked"): ("B", " Answer: b.\n", "Answer:B"),
    (False, False, "asked"): ("C", "Answer: A"),
    (False, True, "other"): ("(B)", "(B", "B. two", "The answer is B.", "**B**", "B\nB"),
    (False, False, "other"): ("Because", ""),
}


@pytest.mark.parametrize(("text", "reading"), [(text, reading) for reading, texts in LETTERS.items() for text in texts])
def test_the_readers_of_a_letter(text, reading):
    assert read_letter(text, 4, 1) == Reading(*reading)


def test_the_strict_reader_knows_no_fifth_choice_and_the_lenient_one_does():
    assert read_letter("E", 5, 4) == Reading(False, True, "other")


BOXES = {  # of 3/2
    (True, True, "asked"): ("\\boxed{\\frac{3}{2}}", "\\boxed{1.5}", "It is \\boxed{1}, no, \\boxed{ \\dfrac32 }."),
    (False, False, "asked"): ("\\boxed{1.5}, or \\boxed{2}",),
    (False, True, "unclosed"): ("\\boxed{\\frac{3}{2", "\\boxed{\\frac{3}{2}", "\\boxed{3/2\n\n"),
    (False, False, "unclosed"): ("\\boxed",),
    (False, True, "other"): ("The answer is 3/2.", "$\\frac{3}{2}$", "x = 1.5"),
    (False, False, "other"): ("1.5 or 2", "To find it, we", ""),
}


@pytest.mark.parametrize(("text", "reading"), [(text, reading) for reading, texts in BOXES.items() for text in texts])
def test_the_readers_of_a_box(text, reading):
    assert read_boxed(text, "\\frac{3}{2}") == Reading(*reading)


def test_a_box_that_the_prompt_opened_is_part_of_the_answer():
    assert read_boxed(" 5}\n\nQuestion", "5", opens_box=True) == Reading(True, True, "asked")
    assert read_boxed("5\n\nQuestion: What is 7", "5", opens_box=True) == Reading(False, True, "unclosed")
    assert read_boxed("5}", "5") == Reading(False, True, "other")


SUMS = {"2+3": "5", "3 \\times 4": "12", "5!": "120", "10^{3}": "1000", "\\sqrt{4}": "2"}  # not worked out, or not in lowest terms
SUMS |= {"\\frac{4}{2}": "2", "\\frac24": "\\frac12", "(2/4,3)": "(1/2,3)"}
RESULTS = dict.fromkeys(("5", "5.0", " 5.", "{5}", "\\text{5}", "x=5", "5\\text{ cm}", "5 cm", "5^\\circ", "\\$5"), "5")
RESULTS |= dict.fromkeys(("-\\frac12", "\\dfrac{-1}{2}", "-1/2", "-0.5"), "-\\frac{1}{2}")
RESULTS |= {"1,234": "1234", "1{,}000": "1000", "+5": "5", "(\\frac12, 3)": "(1/2,3)", "2\\sqrt{2}": "\\sqrt{8}", "1+x": "x+1"}
RESULTS |= {"12": "12\\text{ inches}"}


@pytest.mark.parametrize("answer", [*SUMS, *RESULTS])
def test_the_strict_reader_takes_results_alone(answer):
    """What MathRuler, the authors' grader, says of each of these; mathematics takes all of them."""
    assert read_boxed(f"\\boxed{{{answer}}}", (SUMS | RESULTS)[answer]) == Reading(answer in RESULTS, True, "asked")


def test_words_are_equal_whatever_they_are_wrapped_in():
    assert answer_equals("East.", "\\text{east}")
    assert not answer_equals("west", "\\text{east}")
    assert not answer_equals("", "\\{\\}")
    assert not answer_equals("5", " ")
    assert answer_equals("so it is 2/4.", "0.5")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{a{b}c} d}", "a{b}c"),
        ("\\boxed {a}", "a"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\left\\{x\\right.}", "\\left\\{x\\right."),
        ("\\boxed{a} \\boxed{b", None),
        ("\\boxed a", None),
        ("{a}", None),
        ("\\boxed{a\\\n}b}", "a\\\n"),
        ("", None),
    ],
)
def test_what_stands_in_the_last_box(text, content):
    assert box_content(text) == content


def test_a_gold_answer_that_cannot_be_read_is_refused():
    assert is_parsed("\\frac{1}{2}")
    assert not is_parsed("}{")
    with pytest.raises(InputError, match=r"question s has a gold answer that math-verify cannot read: '\}\{'"):
        get_task("dart-1").boxed_prompt(Example("s", "?", (), "}{", "dart-1"), WORDINGS["ours"])


PIECES = st.sampled_from(["A", "Answer", ":", " ", "b", ".", "\n", "B", "(", ")", "x", "Ans", "wer: ", " is ", "E", "because", ", "])
TEXTS = st.lists(PIECES, max_size=6).map("".join)


@settings(deadline=None, max_examples=500, derandomize=True)
@given(text=TEXTS, more=TEXTS, n_choices=st.integers(1, 6), right=st.integers(0, 5))
def test_no_continuation_changes_what_was_read_of_a_letter(text, more, n_choices, right):
    if letter_is_read(text):
        assert read_letter(text + more, n_choices, right)[:2] == read_letter(text, n_choices, right)[:2]


def test_letters_are_read_early_often_enough_for_that_to_say_something():
    assert letter_is_read("B. x")
    assert letter_is_read("(B) ")
    assert letter_is_read("B is ")
    assert not any(map(letter_is_read, ("B", "B.", "B. ", "Answer: B", "B\n", "Ans")))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(text=TEXTS, n_choices=st.integers(1, 6), right=st.integers(0, 5))
def test_what_the_strict_reader_takes_the_lenient_one_takes(text, n_choices, right):
    found = read_letter(text, n_choices, right)
    assert found.lenient or not found.strict


@pytest.mark.long
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the question sets of ../shared/data")
def test_every_gold_answer_of_mathematics_is_read_by_both_readers():
    rows = [json.loads(line) for line in (SHARED / "math" / "test.jsonl").read_text(encoding="utf-8").splitlines()][:300]
    strict = [row["answer"] for row in rows if not read_boxed(f"\\boxed{{{row['answer']}}}", row["answer"]).strict]
    lenient = [row["answer"] for row in rows if not read_boxed(f"${row['answer']}$", row["answer"]).lenient]
    assert strict == []
    numbers = [row["answer"] for row in rows if row["answer"].isdigit()]
    assert len(numbers) > 50
    assert not any(read_boxed(f"\\boxed{{{gold} + 1}}", gold).strict for gold in numbers), "its neighbour is another"
    assert len(lenient) <= 3, lenient
