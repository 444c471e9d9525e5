"""What the words on a page mean: those that stand on it, folded away."""

from __future__ import annotations

import re
from collections.abc import Iterable

from drllm.reporting.parts import Folded, Part, Table, to_markdown

TITLE = "What the words on this page mean"

# How a word is found in a page's Markdown, what it is called, and what it means.
WORDS = (
    (
        r"-first-\d+",
        "tune-first-500",
        "The first 500 questions of each task's tune split, or all where there are fewer. Splits share no question: policies learn from "
        "fit, are set and compared on tune, promise on calibrate; test is for final tables.",
    ),
    (
        r"-other-tasks",
        "tune-other-tasks",
        "Tasks that earlier calls of `drllm evaluate` compared on that split, and the latest did not.",
    ),
    (r"\bbase\b", "base", "The frozen model as it is: every block once."),
    (
        r"\bpass(es)?\b",
        "passes",
        "How often a prompt goes through a block: 0 where it is skipped, 1 as in the base, 2 where it is repeated; or their sum.",
    ),
    (
        r"@[-+]\d",
        "routers@-0.50",
        "The routers with their control knob p at -0.50, which is as they were trained; it goes from -1 (every block skipped) over 0.5 "
        "(the base's route) to 1 (every block repeated).",
    ),
    (
        r"\bshuffled\b",
        "shuffled",
        "A control: a policy's own routes, dealt to other prompts. What the policy has over it is what looking at the prompt is worth.",
    ),
    (r"\| random(-\w+)? \|", "random", "A control: a policy's skips and repeats, moved to random blocks."),
    (
        r"\bMcNemar\b",
        "McNemar p",
        "How likely it is that changed verdicts are split between better and worse at least this unevenly, were either as likely. Below "
        "0.05 counts as a difference here, if the interval agrees.",
    ),
    (
        r"\bWilson\b",
        "Wilson interval",
        "Of one accuracy, 95 %. Whether two methods differ is told by the interval of their difference, not by two of these.",
    ),
    (
        r"\bacc_norm\b",
        "acc, acc_norm",
        "Two ways to take an answer among choices: the most likely (acc), or the most likely by its log-likelihood a character (acc_norm).",
    ),
    (
        r"\bmacro[-_][fF]1\b",
        "macro-F1",
        "Mean of the F1 scores of skip, execute and repeat, from 0 to 1: how well routers tell them apart. Always execute: about 0.33.",
    ),
    (r"\bheld back\b", "held back", "Questions with a kept route that training did not see."),
    (r"\bkept\b", "kept route", "The best route that the search found for a question that it could solve: what routers learn from."),
    (r"\bPF\b", "PF", "A plain forward: one forward of one question by the base, the unit of cost."),
    (r"\b[Ww]eights [0-9a-f]{4,}", "weights d2b61903", "A digest of the base's weights: equal digests, equal models."),
)


def glossary(parts: Iterable[Part]) -> list[Part]:
    """A folded table of the words that stand in the parts of a page; nothing where none does."""
    text = to_markdown(parts)
    rows = tuple((word, meaning) for pattern, word, meaning in WORDS if re.search(pattern, text))
    return [Folded(TITLE, (Table(("word", "meaning"), rows),))] if rows else []
