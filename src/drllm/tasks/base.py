"""Example and Task: how a question becomes a prompt and how an answer is judged. No torch.

Prompts of the `loglik` reward are those of the stock lm-evaluation-harness 0.4, character for character, so that its accuracies and ours
can be compared. Those of the rewards `letter` and `boxed` come in one of several wordings (`drllm.tasks.wording`).
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field, replace
from typing import Literal

from drllm.core.digest import number_of
from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.tasks.grading import is_parsed, number_matches, number_settled
from drllm.tasks.readers import Reading, exact_match, letter_is_read, read_boxed, read_letter
from drllm.tasks.wording import Wording

Kind = Literal["choice", "math", "passage"]
_KINDS: dict[str, Kind] = {"loglik": "choice", "letter": "choice", "boxed": "math", "number": "math", "exact": "passage"}  # by reward
_SECOND_TEMPLATE, _SECOND_LETTERED = "Q: {question}\nA:", "Q: {question}\n{options}\nA:"
_LETTERED = "{question}\n{options}\nAnswer:"
_OF_A_SUBJECT = "The following are multiple choice questions (with answers) about {subject}.\n"
LETTERS = string.ascii_uppercase
_TRUTHFUL_SHOTS = (  # lm-eval's, in this order
    ("What is human life expectancy in the United States?", "Human life expectancy in the United States is 78 years."),
    ("Who was president of the United States in 1955?", "Dwight D. Eisenhower was president of the United States in 1955."),
    ("Which party did he belong to?", "He belonged to the Republican Party."),
    ("What is the square root of banana?", "I have no comment."),
    ("How does a telescope work?", "Telescopes use lenses or mirrors to focus light and make objects appear closer."),
    ("Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain."),
)
_TRUTHFUL = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in _TRUTHFUL_SHOTS) + "Q: {question}\nA:"
_EXAM = "Q: {question} Answer Choices: {inline}\nA: Among A through {last}, the answer is"
_GRADUATE = "What is the correct answer to this question:{question}\nChoices:\n{bracketed}\nAnswer:"


@dataclass(frozen=True)
class _Listing:
    """How a prompt lists its options, and what continues it for one; {letter} and {choice} are filled in."""

    item: str
    between: str
    continuation: str

    def text(self, example: Example) -> str:
        return self.between.join(_filled(self.item, example))


_LISTINGS = {  # by the field of a template that stands for the options
    "{options}": _Listing("{letter}. {choice}", "\n", "{letter}"),
    "{bracketed}": _Listing("({letter}) {choice}", "\n", "({letter})"),
    "{inline}": _Listing("({letter}){choice}", " ", "({letter}){choice}"),
}


@dataclass(frozen=True)
class Example:
    """One question. `choices` is empty for a free answer; `answer` is a 0-based choice index, or the gold answer's text.

    Of an answer out of a passage `choices` are the texts that count as right, if any, and `answer` the first of them, or "unanswerable".
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | str
    task: str
    context: str = ""  # a passage that stands before the question (SciQ, BoolQ); empty for most tasks
    part: str = ""  # the upstream part the row came from: "train", "validation", "test", or "" when unknown
    solution: str = field(default="", compare=False)  # how the answer is worked out, where the source says it: shown in shots, never asked


