"""Upstream row layouts that several sources share: (task, row, id for rows that have none, part) -> Example. No torch.

An answer of "" is one that upstream keeps secret.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from drllm.tasks.base import Example, Task


def lettered(task: Task, row: dict[str, Any], id: str, part: str) -> Example:
    """ARC, OpenBookQA, CommonsenseQA, with their own ids: choices {"text", "label"}, and an answerKey among the labels ("A".. or "1"..)."""
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
    return Example(id, row["question"], (), gsm8k_answer(row["answer"]), task.name, part=part)


LAYOUTS: dict[str, Callable[[Task, dict[str, Any], str, str], Example]] = dict.fromkeys(
    ("arc_easy", "arc_challenge", "openbookqa", "commonsenseqa"), lettered
)
LAYOUTS |= {"piqa": goal, "sciq": distractors, "boolq": yes_or_no, "mmlu": under_subject, "gsm8k": solved}


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
