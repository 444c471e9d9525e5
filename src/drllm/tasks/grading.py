r"""Judges of generated answers: the letter a model chose, and symbolic equality of the answer in \boxed{}.

The letter judge is strict where the paper's "right letter (regex)" leaves room: it must never read the article in "A plant needs
..." or the pronoun in "I think ..." as an option, since a search that rewards such text learns to produce it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from drllm.core.errors import DrllmError, InputError

_MARK = r"[*_`\"'“”‘’$]*"
_OPEN = r"[\s>*_`\"'“”‘’$#]*"
# What may follow the letter itself; a bare following word is refused ("A plant", "B vitamins", "C or D", "K, Ca and Sc"), an initial or a
# number is not an option either ("U.S.", "A.M.", "B.12").
_END = rf"{_MARK}\s*(?:\Z|\n|<)"
_STOP = rf"{_MARK}(?:[)\]:;](?!\d)|\.(?!\d|[A-Za-z]\.))"
_UPPER_ONLY = rf"{_MARK}(?:,(?!\s*(?:or\s|and\s)?\(?[A-Z])|\s+[-–—]\s|\s+(?:is|because|since)\s)"
_LETTER = (
    rf"(?:[(\[]\s*{_MARK}(?P<bracket>[A-Za-z]){_MARK}\s*[)\]]"
    rf"|(?P<upper>[A-Z])(?={_END}|{_STOP}|{_UPPER_ONLY})"
    rf"|(?P<lower>[a-z])(?={_END}|{_STOP}))"
)
# The same marks where they cannot become something else when the text goes on: what follows them is there.
_SETTLED = (
    rf"(?:{_MARK}\s*(?:\n|<)|{_MARK}(?:[)\]:;](?=[^\d])|\.(?=[^\dA-Za-z]|[A-Za-z][^.]))"
    rf"|(?P<spaced>{_MARK}(?:\s+[-–—]\s|\s+(?:is|because|since)\s)))"
)
_NOUN = r"(?:(?:option|choice|letter)\b[\s:*_]*)?"
_LEADING = re.compile(rf"\A{_OPEN}(?:(?i:{_NOUN})){_OPEN}{_LETTER}")
_LEADING_SETTLED = re.compile(
    rf"\A{_OPEN}(?:(?i:{_NOUN})){_OPEN}(?:[(\[]\s*{_MARK}[A-Za-z]{_MARK}\s*[)\]](?=.)|[A-Z](?={_SETTLED}))", re.DOTALL
)
_PHRASE = re.compile(rf"(?i:\banswer\b{_MARK}\s*(?P<verb>is|would\s+be|should\s+be)?{_MARK}\s*:?{_OPEN}(?:the\s+)?{_NOUN}){_OPEN}{_LETTER}")
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?\s*(?P<bracket>[A-Za-z])\s*[).:]?\s*\}")


def letter_choice(text: str, n_choices: int) -> int | None:
    r"""0-based index of the option the text chooses, or None when it chooses none or a letter beyond the options.

    Reads, in this order, a leading letter ("B", "(B)", "**B**", "Option B", "B is right"), a boxed one, and one behind "answer". Lower case
    counts alone or before a closing mark ("b", "b)", "(b)"); "the answer is a" is taken for an unfinished sentence.
    """
    if match := _LEADING.search(text):
        return _index(match["bracket"] or match["upper"] or match["lower"], n_choices)
    if match := _BOXED.search(text):
        return _index(match["bracket"], n_choices)
    for match in _PHRASE.finditer(text):
        unfinished = match["verb"] and match["lower"] in ("a", "i") and not re.match(rf"{_MARK}[).\]:;]", text[match.end() :])
        if not unfinished:
            return _index(match["bracket"] or match["upper"] or match["lower"], n_choices)
    return None


def letter_settled(text: str) -> bool:
    """Whether the text begins with a letter that `letter_choice` reads the same however the text goes on."""
    return _LEADING_SETTLED.search(text) is not None


def _index(letter: str, n_choices: int) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if index < n_choices else None


_NUMBER = re.compile(r"\s*(?P<number>[-+\u2212]?\d[\d,]*(?:\.\d+)?)")


def number_matches(text: str, gold: str) -> bool:
    """Whether the answer begins with a number that equals the gold one (math-verify); "84 + 25 = 109" begins with another."""
    match = _NUMBER.match(text)
    if match is None:
        return False
    number = match["number"].replace(",", "").replace("\u2212", "-")
    return boxed_matches(f"{BOX}{{{number}}}", gold)


def number_settled(text: str) -> bool:
    """Whether nothing to come changes the number that the answer begins with."""
    return re.search(r"\S\s", text) is not None


BOX = "\\boxed"


def box_content(text: str) -> str | None:
    r"""What stands in the last \boxed{} of a text; None where there is none, or where it does not end."""
    _, box, tail = text.rpartition(BOX)
    inside = tail.lstrip()
    if not box or not inside.startswith("{"):
        return None
    depth = 0
    for match in re.finditer(r"\\.|[{}]", inside, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return inside[1 : match.start()]
    return None


def boxed_matches(text: str, gold: str) -> bool:
    r"""Whether the last \boxed{} of the text equals the gold answer symbolically (math-verify); False without a box, or an unclosed one.

    Runs in a helper process shared by all threads: math-verify's own time limit needs the main thread and cannot interrupt a single huge
    integer operation. An answer that takes more than 5 CPU seconds (a busy machine does not change verdicts) counts as wrong. InputError
    when math-verify is not installed, DrllmError when the helper dies for another reason.
    """
    content = box_content(text)
    if content is None or not gold.strip():
        return False
    return checker_of(os.getpid()).check(f"{BOX}{{{content[:MAX_BOXED_CHARS]}}}", gold)


def answer_equals(text: str, gold: str) -> bool:
    """As `boxed_matches`, of the last formula or number of a text in any form; or of the whole text, where the gold answer is words."""
    if not gold.strip():
        return False
    return _plain(text) == _plain(gold) != "" or checker_of(os.getpid()).check(text[-MAX_BOXED_CHARS:], gold, boxed=False)


def _plain(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|textbf|mathbf)\b|[{}$\s]", "", text).rstrip(".").casefold()


@functools.lru_cache(maxsize=100_000)
def is_parsed(gold: str) -> bool:
    """Whether math-verify can read a gold answer."""
    return boxed_matches(f"{BOX}{{{gold}}}", gold)


MAX_BOXED_CHARS = 2000  # of an answer that are looked at


@functools.cache
def checker_of(pid: int) -> MathChecker:
    """One helper a process: a forked child must not share its parent's pipes."""
    return MathChecker(pid)