@dataclass(frozen=True)
class Task:
    """A named kind of question: its prompts and its judge."""

    name: str
    kind: Kind
    default_reward: Literal["loglik", "boxed", "number", "exact"]
    about: str  # one line for `drllm tasks`
    loglik_template: str = "Question: {question}\nAnswer:"
    """lm-eval's `doc_to_text` with its fields filled in; the continuation is a space and the choice, or its letter where the template lists
    the options."""
    description: str = ""  # what stands above a question, with its subject filled in (MMLU); lm-eval's `description`
    has_passage: bool = False  # whether a question without a passage still has its empty line, as lm-eval's SciQ
    passage_end: str = "\n"  # between a passage and its question
    has_titles: bool = False  # whether training passages, unlike others, begin with their article's title (BoolQ): it is taken off
    shots: tuple[tuple[str, str], ...] = ()  # solved questions that stand before each one: reward "number"
    level: int = 0  # DART-Math's difficulty, 1 to 5; 0 for tasks without levels
    is_own: bool = False  # of a user's own file, which gives it its name
    only_acc: bool = False  # whether lm-eval reports raw log-likelihoods alone, so that these are the verdict whatever the metric
    is_shuffled: bool = False  # whether the right choice always stands at the same place, so that letters are dealt anew
    hides_test: bool = False  # whether upstream keeps the answers of its test part secret
    only_measured: bool = False  # whether nothing is learned from it: tune and test are all its splits

    def reward_named(self, reward: str) -> str:
        """The reward that a name stands for here: `auto` is the task's own, `generated` a letter where that reads log-likelihoods."""
        if reward == "generated":
            return "letter" if self.default_reward == "loglik" else self.default_reward
        return self.default_reward if reward == "auto" else reward

    def loglik_prompt(self, example: Example) -> tuple[str, list[str]]:
        """Context and continuations (each with its leading space) as in lm-eval 0.4, zero-shot.

        Choice texts are kept raw, trailing blanks included: `acc_norm` divides by their length.
        """
        question = example.question
        continuations = list(example.choices)
        text = self.loglik_template
        if self.lists_options:
            self._need_letters(example, "this task's prompt")
            question = question.strip() if "{options}" in text else question  # as lm-eval does, and does not
            for name, listing in _LISTINGS.items():
                if name in text:
                    continuations = _filled(listing.continuation, example)
                    text = text.replace(name, listing.text(example))
            text = text.replace("{last}", LETTERS[len(example.choices) - 1])
        text = text.replace("{question}", question)
        passage = example.context.lstrip() if self.passage_end else example.context
        context = f"{passage}{self.passage_end}{text}" if example.context or self.has_passage else text
        return context, [f" {continuation}" for continuation in continuations]

    @property
    def lists_options(self) -> bool:
        """Whether log-likelihoods are those of letters (CommonsenseQA, MMLU)."""
        return any(name in self.loglik_template for name in _LISTINGS)

    def reworded(self) -> Task:
        return replace(self, loglik_template=_SECOND_LETTERED if self.lists_options else _SECOND_TEMPLATE)

    def letter_prompt(self, example: Example, wording: Wording) -> str:
        """What asks for the letter of an option, in a wording; at most 26 options, else InputError."""
        self._need_letters(example, "a letter prompt")
        choices = dict(zip(LETTERS, self._dealt(example).choices, strict=False))
        return wording.asked_for_letter(example.question, choices, example.context.strip())

    def right_letter(self, example: Example) -> str:
        return LETTERS[int(self._dealt(example).answer)]

    def boxed_prompt(self, example: Example, wording: Wording) -> str:
        r"""What asks for the answer in \boxed{}, in a wording; InputError for a gold answer that no answer can be compared with."""
        if not is_parsed(str(example.answer)):
            raise InputError(
                f"question {example.id} has a gold answer that math-verify cannot read: {example.answer!r}, mend it or leave it out"
            )
        return wording.asked_for_box(example.question)

    def number_prompt(self, example: Example) -> str:
        """Raw text: the task's solved questions, then this one. Small models answer it with a number, and box none."""
        solved = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in self.shots)
        return f"{solved}Question: {example.question}\nAnswer:"

    def passage_prompt(self, example: Example) -> str:
        """Raw text: passage, question, and the start of an answer, as lm-eval's squadv2."""
        return f"{example.context}\n\nQuestion: {example.question}\n\nAnswer:"

    def read(self, example: Example, text: str, reward: str, opens_box: bool = False) -> Reading:
        """What the readers say of a generated answer; `opens_box`: the prompt has opened the box that it goes on with."""
        if reward == "loglik" or reward not in _KINDS:
            raise InputError(f"reward {reward!r} does not judge generated text, expected 'letter', 'boxed', 'number' or 'exact'")
        if reward == "letter":
            return read_letter(text, len(example.choices), int(self._dealt(example).answer))
        if reward == "boxed":
            return read_boxed(text, str(example.answer), opens_box)
        right = exact_match(text, example.choices) if reward == "exact" else number_matches(text, str(example.answer))
        return Reading(right, right)

    def settled(self, text: str, reward: str) -> bool:
        """Whether no continuation of an answer changes what is read in it; never for "boxed", where a later box would count."""
        if reward == "exact":  # one line
            return "\n" in text
        return letter_is_read(text) if reward == "letter" else reward == "number" and number_settled(text)

    def _dealt(self, example: Example) -> Example:
        """The question as letters show it: the right choice at a place that its text gives, where it would always stand at one."""
        if not self.is_shuffled:
            return example
        n = len(example.choices)
        by = number_of(f"deal {example.question}") % n  # a rotation, so that a question whose options were rotated is another here, too
        choices = (*example.choices[by:], *example.choices[:by])
        return replace(example, choices=choices, answer=(int(example.answer) - by) % n)

    def _need_letters(self, example: Example, what: str) -> None:
        if len(example.choices) > len(LETTERS):
            raise InputError(f"question {example.id} has {len(example.choices)} choices, {what} holds at most 26: use reward loglik")

    def is_judged_by(self, reward: str) -> bool:
        """Whether a reward fits: its kind of answer, and for "number" solved questions to show."""
        return self.kind == _KINDS[reward] and (reward != "number" or bool(self.shots))


def _filled(form: str, example: Example) -> list[str]:
    return [form.replace("{letter}", letter).replace("{choice}", text) for letter, text in zip(LETTERS, example.choices, strict=False)]


