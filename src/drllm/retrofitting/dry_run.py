"""What a retrofit would do: how many questions each split has, whether they are enough to promise anything, and what fits into the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drllm.core.config import PromiseConfig, RetrofitConfig
from drllm.core.text import points_lost, table_text
from drllm.retrofitting.sizes import Sizes, check_questions
from drllm.stats.promise import fewest_questions, smaller_promise
from drllm.tasks import SPLITS, LoadedTask, drop_overlaps, load_task
from drllm.tasks.base import LETTERS
from drllm.tasks.splits import DRAWN

CHANGED = 0.1  # share of answers that a policy of some use changes, half of them for the worse


def loaded_tasks(tasks: Sequence[str], data: str | Path | None) -> dict[str, LoadedTask]:
    """The tasks of a retrofit, without questions that another task's earlier split holds."""
    return drop_overlaps({name: load_task(name, data) for name in tasks})


def questions_of(loaded: Mapping[str, LoadedTask]) -> dict[str, dict[str, int]]:
    """By task, the number of questions of each split."""
    return {name: {split: len(rows) for split, rows in one.examples.items()} for name, one in loaded.items()}


def left_out(loaded: Mapping[str, LoadedTask]) -> Iterator[str]:
    """How many rows of each task are not asked, and why."""
    for name, one in loaded.items():
        for reason, n in one.dropped.items():
            why = f"stand in an earlier split, too ({reason})" if reason in SPLITS else reason
            yield f"{name}: {n} row{'s' * (n != 1)} left out: {why}"


def read_as(loaded: Mapping[str, LoadedTask], reward: str) -> Iterator[str]:
    """What each task's rows were taken for, and how answers are judged."""
    for name, one in loaded.items():
        examples = [example for rows in one.examples.values() for example in rows]
        n_choices = sorted({len(example.choices) for example in examples if example.choices})
        some = f"{n_choices[0]}{f' to {n_choices[-1]}' if len(n_choices) > 1 else ''} choices" if n_choices else "free answers"
        yield f"{name}: {len(examples):,} questions with {some}, judged by {one.task.reward_named(reward)}"
    yield from doubtful(loaded)


def doubtful(loaded: Mapping[str, LoadedTask]) -> Iterator[str]:
    """What an answer key hardly means: letters without choices, or one answer to every question."""
    for name, one in loaded.items():
        answers = [(example.answer, len(example.choices)) for rows in one.examples.values() for example in rows]
        if answers and all(not n and len(str(answer)) == 1 and str(answer) in LETTERS for answer, n in answers):
            yield f"{name}: every answer is a single letter: are the choices missing?"
        elif len(answers) > 1 and len({answer for answer, _ in answers}) == 1:
            (answer, n), *_ = answers
            yield f"{name}: every answer is {LETTERS[answer] if isinstance(answer, int) and n else repr(answer)}: is that the answer key?"


def counted(available: Mapping[str, Mapping[str, int]], promise: PromiseConfig) -> Iterator[str]:
    """The questions as a table, and whether they can promise anything; `InputError` for too few to begin with."""
    rows = [(name, *(f"{of[split]:,}" for split in SPLITS)) for name, of in available.items()]
    yield table_text(("task", *SPLITS), rows)
    check_questions(available)
    n = sum(of["calibrate"] for of in available.values())
    least, likely = (fewest_questions(promise.epsilon, promise.delta, changed) for changed in (0.0, CHANGED))
    promised = f"a promise of at most {points_lost(promise.epsilon)} lost, {100 * (1 - promise.delta):g} % sure"
    needs = f"{promised}, needs {least:,} where a policy changes no answer, {likely:,} where every tenth answer changes for no gain"
    if n < least:
        less = smaller_promise(promise.epsilon, promise.delta, n)
        more = f"Bring about {least / DRAWN['calibrate']:,.0f} questions, in a file without parts."
        if less is not None:
            more += f" These {n:,} bear a smaller promise of a policy that changes no answer: --promise-epsilon {less:g}."
        yield f"{n:,} calibrate questions are too few unless a policy gains much: {needs}. {more}"
    elif n < likely:
        yield f"{n:,} calibrate questions may be too few unless a policy gains much: {needs}."
    else:
        yield f"{n:,} calibrate questions are enough: {needs}."


def fitting(sizes: Sizes, asked: RetrofitConfig) -> Iterator[str]:
    spans = f"spans of at most {sizes.max_span} blocks" if sizes.max_span else "spans of any length"
    yield f"in {asked.minutes:g} minutes, at {sizes.plain_ms:.3g} ms a plain forward:"
    yield f"  scan: {spans}, {sizes.scanned:,} questions in its last round"
    yield f"  the best routes: {sizes.listed:,} fit and tune questions a task at most"
    yield f"  compared on {sizes.tuned:,} tune questions a task at most"
    yield f"  promised on {sizes.calibrated:,} calibrate questions a task at most"
