"""Upstream row layouts: (task, row, id for rows that have none, part) -> Example; an answer of "" is kept secret upstream. No torch."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from drllm.core.digest import digest
from drllm.tasks.base import LETTERS, Example, Task
from drllm.tasks.readers import UNANSWERABLE


def lettered(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """ARC, OpenBookQA, CommonsenseQA: choices {"text", "label"}, and an answerKey among the labels ("A".. or "1"..)."""
    labels, key = list(row["choices"]["label"]), row["answerKey"].strip()
    answer = labels.index(key) if key else ""
    question = row["question_stem" if task.name == "openbookqa" else "question"]
    return Example(row["id"], question, tuple(row["choices"]["text"]), answer, task.name, part=part)


def goal(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """PIQA: goal, sol1, sol2, label (-1 for secret)."""
    answer = row["label"] if row["label"] in (0, 1) else ""
    return Example(id, row["goal"], (row["sol1"], row["sol2"]), answer, task.name, part=part)


def distractors(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """SciQ: three distractors, then the right answer, as lm-eval orders them; the passage is the context."""
    choices = (row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"])
    return Example(id, row["question"], choices, 3, task.name, row["support"], part)


def yes_or_no(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """BoolQ: a passage, a question without its question mark, and whether the answer is yes; choices as lm-eval orders them."""
    return Example(id, row["question"], ("no", "yes"), int(row["answer"]), task.name, row["passage"], part)


def untitled(example: Example) -> Example:
    """A BoolQ question for training as those of other parts are: their passages do not begin with the article's title, "Title -- "."""
    if example.part != "train":
        return example
    return replace(example, context=re.sub(r"^.{1,120}? -- ", "", example.context, count=1))


def under_subject(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """MMLU: question, four choices, answer index and subject."""
    return Example(id, row["question"], tuple(row["choices"]), row["answer"], task.name, subject_line(task, row["subject"]), part)


def solved(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """GSM8K: a question and a solution that ends with the number."""
    return Example(id, row["question"], (), gsm8k_answer(row["answer"]), task.name, part=part, solution=row["answer"])


def true_first(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """TruthfulQA, MC1: the one true answer among the targets, labelled 1."""
    targets = row["mc1_targets"]
    return Example(id, row["question"], tuple(targets["choices"]), list(targets["labels"]).index(1), task.name, part=part)


_EXAM = re.compile(r"(?P<passage>.*?)Q: (?P<question>.*) Answer Choices: \(A\).*\nA: Among A through [A-E], the answer is", re.DOTALL)


def exam(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """AGIEval as lm-eval's copies hold it: the whole prompt, lettered choices, the right ones; ValueError for a prompt of another form."""
    if (found := _EXAM.fullmatch(row["query"])) is None:
        raise ValueError(f"query {row['query'][:40]!r} is no exam question")
    choices = tuple(choice.removeprefix(f"({letter})") for letter, choice in zip(LETTERS, row["choices"], strict=False))
    example = Example(id, found["question"], choices, row["gold"][0], task.name, found["passage"], part)
    if task.loglik_prompt(example)[0] != row["query"]:
        raise ValueError(f"query {row['query'][:40]!r} lists other options than its choices")
    return example


def four_texts(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """GPQA: a question, one right answer and three wrong ones, dealt by their text as lm-eval cleans it (it deals them at random)."""
    texts = [row[name] for name in ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")]
    right, *_ = cleaned = [text.strip().replace(" [title]", ". ").replace("  ", " ") for text in texts]
    choices = sorted(cleaned, key=lambda text: digest(f"{row['Question']} {text}"))
    return Example(id, row["Question"], tuple(choices), choices.index(right), task.name, part=part)


def competition(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """AIME: a problem and its whole number."""
    return Example(id, row["Problem"], (), str(row["Answer"]).strip(), task.name, part=part)


def out_of_passage(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """SQuAD v2, with its own ids: title, context, question and the answers that count, none where the passage does not answer."""
    choices, answer = accepted_answers(row["answers"]["text"])
    return Example(row["id"], row["question"], choices, answer, task.name, background(row["context"], row["title"]), part)


def background(passage: str, title: str | None) -> str:
    """A passage as lm-eval's squadv2 shows it, below the title of its article."""
    above = f"Title: {title}\n\n" if title else ""
    return f"{above}Background: {passage}"


def accepted_answers(texts: list[str]) -> tuple[tuple[str, ...], str]:
    """`Example.choices` and `Example.answer` of an answer out of a passage."""
    accepted = tuple(dict.fromkeys(texts))
    return accepted, accepted[0] if accepted else UNANSWERABLE


LAYOUTS: dict[str, Callable[[Task, dict[str, Any], str, str], Example]]
LAYOUTS = dict.fromkeys(("arc_easy", "arc_challenge", "openbookqa", "commonsenseqa"), lettered)
LAYOUTS |= {"piqa": goal, "sciq": distractors, "boolq": yes_or_no, "mmlu": under_subject, "gsm8k": solved}
LAYOUTS |= {"truthfulqa": true_first, "agieval": exam, "gpqa": four_texts, "squadv2": out_of_passage, "aime24": competition}


def subject_line(task: Task, subject: str) -> str:
    """What stands above a question of a subject written as "high_school_biology"."""
    return task.description.replace("{subject}", subject.replace("_", " "))


def gsm8k_answer(text: str) -> str:
    """The number of a GSM8K answer: what stands behind "####" (all of it without one), thousands commas removed."""
    return text.rpartition("####")[2].strip().replace(",", "")


def level_of(value: int | str | None) -> int | None:
    """A difficulty level written as 3, "3" or "Level 3"; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"(?:level\s*)?(\d+)", value.strip(), re.IGNORECASE) if isinstance(value, str) else None
    return int(match[1]) if match else None


def of_level(task: Task, level: int | None, dropped: Counter[str]) -> bool:
    """Whether a question belongs to the task's level; counts it as dropped otherwise."""
    if level != task.level:
        dropped["no level" if level is None else "other level"] += 1
    return level == task.level