# Out of CPU time, or out of stack in the parser: the answer cannot be judged equal. Any other death is not the answer's doing.
ENDED_BY_AN_ANSWER = tuple(getattr(signal, name) for name in ("SIGPROF", "SIGSEGV") if hasattr(signal, name))


class MathChecker:
    """A helper process that runs math-verify (math_worker.py), one JSON line a question; started on first use, restarted after a hang."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.lock = threading.Lock()
        self.process: Any = None  # a `Popen` with both pipes
        atexit.register(self.close)

    def check(self, text: str, gold: str, boxed: bool = True) -> bool:
        """Whether the box that is the text equals the gold answer; or, not boxed, the last formula or number of the text."""
        with self.lock:
            process = self.process if self.process is not None and self.process.poll() is None else self._start()
            try:
                process.stdin.write(json.dumps({"text": text, "gold": gold, "boxed": boxed}) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline().strip()
            except BrokenPipeError:
                reply = ""
            if reply in ("0", "1"):
                return reply == "1"
            code = process.wait()
            self._release()
            if -code in ENDED_BY_AN_ANSWER:
                return False
            raise DrllmError(f"the math-verify helper process ended with code {code} while judging an answer: run again")

    def _start(self) -> Any:
        self._release()
        command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("math_worker.py"))]
        # A session of its own: Ctrl-C reaches this process alone, the helper ends when its input does.
        self.process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, encoding="utf-8", start_new_session=True)
        hello = self.process.stdout.readline().strip()
        if hello != "ready":
            self._release()
            why = hello or "no reason given"
            raise InputError(f"math-verify does not load ({why}), answers in boxes and numbers need it: pip install math-verify")
        return self.process

    def _release(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError), process:  # closing flushes what a dead helper never read
                pass

    def close(self) -> None:
        if os.getpid() == self.pid:
            self._release()
