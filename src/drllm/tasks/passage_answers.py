"""Judges of an answer out of a passage, as SQuAD v2's own script counts them: exact match and F1 over words. No torch.

Source: Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD" (2018), and its evaluation script.

A model has no way to answer nothing, so `UNANSWERABLE`, which lm-eval's squadv2 expects of it, stands for the script's empty answer.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

UNANSWERABLE = "unanswerable"
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(text: str, accepted: Sequence[str]) -> bool:
    """Whether an answer equals one that counts as right; of a question without one, whether it says so."""
    return _first_line(text) in _golds(accepted)


def f1_score(text: str, accepted: Sequence[str]) -> float:
    """The best F1, 0 to 1, of an answer's words against those of an answer that counts as right."""
    return max(_f1(_first_line(text).split(), gold.split()) for gold in _golds(accepted))


def answer_settled(text: str) -> bool:
    """Whether the answer is over: it is one line."""
    return "\n" in text


def _f1(found: list[str], gold: list[str]) -> float:
    """Of the words two answers share, how often each has them; 1 or 0 where one of them is empty."""
    if not found or not gold:
        return float(found == gold)
    shared = (Counter(found) & Counter(gold)).total()
    return 2 * shared / (len(found) + len(gold))


def _first_line(text: str) -> str:
    """The words of an answer, normalised; empty where it says that there is none."""
    words = normalised(text.partition("\n")[0])
    return "" if words == UNANSWERABLE else words


def _golds(accepted: Sequence[str]) -> list[str]:
    """The answers that count as right, normalised; those of which nothing is left are passed over. Where none is, the empty one counts."""
    return [words for text in accepted if (words := normalised(text))] or [""]


def normalised(text: str) -> str:
    """Lower case, without punctuation (ASCII), articles (a, an, the) and more than one blank."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", plain).split())