def _arith(level: int, about: str, solved: str) -> Task:
    """`solved`: the questions that stand before each one, as "3 + 4 = 7, 9 - 5 = 4"."""
    shots = tuple((f"What is {left}?", right) for left, right in (equation.split(" = ") for equation in solved.split(", ")))
    return Task(f"arith-{level}", "math", "number", f"Arithmetic, level {level} of 8: {about}", shots=shots)


_THREE_NUMBERS = "23 + 41 - 12 = 52, 97 - 52 + 36 = 81, 68 + 76 + 15 = 159, 24 - 71 - 38 = -85"
_TRUE = "TruthfulQA: one true answer against common errors (MC1)"
_ALL = (
    Task("arc_easy", "choice", "loglik", "ARC-Easy: grade-school science, 3 to 5 choices"),
    Task("arc_challenge", "choice", "loglik", "ARC-Challenge: harder grade-school science, 3 to 5 choices"),
    Task("openbookqa", "choice", "loglik", "OpenBookQA: elementary science, 4 choices", "{question}"),
    Task("piqa", "choice", "loglik", "PIQA: physical common sense, 2 choices", hides_test=True),
    Task("sciq", "choice", "loglik", "SciQ: science exam questions under a passage, 4 choices", has_passage=True, is_shuffled=True),
    Task(
        "boolq", "choice", "loglik", "BoolQ: yes or no under a passage", "Question: {question}?\nAnswer:", has_titles=True, hides_test=True
    ),
    Task("commonsenseqa", "choice", "loglik", "CommonsenseQA: everyday concepts, 5 choices", f"Question: {_LETTERED}", hides_test=True),
    Task("mmlu", "choice", "loglik", "MMLU: 57 subjects, 4 choices", _LETTERED, description=_OF_A_SUBJECT),
    Task("truthfulqa", "choice", "loglik", _TRUE, _TRUTHFUL, only_acc=True, is_shuffled=True, only_measured=True),
    Task("agieval", "choice", "loglik", "AGIEval: seven English exams, 4 or 5 choices", _EXAM, passage_end="", only_measured=True),
    Task("gpqa", "choice", "loglik", "GPQA Diamond: graduate science, 4 choices", _GRADUATE, only_measured=True),
    Task("squadv2", "passage", "exact", "SQuAD v2: an answer out of a passage, or none there", only_measured=True),
    Task("aime24", "math", "boxed", "AIME 2024: competition mathematics, a whole number as answer", only_measured=True),
    Task("gsm8k", "math", "boxed", "GSM8K: grade-school word problems, a number as answer"),
    *(Task(f"dart-{level}", "math", "boxed", f"DART-Math, questions of level {level} of 5", level=level) for level in range(1, 6)),
    _arith(1, "products of two digits", "3 * 4 = 12, 7 * 2 = 14, 5 * 9 = 45, 8 * 6 = 48"),
    _arith(2, "two digits, added or subtracted", "3 + 4 = 7, 9 - 5 = 4, 8 + 6 = 14, 2 - 7 = -5"),
    _arith(3, "three digits, added or subtracted", "3 + 4 - 2 = 5, 9 - 5 + 6 = 10, 8 + 6 + 1 = 15, 2 - 7 - 3 = -8"),
    _arith(4, "two numbers of two digits, added or subtracted", "23 + 41 = 64, 97 - 52 = 45, 68 + 76 = 144, 24 - 71 = -47"),
    _arith(5, "two numbers of three digits, added or subtracted", "231 + 415 = 646, 974 - 523 = 451, 686 + 761 = 1447, 240 - 718 = -478"),
    _arith(6, "products of two numbers of two digits", "23 * 41 = 943, 97 * 52 = 5044, 68 * 76 = 5168, 24 * 71 = 1704"),
    _arith(7, "three numbers of two digits, added or subtracted", _THREE_NUMBERS),
    _arith(8, "four digits, added or subtracted", "3 + 4 - 2 + 6 = 11, 9 - 5 + 6 - 7 = 3, 8 + 6 + 1 + 5 = 20, 2 - 7 - 3 + 4 = -4"),
)
_TASKS = {task.name: task for task in _ALL}
TASK_NAMES = tuple(_TASKS)


def own_task(name: str, kind: Kind) -> Task:
    """A task of a user's own questions: choices are asked as ARC's are, free answers are looked for in a box."""
    return Task(name, kind, "loglik" if kind == "choice" else "boxed", "questions of your own", is_own=True)


def get_task(name: str) -> Task:
    if name in _TASKS:
        return _TASKS[name]
    raise InputError(f"unknown task {name!r}{did_you_mean(name.lower(), TASK_NAMES)}; the tasks are {', '.join(TASK_NAMES)}")
