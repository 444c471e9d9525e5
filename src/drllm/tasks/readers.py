r"""The two readers of a generated answer: a strict one, the authors' of arXiv 2510.12773, and a lenient one. No torch.

The strict reader takes one form alone: a bare letter, with "Answer: " before it at most; or the last \boxed{}, closed. The lenient one
takes the right answer in any form. A gain by the strict reader that is none by the lenient one is a gain of form.
"""

import re
from typing import Literal, NamedTuple

from drllm.tasks.grading import BOX, answer_equals, box_content, boxed_matches, letter_choice, letter_settled

Form = Literal["", "asked", "unclosed", "other"]


class Reading(NamedTuple):
    """What the readers say of an answer.

    `form` is "asked" where the strict reader finds an answer, right or wrong, "unclosed" where a box does not end, "other" for the rest;
    "" for rewards that one reader judges.
    """

    strict: bool
    lenient: bool
    form: Form = ""


_STRICT_LETTER = re.compile(r"(?:Answer:\s*)?(?P<letter>[A-Da-d])\.?")
# What a text may be that a strict letter can still become, by more text or by its end.
_BECOMES_STRICT = re.compile(r"\s*(?:A(?:n(?:s(?:w(?:e(?:r(?::\s*)?)?)?)?)?)?)?\Z|\s*(?:Answer:\s*)?[A-Da-d]\.?\s*\Z")
_CUT_LETTER = re.compile(r"[\s*_\"']*[(\[]\s*(?P<letter>[A-Z])\s*\Z")  # the last token allowed was the letter, its bracket is open


def read_letter(text: str, n_choices: int, right: int) -> Reading:
    """Of a letter; `right` is the index of the right choice."""
    match = _STRICT_LETTER.fullmatch(text.strip())
    strict = match is not None and _place(match["letter"]) == right
    chosen = letter_choice(text, n_choices)
    if chosen is None and (cut := _CUT_LETTER.match(text)) is not None:
        chosen = _place(cut["letter"])
    return Reading(strict, strict or chosen == right, "asked" if match else "other")


def letter_is_read(text: str) -> bool:
    """Whether no continuation of an answer changes what either reader says."""
    return _BECOMES_STRICT.match(text) is None and letter_settled(text)


def read_boxed(text: str, gold: str, opens_box: bool = False) -> Reading:
    r"""Of a boxed answer, by mathematics (`drllm.tasks.grading`).

    The lenient reader takes the last closed box; without one, the first line of an unclosed box; without that, the last formula or number.

    Args:
        opens_box: whether the prompt has opened the box.
    """
    whole = f"{BOX}{{{text.strip()}" if opens_box else text
    if box_content(whole) is not None:
        right = boxed_matches(whole, gold)
        return Reading(right, right, "asked")
    _, box, tail = whole.rpartition(BOX)
    # Behind the first line of an unclosed box something else was begun.
    said = tail.lstrip().removeprefix("{").strip().partition("\n")[0] if box else whole
    return Reading(False, answer_equals(said, gold), "unclosed" if box else "other")


def _place(letter: str) -> int:
    return ord(letter.upper()) - ord("A")
