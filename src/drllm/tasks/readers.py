r"""The two readers of a generated answer: a strict one, the authors' of arXiv 2510.12773, and a lenient one. No torch.

The strict reader takes one form alone: a bare letter, with "Answer: " before it at most; or the last \boxed{}, closed. The lenient one
takes the right answer in any form. A gain by the strict reader that is none by the lenient one is a gain of form.

Answers out of a passage are read as by the evaluation script of SQuAD v2 (Rajpurkar, Jia and Liang, 2018): exact match and F1 over words.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from drllm.tasks.grading import BOX, answer_equals, box_content, boxed_matches, letter_choice, letter_settled

Form = Literal["", "asked", "unclosed", "other"]
UNANSWERABLE = "unanswerable"  # what lm-eval's squadv2 expects where a passage has no answer, as the script's empty one
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Reading(NamedTuple):
    """What the readers say of an answer.

    `form` is "asked" where the strict reader finds one, "unclosed" where a box does not end, "other"; "" for rewards of one reader.
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

    The strict reader takes the last closed box, equal and worked out (`is_worked_out`). The lenient one takes it as it is; without one, the
    first line of an unclosed box; without that, the last formula or number. `opens_box`: the prompt has opened the box.
    """
    whole = f"{BOX}{{{text.strip()}" if opens_box else text
    if (content := box_content(whole)) is not None:
        content = content.strip().removesuffix(".")
        right = boxed_matches(f"{BOX}{{{content}}}", gold)
        return Reading(right and is_worked_out(content, gold), right, "asked")
    _, box, tail = whole.rpartition(BOX)
    # Behind the first line of an unclosed box something else was begun.
    said = tail.lstrip().removeprefix("{").strip().partition("\n")[0] if box else whole
    return Reading(False, answer_equals(said, gold), "unclosed" if box else "other")


def is_worked_out(answer: str, gold: str) -> bool:
    """Whether an answer that equals the gold one is written as a result: no 2 + 3 for 5, no 2/4 for 1/2.

    As MathRuler (PRM800K's grader, which the authors use): one is a whole number only where the other is; fractions are written alike.
    """
    parts, wanted = _elements(answer), _elements(gold)
    if len(parts) == len(wanted) > 1:
        return all(map(is_worked_out, parts, wanted))
    written, right = _as_number(answer), _as_number(gold)
    if _FRACTION.fullmatch(written) and _FRACTION.fullmatch(right):
        return written == right
    return bool(_WHOLE.fullmatch(written)) == bool(_WHOLE.fullmatch(right))


_FRACTION, _WHOLE = re.compile(r"-?\d+/\d+"), re.compile(r"-?\d+(\.0*)?")
_WRITTEN_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_UNITS = re.compile(
    r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\^\s*\{?\s*\\circ\s*\}?|(?:degree|centimeter|cm|meter|mile|second|minute|hour|day|week|month|year"
    r"|foot|feet|inch|yard|unit)(?:es)?s?\s*(?:\^\{?\d+\}?)?"
)
_MARKS = re.compile(r"^\s*[a-zA-Z]\s*=|\\(?:left|right|[,!;: %$])|[%$\s{}]")
_COMMAS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def _as_number(text: str) -> str:
    """A number without its unit, thousands' commas and TeX's marks; anything else is no number afterwards, too."""
    whole = re.fullmatch(r"\s*\\text\s*\{([^{}]*)\}\s*", text)
    text = _WRITTEN_FRACTION.sub(lambda match: f"{match[1] or match[2]}/{match[3] or match[4]}", whole[1] if whole else text)
    return _COMMAS.sub("", _MARKS.sub("", _UNITS.sub("", text))).removeprefix("+")


def _elements(text: str) -> list[str]:
    """Those of a tuple or interval; else none."""
    match = re.fullmatch(r"\s*(?:\\left)?\s*[(\[](?P<inside>[^()\[\]]*?)(?:\\right)?\s*[)\]]\s*", text)
    return match["inside"].split(",") if match else []


def _place(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def exact_match(text: str, accepted: Sequence[str]) -> bool:
    """Whether an answer equals one that counts as right; of a question without one, whether it says so."""
    return _first_line(text) in _golds(accepted)


def f1_score(text: str, accepted: Sequence[str]) -> float:
    """The best F1, 0 to 1, of an answer's words against those of an answer that counts as right."""
    found, best = _first_line(text).split(), 0.0
    for gold in map(str.split, _golds(accepted)):
        shared = 2 * (Counter(found) & Counter(gold)).total() / max(1, len(found) + len(gold))
        best = max(best, shared if found and gold else float(found == gold))
    return best


def _first_line(text: str) -> str:
    """The words of an answer, normalised; empty where it says that there is none."""
    words = _normalised(text.partition("\n")[0])
    return "" if words == UNANSWERABLE else words


def _golds(accepted: Sequence[str]) -> list[str]:
    """Those that count as right, normalised; where nothing is left of any, the empty one."""
    return [words for text in accepted if (words := _normalised(text))] or [""]


def _normalised(text: str) -> str:
    """Lower case, without punctuation (ASCII), articles (a, an, the) and more than one blank."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", plain).split())
